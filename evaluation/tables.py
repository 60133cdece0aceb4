"""The table of an evaluation and the files of results.

table = ClassificationTable("linear_probe", options, test)
table.add("model", scores, "100 % of labels")
table.write()
"""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ecgformers import __version__
from ecgformers.evaluation.options import EvaluationOptions
from ecgformers.evaluation.records import RecordData, TaskData
from ecgformers.metrics.summary import classification_summary, format_figure
from ecgformers.options import Options

RESEARCH_USE = "For research use; not a medical device."


@dataclass
class Table:
    """The rows of one evaluation's table, one a method, and the files they go to.

    `write` makes `NAME.json` (everything), `NAME.md` (the table), `NAME.npz` (what `compare.py` takes: the values of
    every record) and, for the model's own rows, `.eval_results/NAME.yaml` (what a model card on the Hub shows), NAME
    being the recipe, its task and the model.

    Args:
        recipe, task: what was done, and on which task ("" where there is none).
        data: the records that were evaluated.
        columns: heading and key of the figures shown.
        headline: the key of the figure that `.eval_results` get.
        notes: what a reader must know.
        values: "METHOD, PROTOCOL" -> values of every record, (n, names) or (runs, n, names); NaN where it takes no
            part.
        names: of these values: the classes that they are scores of, or the figures that are their means.

    Raises:
        FileExistsError: the folder of results holds one of this name, of another model.
    """

    recipe: str
    options: EvaluationOptions
    data: RecordData
    columns: Mapping[str, str]
    headline: str
    names: Sequence[str]
    task: str = ""
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        self.notes = [*self.data.notes, *self.notes]
        path = self.options.output / f"{self.name}.json"
        if path.exists() and not _is_same_model(other := read_json(path).get("model", ""), self.options.model):
            raise FileExistsError(f"{path} is of {other}, not of {self.options.model}: choose another --output")

    @property
    def title(self) -> str:
        return "_".join(filter(None, (self.recipe, self.task)))

    @property
    def name(self) -> str:
        return f"{self.title}_{re.sub(r'[^a-zA-Z0-9_.-]+', '-', self.model)}"

    @property
    def model(self) -> str:
        return self.options.model_name

    def add_row(self, method: str, protocol: str, figures: Mapping[str, Any], values: np.ndarray):
        """Add the row of a method: the model, or what it is compared with."""
        self.rows.append({"method": method, "protocol": protocol, **figures})
        self.values[f"{method}, {protocol}"] = np.asarray(values, np.float32)

    def markdown(self) -> str:
        header = ("method", "protocol", *self.columns, "records")
        lines = [header, ["---"] * len(header)]
        for row in self.rows:
            cells = [format_figure(row[key]) for key in self.columns.values()]
            lines.append([row["method"], row["protocol"], *cells, str(row["records"])])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def write(self):
        """Write the files, and print the table."""
        notes = list(dict.fromkeys([*self.notes, *(note for row in self.rows for note in row.get("notes", ()))]))
        options = self.options
        result = {
            "recipe": self.recipe,
            "task": self.task,
            "model": options.model,
            "data": options.data,
            "split": options.split,
            "headline": self.headline,
            "columns": self.columns,
            "rows": self.rows,
            "notes": notes,
            **provenance(options),
        }
        write_json(options.output / f"{self.name}.json", result)
        heading = ", ".join(filter(None, (self.task, self.recipe.replace("_", " "))))
        interval = "; in brackets 95 % intervals by patient" if options.resamples else ""
        lines = [f"### {heading}: {self.model} on {options.split}", "", self.markdown(), ""]
        lines += [f"In %{interval}. {RESEARCH_USE}", *(f"- {note}" for note in notes), ""]
        (options.output / f"{self.name}.md").write_text("\n".join(lines), encoding="utf-8")
        np.savez_compressed(options.output / f"{self.name}.npz", **self.arrays())
        print("\n".join(lines))
        self._write_eval_results()

    def arrays(self) -> dict[str, np.ndarray]:
        """What `NAME.npz` holds."""
        data = self.data
        return {
            "record_ids": data.record_ids,
            "patients": data.patients,
            "names": np.array(self.names, dtype=str),
            **self.values,
        }

    def _write_eval_results(self):
        options = self.options
        dataset_id = options.dataset_id or (None if Path(options.data).exists() else options.data)
        if dataset_id is None:
            print("No .eval_results were written: --data is a folder; give --dataset-id, its name on the Hub.")
            return
        heading = next(heading for heading, key in self.columns.items() if key == self.headline)
        entries = [
            EvalResultEntry(
                dataset_id=dataset_id,
                task_id="_".join([self.title, *re.findall(r"\w+", row["protocol"])]),
                value=round(100 * row[self.headline]["value"], 2),
                date=datetime.now(timezone.utc).date().isoformat(),
                notes=f"{heading} in %, {row['protocol']}, on {options.split}. {RESEARCH_USE}",
            )
            for row in self.rows
            if row["method"] == self.model and row[self.headline]["value"] is not None
        ]
        path = options.output / ".eval_results" / f"{self.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")


class ClassificationTable(Table):
    """The table of a task with classes, made from scores of the same records."""

    data: TaskData

    def __init__(self, recipe: str, options: EvaluationOptions, data: TaskData):
        columns = {
            "macro AUROC": "auroc_macro",
            "micro AUROC": "auroc_micro",
            "macro AP": "average_precision_macro",
            "macro best F1": "best_f1_macro",
        }
        super().__init__(recipe, options, data, columns, "auroc_macro", data.task.classes, data.task.name)

    def add(self, method: str, scores: np.ndarray, protocol: str, **summary_options: Any):
        """Add a row from scores (n, classes) or (runs, n, classes); see `classification_summary`."""
        summary = classification_summary(
            self.data.targets,
            scores,
            self.data.task.classes,
            self.data.patients,
            resamples=self.options.resamples,
            seed=self.options.seed,
            **summary_options,
        )
        self.add_row(method, protocol, summary, scores)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"targets": self.data.targets, **super().arrays()}


def _is_same_model(one: str, other: str) -> bool:
    """Whether two names are equal, or of the same folder."""
    return one == other or (Path(one).is_dir() and Path(one).resolve() == Path(other).resolve())


def provenance(options: Options) -> dict[str, Any]:
    """How a result came about: the command, its options, versions and the time."""
    recipe = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {recipe.name}" if recipe is not None else f"python {sys.argv[0]}"
    if sys.argv[0].startswith("ecgformers "):  # as the command line has it
        program = sys.argv[0]
    packages = ("torch", "transformers", "datasets", "numpy")
    return {
        "command": f"{program} {shlex.join(sys.argv[1:])}".strip(),
        "options": options.as_json(),
        "versions": {"ecgformers": __version__, **{package: version(package) for package in packages}},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file that `write_json` wrote.

    Raises:
        ValueError: it was cut or changed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}): remove it and make its results anew") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no results: remove it and make them anew")
    return content


def write_json(path: Path, result: dict[str, Any]):
    """Write beside, then rename, so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
