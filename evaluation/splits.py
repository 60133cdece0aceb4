"""Which split a row belongs to: by its fold, by published tables, or as its data set was built.

fold_rule("1-8/9/10")                       # {1: "train", ..., 9: "validation", 10: "test"}
splits(rows, TASKS["ptbxl_super"])          # (n,) "train", "validation", "test" or ""
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ecgformers.datasets_scripts.rows import SPLITS
from ecgformers.evaluation.tasks import Task

Row = Mapping[str, Any]


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


def splits(
    rows: Iterable[Row], task: Task, tables: Mapping[str, Row] | None = None, folds: str = "1-8/9/10"
) -> np.ndarray:
    """The split of every row under the task's rule, as (n,) strings; "" where the rule gives the row to none.

    Args:
        tables: split tables as `read_split_tables` gives them, for tasks with `split="tables"`.
        folds: the rule over PTB-XL's folds, see `fold_rule`.

    Raises:
        ValueError: the task needs tables and none are given, or a row says nothing about its fold or split.
    """
    if task.split == "tables":
        if tables is None:
            raise ValueError(
                f"{task.name} is split by tables, one a split: give tables=read_split_tables(train=..., ...), or "
                "--split-table train=CSV ... where that is an option"
            )
        return np.array([tables.get(row["record_id"], {}).get("split", "") for row in rows], dtype=str)
    key = "fold" if task.split == "folds" else "split"
    by_fold = fold_rule(folds)
    found = []
    for index, row in enumerate(rows):
        if row.get(key) in (None, ""):
            raise ValueError(f"record {row.get('record_id', index)}: it has no {key}, and {task.name} is split by it")
        found.append(by_fold.get(int(row[key]), "") if task.split == "folds" else row[key])
    return np.array(found, dtype=str)


def own_splits(rows: Sequence[Mapping[str, Any]], folds: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The split of every row by its fold, or else as its data set was built, and a note on that.

    Args:
        folds: see `fold_rule`; by default 1-8/9/10, or 1-7/8/9 where there is no fold 10.
    """
    present = {row["fold"] for row in rows} - {None}
    if not present and folds is None:
        return np.array([row["split"] for row in rows], dtype=object), ("splits as the data set was built",)
    rule = folds or ("1-8/9/10" if 10 in present else "1-7/8/9")
    by_fold = fold_rule(rule)
    split = np.array([by_fold.get(row["fold"], "") for row in rows], dtype=object)
    return split, (f"folds {rule} (train/validation/test)",)
