"""The records of a data set, or those of it that take part in a task, with their labels and splits.

data = load_task(folder, "ptbxl_super", folds="1-7/8/9")
train, test = data.part("train"), data.part("test")
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from ecgformers.datasets_scripts.rows import SPLITS, load_ecgs, patient_split
from ecgformers.datasets_scripts.tables import read_split_tables
from ecgformers.evaluation.splits import own_splits, splits
from ecgformers.evaluation.tasks import Task, find_task, labels

if TYPE_CHECKING:
    from typing_extensions import Self

HELD_OUT = 0.125  # of the training patients, where validation records are needed and there are none


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


def load_task(data: str, task_name: str, folds: str | None = None, split_tables: Sequence[str] = ()) -> TaskData:
    """The records of a data set that take part in a task, with labels and splits.

    Args:
        data: folder or Hub name of a data set built with `datasets_scripts`.
        task_name: of one of our tasks, or the path of a task's YAML file.
        folds: see `load_records`; it has no effect on tasks that are not split by folds.
        split_tables: "SPLIT=CSV" each, for tasks split by tables (see `read_split_tables`).

    Raises:
        ValueError: a task without classes, rows without what the task needs, a table of no split, or a patient in two
            splits.
    """
    task = find_task(task_name)
    if task.is_value:
        raise ValueError(f"{task.name} is a measurement; choose a task with classes")
    ecgs = load_ecgs(data)
    rows = ecgs.remove_columns("signal").to_list()
    targets, takes_part = labels(rows, task)
    if task.split == "folds":
        split, notes = own_splits(rows, folds)
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
    split, notes = own_splits(rows, folds)
    return _records(ecgs, rows, split, notes).take(split != "")


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
