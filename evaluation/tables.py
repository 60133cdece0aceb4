"""What every evaluation shares: the arguments, the records of a task with their labels and splits, and the results.

    options = argument_parser(__doc__).parse_args()
    data = load_task(options.data, options.task, options.folds, options.split_table)
    train, test = data.part("train"), data.part(options.split)
    table = ClassificationTable("linear_probe", options, test)
    table.add("model", scores, "100 % of labels")
    table.write()

For research use; not a medical device.
"""

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import datasets
import numpy as np
import yaml
from datasets import Dataset, concatenate_datasets, load_dataset
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ecgformers import __version__
from ecgformers.datasets_scripts.rows import SPLITS, patient_split
from ecgformers.evaluation.tasks import TASKS, Task, labels, read_split_tables, splits
from ecgformers.metrics.summary import classification_summary, format_figure
from ecgformers.training.settings import is_factory, is_missing_folder

if TYPE_CHECKING:
    from typing_extensions import Self

HELD_OUT = 0.125  # of the training patients, where validation records are needed and there are none
RESEARCH_USE = "For research use; not a medical device."


def percent(text: str) -> float:
    """A share in % for `argparse`: above 0, at most 100."""
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} % is not above 0 and at most 100")
    return value


def at_least_one(text: str) -> int:
    """A number of things for `argparse`: 1 at least."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def encoder_name(text: str) -> str:
    """A folder, a name on the Hub or MODULE:FACTORY for `argparse`; a folder that is not there is no wrong usage."""
    if is_missing_folder(text):
        raise FileNotFoundError(f"--model: there is no folder {text}")
    return text


def model_name(text: str) -> str:
    """As `encoder_name`, where an encoder's features alone do not do."""
    if is_factory(text):
        raise OSError(f"--model: {text} gives features alone; here a model's folder or its name on the Hub is needed")
    return encoder_name(text)


