"""What every evaluation shares: the arguments, the records of a task with their labels and splits, and the results.

    options = argument_parser(__doc__).parse_args()
    data = load_task(options.data, options.task, options.folds, options.split_table)
    train, test = data.part("train"), data.part(options.split)
    results = Results("linear_probe", options, test)
    results.add("model", classification_summary(test.targets, scores, test.task.classes, test.patients))
    results.write()

For research use; not a medical device.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from datasets import Dataset, concatenate_datasets, load_dataset
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ecgformers import __version__
from ecgformers.datasets_scripts.rows import SPLITS, patient_split
from ecgformers.datasets_scripts.tasks import TASKS, Task, labels, read_split_tables, splits
from ecgformers.metrics.summary import classification_summary, format_figure

HELD_OUT = 0.125  # of the training patients, where a rule has no validation folds
RESEARCH_USE = "For research use; not a medical device."


def argument_parser(doc: str | None, task: bool = True) -> argparse.ArgumentParser:
    """The options that all evaluations have; `doc` is the module's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a name on the Hub, or MODULE:FACTORY (encoders.py)")
    parser.add_argument("--data", required=True, help="built with datasets_scripts: a folder or a name on the Hub")
    if task:
        parser.add_argument("--task", required=True, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--output", type=Path, required=True, help="the folder of results, and of cached features")
    parser.add_argument("--split", default="test", choices=SPLITS, help="the part to evaluate on")
    parser.add_argument("--folds", help="TRAIN/VALIDATION/TEST, e.g. 1-8/9/10, 1-7/8/9 or 1-8//9; see fold_rule")
    parser.add_argument("--split-table", nargs="*", default=[], metavar="SPLIT=CSV", help="for tasks split by tables")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default=None, help="of torch; by default a GPU where there is one")
    parser.add_argument("--resamples", type=int, default=1000, help="of the patients, for 95 %% intervals; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset-id", help="name of the data on the Hub, for .eval_results, if --data is a folder")
    return parser


@dataclass(frozen=True)
class TaskData:
    """Records of a data set that take part in a task; all but `ecgs` are as long as there are records.

    Args:
        ecgs: the whole data set; `rows` (n,) says which of its rows these records are.
        targets: (n, classes) of 0 and 1.
        splits, patients, record_ids: (n,) strings.
        held_out: validation is a part of the training patients, because the rule has no validation records.
        notes: what a reader of the results must know.
    """

    task: Task
    ecgs: Dataset
    rows: np.ndarray
    targets: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    record_ids: np.ndarray
    held_out: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, split: str) -> "TaskData":
        """The records of one split.

        Raises:
            ValueError: there are none.
        """
        part = self.take(self.splits == split)
        if not len(part):
            there = ", ".join(f"{name or 'none'} {count}" for name, count in zip(*_counts(self.splits), strict=True))
            raise ValueError(f"no record of {self.task.name} is in split {split}; there are: {there}")
        return part

    @property
    def training(self) -> np.ndarray:
        """(records for training,) indices: the training split, and what was held out of it."""
        return np.flatnonzero((self.splits == "train") | (self.held_out & (self.splits == "validation")))

    def take(self, which: np.ndarray) -> "TaskData":
        """The records of a mask or of indices."""
        names = ("rows", "targets", "splits", "patients", "record_ids")
        return replace(self, **{name: getattr(self, name)[which] for name in names})


def _counts(values: np.ndarray) -> tuple[list[str], list[int]]:
    names, counts = np.unique(values, return_counts=True)
    return names.tolist(), counts.tolist()


def load_ecgs(name: str) -> Dataset:
    """All splits of a data set built with `datasets_scripts`, one after the other."""
    parts = load_dataset(name)
    return concatenate_datasets([parts[split] for split in sorted(parts)])


def load_task(data: str, task_name: str, folds: str | None = None, split_tables: Sequence[str] = ()) -> TaskData:
    """The records of a data set that take part in a task, with labels and splits.

    Args:
        data: folder or Hub name of a data set built with `datasets_scripts`.
        folds: for tasks split by folds, see `fold_rule`; by default 1-8/9/10, or 1-7/8/9 where there is no fold 10.
        split_tables: "SPLIT=CSV" each, for tasks split by tables (see `read_split_tables`).

    Raises:
        ValueError: a task without classes, rows without what the task needs, or a patient in two splits.
    """
    task = TASKS[task_name]
    if task.kind == "value":
        raise ValueError(f"{task.name} is a measurement; choose a task with classes")
    ecgs = load_ecgs(data)
    rows = ecgs.remove_columns("signal").to_list()
    targets, takes_part = labels(rows, task)
    notes = []
    if task.split == "folds":
        present = {row["fold"] for row in rows}
        if folds is None:
            folds = "1-8/9/10" if 10 in present else "1-7/8/9"
        by_fold = fold_rule(folds)
        split = np.array([by_fold.get(row["fold"], "") for row in rows], dtype=object)
        notes.append(f"folds {folds} (train/validation/test)")
    else:
        tables = read_split_tables(**dict(table.split("=", 1) for table in split_tables)) if split_tables else None
        split = splits(rows, task, tables).astype(object)
    patients = np.array([row["patient_id"] or f"record {row['record_id']}" for row in rows], dtype=object)
    takes_part &= split != ""
    held_out = "train" in split and "validation" not in split
    if held_out:
        chosen = np.array([patient_split(patient, HELD_OUT) == "validation" for patient in patients])
        split[(split == "train") & chosen] = "validation"
        notes.append(f"no validation split: {HELD_OUT:.1%} of the training patients were held out for validation")
    index = np.flatnonzero(takes_part)
    data_of_task = TaskData(
        task=task,
        ecgs=ecgs.with_format("numpy"),
        rows=index,
        targets=targets[index],
        splits=split[index].astype(str),
        patients=patients[index].astype(str),
        record_ids=np.array([rows[i]["record_id"] for i in index], dtype=str),
        held_out=held_out,
        notes=tuple(notes),
    )
    _check_patients(data_of_task)
    return data_of_task


