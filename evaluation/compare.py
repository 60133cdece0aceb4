"""The difference of two results on the same records, with its interval and p value: a paired bootstrap by patient.

    python -m ecgformers.evaluation.compare FIRST.json SECOND.json [--output results]
        [--rows "METHOD, PROTOCOL" "METHOD, PROTOCOL"]

FIRST and SECOND are results of the evaluation commands, with the files NAME.npz that these write beside them.  The
models are compared under every protocol that both have; `--rows` compares any two rows instead, such as a model with
its random encoder (FIRST and SECOND may be the same file).  Both are resampled by the same draws of patients.

For research use; not a medical device.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ecgformers.evaluation.options import CompareOptions, short_name
from ecgformers.evaluation.tables import RESEARCH_USE, provenance, read_json, write_json
from ecgformers.metrics.bootstrap import Weighted, paired_bootstrap
from ecgformers.metrics.ranking import Metric, auroc, average_precision, macro
from ecgformers.options import parse, run_command


@dataclass(frozen=True)
class Result:
    """A result of an evaluation command, record by record.

    Args:
        content: its JSON file.
        rows: "METHOD, PROTOCOL" -> (n, figures) or (runs, n, classes), see `Table.values`.
        names: of the figures, or of the classes.
        targets: (n, classes); None where the values are no scores of classes.
    """

    content: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]
    names: list[str]
    record_ids: np.ndarray
    patients: np.ndarray
    targets: np.ndarray | None

    @classmethod
    def load(cls, path: Path) -> "Result":
        content = read_json(path)
        with np.load(path.with_suffix(".npz")) as file:
            arrays = dict(file)
        about = {name: arrays.pop(name, None) for name in ("names", "record_ids", "patients", "targets")}
        return cls(content, arrays, **about)

    @property
    def model(self) -> str:
        return short_name(self.content["model"])

    @property
    def name(self) -> str:
        return "_".join(filter(None, (self.content["recipe"], self.content["task"])))

    def take(self, which: np.ndarray) -> "Result":
        """The records of these indices."""
        rows = {name: values[..., which, :] for name, values in self.rows.items()}
        targets = None if self.targets is None else self.targets[which]
        return Result(self.content, rows, self.names, self.record_ids[which], self.patients[which], targets)


def run(options: CompareOptions) -> list[dict[str, Any]]:
    first, second = Result.load(options.first), Result.load(options.second)
    pairs = [options.rows] if options.rows else shared_rows(first, second)
    for result, names in zip((first, second), zip(*pairs, strict=True), strict=True):
        for name in names:
            if name not in result.rows:
                raise ValueError(f"{result.content['model']} has no row {name!r}; there are: {'; '.join(result.rows)}")
    first, second, notes = same_records(first, second)
    differences = [difference for pair in pairs for difference in compare(first, second, pair, options)]
    write(first, second, differences, notes, options)
    return differences


def shared_rows(first: Result, second: Result) -> list[tuple[str, str]]:
    """The rows of the two models under the protocols that both have.

    Raises:
        ValueError: there is none.
    """
    protocols = [
        {row["protocol"] for row in result.content["rows"] if row["method"] == result.model}
        for result in (first, second)
    ]
    shared = [row["protocol"] for row in first.content["rows"] if row["protocol"] in set.intersection(*protocols)]
    if not shared:
        rows = [
            " and ".join(f"{result.model}, {name}" for name in each)
            for result, each in zip((first, second), protocols, strict=True)
        ]
        raise ValueError(f"the models have no protocol in common; say by --rows what to compare: {'; or '.join(rows)}")
    return [(f"{first.model}, {name}", f"{second.model}, {name}") for name in dict.fromkeys(shared)]


def same_records(first: Result, second: Result) -> tuple[Result, Result, list[str]]:
    """Both results on the records that both have, in the same order, and a note on the others.

    Raises:
        ValueError: there is none, or they differ in what is true of a record.
    """
    if list(first.names) != list(second.names):
        raise ValueError(
            f"the results are about different things: {', '.join(first.names)}; {', '.join(second.names)}"
        )
    ids, *indices = np.intersect1d(first.record_ids, second.record_ids, return_indices=True)
    if not len(ids):
        raise ValueError("the results have no record in common: were they made with other --data or --folds?")
    counts = len(first.record_ids), len(second.record_ids)
    first, second = (result.take(which) for result, which in zip((first, second), indices, strict=True))
    different = first.patients != second.patients
    if first.targets is not None and second.targets is not None:
        different |= (first.targets != second.targets).any(1)
    if different.any():
        raise ValueError(f"record {ids[different][0]} has another patient or other labels in the second result")
    notes = [f"only the {len(ids)} records that both have, of {counts[0]} and {counts[1]}"]
    return first, second, notes if max(counts) > len(ids) else []


def compare(first: Result, second: Result, pair: tuple[str, str], options: CompareOptions) -> Iterator[dict[str, Any]]:
    """The differences first - second of every figure of two rows, as they stand in the JSON file."""
    values = first.rows[pair[0]], second.rows[pair[1]]
    if first.targets is None:
        both = ~np.isnan(values[0]).any(1) & ~np.isnan(values[1]).any(1)  # the other records take no part
        if not both.any():
            raise ValueError(f"{pair[0]!r} and {pair[1]!r} have no record in common")
        figures = [mean_figures(each[both], first.names) for each in values]
    else:
        both = np.ones(len(first.record_ids), dtype=bool)
        figures = [class_figures(first.targets, each, first.names) for each in values]
    patients = first.patients[both]
    for figure, (one, other) in {name: (figures[0][name], figures[1][name]) for name in figures[0]}.items():
        found = asdict(paired_bootstrap(one, other, patients, options.resamples, options.seed))
        everyone = np.ones(len(patients))
        numbers = {"first_value": float(one(everyone)), "second_value": float(other(everyone)), **found}
        yield {
            "first": pair[0],
            "second": pair[1],
            "figure": figure,
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
            "records": len(patients),
            "patients": len(np.unique(patients)),
        }


def class_figures(targets: np.ndarray, scores: np.ndarray, classes: list[str]) -> dict[str, Weighted]:
    """Figures of scores (n, classes), or means over runs (runs, n, classes), as functions of weights."""
    runs = scores if scores.ndim == 3 else scores[None]

    def over_classes(metric: Metric, weights: np.ndarray) -> np.ndarray:
        return macro(np.mean([metric(targets, run, weights) for run in runs], axis=0))

    def of_class(index: int, weights: np.ndarray) -> np.ndarray:
        column = slice(index, index + 1)
        return np.mean([auroc(targets[:, column], run[:, column], weights) for run in runs], axis=0)[..., 0]

    return {
        "macro AUROC": partial(over_classes, auroc),
        "macro AP": partial(over_classes, average_precision),
        **{f"AUROC of {name}": partial(of_class, index) for index, name in enumerate(classes)},
    }


def mean_figures(values: np.ndarray, names: list[str]) -> dict[str, Weighted]:
    """Means of values (n, figures) over records, as functions of weights."""

    def mean(index: int, weights: np.ndarray) -> np.ndarray:
        return (weights @ values[:, index]) / weights.sum(-1)

    return {name: partial(mean, index) for index, name in enumerate(names)}


def write(first: Result, second: Result, differences: list[dict[str, Any]], notes: list[str], options: CompareOptions):
    """Print the table, and write compare_MODEL_MODEL_RESULT.json and .md where there is a folder for them."""
    name = "_".join(["compare", first.model, second.model, *dict.fromkeys((first.name, second.name))])
    if len({(row["first"], row["second"]) for row in differences}) < len(differences):
        notes = [*notes, "p values are of one comparison each: among many, some are small by chance"]
    models = {"first": str(options.first), "second": str(options.second)}
    lines = [f"### {first.content['model']} compared with {second.content['model']}", ""]
    heading = ("first", "second", "figure", "value of first", "value of second", "difference", "p", "records")
    lines += [f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}"]
    lines += [markdown(row) for row in differences]
    lines += ["", f"In %; in brackets 95 % intervals by patient, of the difference. {RESEARCH_USE}"]
    text = "\n".join([*lines, *(f"- {note}" for note in notes), ""])
    print(text)
    if options.output is not None:
        result = {**models, "rows": differences, "notes": notes, **provenance(options)}
        write_json(options.output / f"{name}.json", result)
        (options.output / f"{name}.md").write_text(text, encoding="utf-8")


def markdown(row: Mapping[str, Any]) -> str:
    """A line of the table; "–" for a class that has no value on these records."""
    cells = [row["first"], row["second"], row["figure"]]
    if None in row.values():
        cells += ["–"] * 4
    else:
        cells += [f"{100 * row[name]:.1f}" for name in ("first_value", "second_value")]
        cells += [f"{100 * row['value']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"]
        cells += [f"{row['p_value']:.3f}"]
    return f"| {' | '.join([*cells, str(row['records'])])} |"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    return run(parse(CompareOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