class ArgumentParser(argparse.ArgumentParser):
    """A parser that raises `ValueError`, so that one wrong command does not end those that come after it."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise ValueError(message)


def argument_parser(doc: str | None, task: bool = True, features: bool = False) -> ArgumentParser:
    """The options that all evaluations have.

    Args:
        doc: the module's docstring.
        task: whether the evaluation has one.
        features: whether it needs an encoder's features alone, so that `--model` may be MODULE:FACTORY.
    """
    parser = ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if features:
        name = "a folder, a name on the Hub, or MODULE:FACTORY (encoders.py)"
        parser.add_argument("--model", type=encoder_name, required=True, help=name)
        parser.add_argument(
            "--features",
            nargs="+",
            default=["pooler_output"],
            metavar="OUTPUT",
            help="outputs of the model that are read, side by side, e.g. pooler_output mean_state",
        )
    else:
        parser.add_argument("--model", type=model_name, required=True, help="a folder, or a name on the Hub")
    parser.add_argument("--data", required=True, help="built with datasets_scripts: a folder or a name on the Hub")
    if task:
        parser.add_argument("--task", required=True, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--output", type=Path, required=True, help="the folder of results")
    parser.add_argument("--cache", type=Path, help="the folder of computed features; by default OUTPUT/features")
    parser.add_argument("--split", default="test", choices=SPLITS, help="the part to evaluate on")
    parser.add_argument("--folds", help="TRAIN/VALIDATION/TEST, e.g. 1-8/9/10, 1-7/8/9 or 1-8//9; see fold_rule")
    parser.add_argument("--split-table", nargs="*", default=[], metavar="SPLIT=CSV", help="for tasks split by tables")
    parser.add_argument("--batch-size", type=at_least_one, default=64)
    parser.add_argument("--device", default=None, help="of torch; by default a GPU where there is one")
    parser.add_argument("--resamples", type=int, default=1000, help="of the patients, for 95 %% intervals; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset-id", help="name of the data on the Hub, for .eval_results, if --data is a folder")
    return parser


@dataclass(frozen=True)
class RecordData:
    """Records of a data set with their splits; the arrays are as long as there are records.

    Args:
        ecgs: the whole data set; `rows` (n,) says which of its rows these records are.
        splits, patients, record_ids: (n,) strings.
        notes: what a reader of the results must know.
    """

    ecgs: Dataset
    rows: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    record_ids: np.ndarray
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, split: str) -> "Self":
        """The records of one split.

        Raises:
            ValueError: there are none.
        """
        part = self.take(self.splits == split)
        if not len(part):
            there = ", ".join(f"{count} {name}" for name, count in Counter(self.splits.tolist()).items())
            raise ValueError(f"no record that takes part is in split {split}; there are: {there or 'none at all'}")
        return part

    def take(self, which: np.ndarray) -> "Self":
        """The records of a mask or of indices."""
        arrays = {name: value[which] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays)

    @property
    def training(self) -> np.ndarray:
        """(records for training,) indices."""
        return np.flatnonzero(self.splits == "train")

    def with_validation(self) -> "Self":
        """The same records; where none is for validation, those of a part of the training patients are."""
        if "validation" in self.splits:
            return self
        chosen = np.array([patient_split(patient, HELD_OUT) == "validation" for patient in self.patients], dtype=bool)
        splits = np.where((self.splits == "train") & chosen, "validation", self.splits)
        note = f"no validation split: {HELD_OUT:.1%} of the training patients were held out for validation"
        return replace(self, splits=splits, notes=(*self.notes, note))

    @property
    def reports(self) -> list[str]:
        """The report of every record, "" where there is none."""
        return [report or "" for report in self.ecgs.with_format(None).select(self.rows)["report"]]


@dataclass(frozen=True)
class TaskData(RecordData):
    """Records that take part in a task: `targets` (n, classes) of 0 and 1."""

    task: Task
    targets: np.ndarray


def load_ecgs(name: str) -> Dataset:
    """All splits of a data set built with `datasets_scripts`, one after the other."""
    parts = load_dataset(name)
    return concatenate_datasets([parts[split] for split in sorted(parts)])


def load_task(data: str, task_name: str, folds: str | None = None, split_tables: Sequence[str] = ()) -> TaskData:
    """The records of a data set that take part in a task, with labels and splits.

    Args:
        data: folder or Hub name of a data set built with `datasets_scripts`.
        folds: see `load_records`; it has no effect on tasks that are not split by folds.
        split_tables: "SPLIT=CSV" each, for tasks split by tables (see `read_split_tables`).

    Raises:
        ValueError: a task without classes, rows without what the task needs, a table of no split, or a patient in two
            splits.
    """
    task = TASKS[task_name]
    if task.kind == "value":
        raise ValueError(f"{task.name} is a measurement; choose a task with classes")
    ecgs = load_ecgs(data)
    rows = ecgs.remove_columns("signal").to_list()
    targets, takes_part = labels(rows, task)
    if task.split == "folds":
        split, notes = _own_splits(rows, folds)
    else:
        for table in split_tables:
            if not table.startswith(tuple(f"{name}=" for name in SPLITS)):
                raise ValueError(f"split table {table}: give SPLIT=CSV, SPLIT being one of {', '.join(SPLITS)}")
        tables = dict(table.split("=", 1) for table in split_tables)
        split, notes = splits(rows, task, read_split_tables(**tables) if tables else None).astype(object), ()
    records = _records(ecgs, rows, split, notes)
    return TaskData(**vars(records), task=task, targets=targets).take(takes_part & (split != ""))


def load_records(data: str, folds: str | None = None) -> RecordData:
    """The records of a data set with their splits, for evaluations without labels.

    Args:
        data: folder or Hub name of a data set built with `datasets_scripts`.
        folds: see `fold_rule`; by default 1-8/9/10, or 1-7/8/9 where there is no fold 10.  Where the rows have no
            fold, their own split counts.

    Raises:
        ValueError: a patient in two splits.
    """
    ecgs = load_ecgs(data)
    rows = ecgs.remove_columns("signal").to_list()
    split, notes = _own_splits(rows, folds)
    return _records(ecgs, rows, split, notes).take(split != "")


def _own_splits(rows: Sequence[Mapping[str, Any]], folds: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The split of every row by its fold, or else as its data set was built, and a note on that."""
    present = {row["fold"] for row in rows} - {None}
    if not present and folds is None:
        return np.array([row["split"] for row in rows], dtype=object), ("splits as the data set was built",)
    rule = folds or ("1-8/9/10" if 10 in present else "1-7/8/9")
    by_fold = fold_rule(rule)
    split = np.array([by_fold.get(row["fold"], "") for row in rows], dtype=object)
    return split, (f"folds {rule} (train/validation/test)",)