def _check_patients(data: TaskData):
    seen: dict[str, str] = {}
    for patient, split in zip(data.patients, data.splits, strict=True):
        if seen.setdefault(patient, split) != split:
            raise ValueError(f"patient {patient} is in the splits {seen[patient]} and {split}: results would flatter")


def fold_rule(rule: str) -> dict[int, str]:
    """The split of every fold under a rule TRAIN/VALIDATION/TEST, such as "1-8/9/10" or "1,3-7/8/9".

    Where validation is empty ("1-8//9"), part of the training patients is held out for it.

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
class Results:
    """The rows of one evaluation's table, one a method, and the files they go to.

    `write` makes `NAME.json` (everything), `NAME.md` (the table) and, for the model's own rows,
    `.eval_results/NAME.yaml` (what a model card on the Hub shows), NAME being the recipe and its task.
    """

    recipe: str
    options: argparse.Namespace
    data: TaskData
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.recipe}_{self.data.task.name}"

    @property
    def model(self) -> str:
        return Path(self.options.model).name

    def add(self, method: str, scores: np.ndarray, protocol: str = "", **summary_options: Any) -> dict[str, Any]:
        """Add the row of a method (the model, or what it is compared with) from its scores of the records."""
        summary = classification_summary(
            self.data.targets,
            scores,
            self.data.task.classes,
            self.data.patients,
            resamples=self.options.resamples,
            seed=self.options.seed,
            **summary_options,
        )
        self.rows.append({"method": method, "protocol": protocol, **summary})
        return summary

    def table(self) -> str:
        """Markdown."""
        header = ("method", "protocol", "macro AUROC", "micro AUROC", "macro AP", "macro best F1", "records")
        figures = ("auroc_macro", "auroc_micro", "average_precision_macro", "best_f1_macro")
        lines = [header, ["---"] * len(header)]
        for row in self.rows:
            cells = [format_figure(row[figure]) for figure in figures]
            lines.append([row["method"], row["protocol"], *cells, str(row["records"])])
        return markdown(lines)

    def write(self):
        """Write the files, and print the table."""
        notes = list(dict.fromkeys([*self.data.notes, *self.notes, *(n for row in self.rows for n in row["notes"])]))
        result = {
            "recipe": self.recipe,
            "model": str(self.options.model),
            "data": str(self.options.data),
            "task": self.data.task.name,
            "split": self.options.split,
            "rows": self.rows,
            "notes": notes,
            **provenance(self.options),
        }
        write_json(self.options.output / f"{self.name}.json", result)
        interval = "; in brackets 95 % intervals by patient" if self.options.resamples else ""
        text = "\n".join(
            [
                f"### {self.data.task.name}, {self.recipe.replace('_', ' ')}: {self.model} on {self.options.split}",
                "",
                self.table(),
                "",
                f"In %{interval}. {RESEARCH_USE}",
                *(f"- {note}" for note in notes),
                "",
            ]
        )
        (self.options.output / f"{self.name}.md").write_text(text, encoding="utf-8")
        print(text)
        entries = [
            (f"{self.data.task.name}_{self.recipe}", row["auroc_macro"]["value"], row["protocol"])
            for row in self.rows
            if row["method"] == self.model and row["auroc_macro"]["value"] is not None
        ]
        write_eval_results(self.options, self.name, entries, "macro AUROC in %")


def write_eval_results(options: argparse.Namespace, name: str, entries: Sequence[tuple[str, float, str]], metric: str):
    """Write `.eval_results/NAME.yaml` from (task id, value in [0, 1], protocol), if the data has a name on the Hub."""
    dataset_id = options.dataset_id or (None if Path(options.data).exists() else options.data)
    if dataset_id is None:
        print("No .eval_results were written: --data is a folder; give --dataset-id, its name on the Hub.")
        return
    results = [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id=task_id,
            value=round(100 * value, 2),
            date=datetime.now(timezone.utc).date().isoformat(),
            notes=", ".join(filter(None, (metric, protocol, options.split, RESEARCH_USE))),
        )
        for task_id, value, protocol in entries
    ]
    path = options.output / ".eval_results" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(results), sort_keys=False), encoding="utf-8")


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


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(main: Any):
    """Run a recipe's `main`; what a user can mend ends it with a message alone."""
    datasets.disable_progress_bars()
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