def _records(
    ecgs: Dataset, rows: Sequence[Mapping[str, Any]], split: np.ndarray, notes: tuple[str, ...]
) -> RecordData:
    patients = np.array([row["patient_id"] or f"record {row['record_id']}" for row in rows])
    seen: dict[str, str] = {}
    for patient, name in zip(patients, split, strict=True):
        if name and seen.setdefault(patient, name) != name:
            raise ValueError(f"patient {patient} is in the splits {seen[patient]} and {name}: results would flatter")
    return RecordData(
        ecgs=ecgs.with_format("numpy"),
        rows=np.arange(len(rows)),
        splits=split.astype(str),
        patients=patients,
        record_ids=np.array([row["record_id"] for row in rows]),
        notes=notes,
    )


def fold_rule(rule: str) -> dict[int, str]:
    """The split of every fold under a rule TRAIN/VALIDATION/TEST, such as "1-8/9/10" or "1,3-7/8/9".

    Any of the three may be empty: "1-8//9" has no validation folds.

    Raises:
        ValueError: another form, or a fold that stands in two places.
    """
    parts = rule.split("/")
    if len(parts) != 3 or not all(re.fullmatch(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?", part) for part in parts):
        raise ValueError(f"folds {rule!r} are not TRAIN/VALIDATION/TEST, such as 1-8/9/10 or 1-8//9")
    result: dict[int, str] = {}
    for split, part in zip(SPLITS, parts, strict=True):
        for piece in filter(None, part.split(",")):
            first, _, last = piece.partition("-")
            for fold in range(int(first), int(last or first) + 1):
                if fold in result:
                    raise ValueError(f"folds {rule!r}: fold {fold} is in {result[fold]} and in {split}")
                result[fold] = split
    return result


@dataclass
class Table:
    """The rows of one evaluation's table, one a method, and the files they go to.

    `write` makes `NAME.json` (everything), `NAME.md` (the table), `NAME.npz` (what `compare.py` takes: the values of
    every record) and, for the model's own rows, `.eval_results/NAME.yaml` (what a model card on the Hub shows), NAME
    being the recipe and its task.

    Args:
        recipe, task: what was done, and on which task ("" where there is none).
        data: the records that were evaluated.
        columns: heading and key of the figures shown.
        headline: the key of the figure that `.eval_results` get.
        notes: what a reader must know.
        values: "METHOD, PROTOCOL" -> values of every record, (n, names) or (runs, n, names); NaN where it takes no
            part.
        names: of these values: the classes that they are scores of, or the figures that are their means.
    """

    recipe: str
    options: argparse.Namespace
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

    @property
    def name(self) -> str:
        return "_".join(filter(None, (self.recipe, self.task)))

    @property
    def model(self) -> str:
        return Path(self.options.model).name

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
        title = ", ".join(filter(None, (self.task, self.recipe.replace("_", " "))))
        interval = "; in brackets 95 % intervals by patient" if options.resamples else ""
        lines = [f"### {title}: {self.model} on {options.split}", "", self.markdown(), ""]
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
                task_id="_".join([self.name, *re.findall(r"\w+", row["protocol"])]),
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

    def __init__(self, recipe: str, options: argparse.Namespace, data: TaskData):
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


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """How a result came about: the command, its options, versions and the time."""
    recipe = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"-m {recipe.name}" if recipe is not None else sys.argv[0]
    packages = ("torch", "transformers", "datasets", "numpy")
    return {
        "command": f"python {program} {shlex.join(sys.argv[1:])}".strip(),
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "versions": {"ecgformers": __version__, **{package: version(package) for package in packages}},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(path: Path, result: dict[str, Any]):
    """Write beside, then rename, so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def run(main: Callable[[], Any]):
    """Run a recipe's `main`; what a user can mend ends it with a message alone."""
    datasets.disable_progress_bars()
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
