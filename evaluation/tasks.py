"""The evaluation tasks: which classes, which labels a row carries, which split it belongs to, which texts describe it.

    from ecgformers.evaluation.tasks import TASKS, labels, prompts

    task = TASKS["ptbxl_super"]
    rows = dataset.remove_columns("signal")     # any iterable of mappings
    targets, takes_part = labels(rows, task)    # (n, classes) float32, (n,) bool
    texts = prompts(task, language=("en", "de"))

A task is a YAML file (see `read_task`): those in `tasks/` have names, any other is known by its path (`find_task`).
Tasks over ECG statements read a row's `statements` or `scp_codes`, or 0/1 columns named after classes or statements
(its own or in its `labels`); tasks over echo measurements read the columns of `MEASUREMENTS` (its own or in its
`measurements`).  Research use, not a medical device.
"""

from __future__ import annotations

import math
import operator
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Row = Mapping[str, Any]

FOLDER = Path(__file__).with_name("tasks")
WORDS_FILE = Path(__file__).with_name("words.yaml")
LANGUAGES = ("en", "de")


@dataclass(frozen=True)
class Measurement:
    """One echo measurement: its unit here, the range outside which a value is taken for a slip, and the columns in
    which the echo sets hold it, each with its unit there."""

    unit: str
    plausible: tuple[float, float]
    columns: Mapping[str, str]


# Columns of MUSIC's subject-info.csv and of MIMIC-IV-ECHO 1.0's structured measurements.  Where a row holds several of
# one measurement (septum and posterior wall), the largest counts.
MEASUREMENTS = {
    "lvef": Measurement("%", (5, 95), {"lvef": "%", "LVEF (%)": "%"}),
    "lv_diameter": Measurement("mm", (20, 110), {"lvedd": "cm", "Left ventricle end-diastolic diameter (mm)": "mm"}),
    "lv_wall": Measurement(
        "mm",
        (3, 40),
        {
            "septal_thickness": "cm",
            "inf_lat_thickness": "cm",
            "Septal thickness (mm)": "mm",
            "Left ventricular posterior wall thickness (mm)": "mm",
        },
    ),
    "la_diameter": Measurement("mm", (15, 100), {"la_dimen": "cm", "Left atrial size (mm)": "mm"}),
    "tapse": Measurement("mm", (2, 45), {"tapse": "cm"}),
    "tr_velocity": Measurement("m/s", (0.5, 7), {"tr_velocity": "m/s"}),
    "av_velocity": Measurement("m/s", (0.3, 8), {"av_pk_vel": "m/s"}),
}
_SCALES = {"%": 1.0, "mm": 1.0, "cm": 10.0, "m/s": 1.0}


@dataclass(frozen=True, eq=False)
class Task:
    """One evaluation task, as its file says (see `read_task`).

    - `file`: the YAML file; `name` is its stem.
    - `statements`: for every class the statements that stand for it, besides the class's own name; empty where 0/1
      columns alone count.
    - `column_prefix`: a class's own 0/1 column is this prefix + the class.
    - `labelled_only`: records without any of the classes take no part.
    - `measurement`: what is measured, a key of `MEASUREMENTS`; the label is the value itself, or 1 where it fulfils
      `relation` ("<", ">" or ">=") to the limit for male and female patients, in the measurement's unit.
    - `contrast`: the complementary class of a binary task: it has prompts, but no column among the labels.
    - `split`: "folds" (PTB-XL's `fold`), "tables" (those published with MERL and MELP) or "row" (the row's `split`).
    - `texts`: prompt class -> language -> texts.
    """

    file: Path
    classes: tuple[str, ...]
    split: str
    source: str
    statements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    column_prefix: str = ""
    labelled_only: bool = False
    measurement: str = ""
    relation: str = ""
    limits: tuple[float, float] = (math.nan, math.nan)
    contrast: str = ""
    texts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def is_value(self) -> bool:
        """Whether a label is a measured value, not a class."""
        return bool(self.measurement) and not self.relation

    @property
    def prompt_classes(self) -> tuple[str, ...]:
        """The classes that have prompts: `classes`, and `contrast` where there is one."""
        return (*self.classes, self.contrast) if self.contrast else self.classes


_RELATIONS = {"<": operator.lt, ">": operator.gt, ">=": operator.ge}
_BINARY = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "0.0": 0.0, "1.0": 1.0}

_LIMITS = {"below": "<", "above": ">", "at_least": ">="}
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "source": str,
    "split": str,
    "labels": str,
    "labelled_only": bool,
    "column_prefix": str,
    "measurement": str,
    **dict.fromkeys(_LIMITS, (int, float, dict)),
    "classes": dict,
    "contrast": dict,
}
_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}
_CHOICES = {
    "split": ("folds", "tables", "row"),
    "labels": ("statements", "columns"),
    "measurement": tuple(MEASUREMENTS),
}


def find_task(name: str) -> Task:
    """One of our tasks by its name, or any by the path of its YAML file.

    Raises:
        ValueError: there is none.
    """
    if name in TASKS:
        return TASKS[name]
    if not name.endswith((".yaml", ".yml")):
        raise ValueError(f"there is no task {name}; give a YAML file, or one of {', '.join(TASKS)}")
    return read_task(Path(name))


def read_task(path: Path) -> Task:
    """The task in a YAML file.

        source: who defined it, and where
        split: folds                    # or tables, or row: see `Task`
        labels: statements              # (the default) or columns: 0/1 columns named after the classes
        labelled_only: true             # optional, as is column_prefix
        classes:
          AFIB:
            statements: ['164889003']   # besides the class's own name, which is the default
            prompts:                    # for what reads texts; or where they stand: TASK, TASK/CLASS
              en: [atrial fibrillation]
              de: [vorhofflimmern]

    A task over a measurement has `measurement`, and for a class `below`, `above` or `at_least` with one number or
    {male: number, female: number}, and `contrast`, the complementary class and its prompts.

    Raises:
        ValueError: it names the file, the field, and what to write.
    """
    if not re.fullmatch(r"\w[\w.+-]*", path.stem):
        raise ValueError(f"{path}: the file's name is the task's: rename it to letters, digits, . _ + or - alone")
    content = _read_yaml(path)
    _check_fields(path, "", content, _FIELDS, ("source", "split", "classes"))
    for name, known in _CHOICES.items():
        if name in content and content[name] not in known:
            raise ValueError(f"{path}: {name}: {content[name]!r} is none of {', '.join(known)}")
    classes, contrast = content["classes"], content.get("contrast") or {}
    for section, names in (("classes", classes), ("contrast", contrast)):
        for name, about in names.items():
            if not isinstance(name, str):
                raise ValueError(f"{path}: {section}: {name!r} is no text: write it in quotes")
            _check_fields(path, f"{section}.{name}: ", about or {}, {"statements": list, "prompts": (dict, str)})
    limits = [name for name in _LIMITS if name in content]
    is_measured = "measurement" in content
    faults = {
        "classes: there are none": not classes,
        "classes: a measurement has one": is_measured and len(classes) > 1,
        f"{', '.join(limits)}: a measurement has one limit": len(limits) > is_measured,
        "contrast: a class with a limit has one, nothing else does": len(contrast) != len(limits),
    }
    for fault in (fault for fault, is_there in faults.items() if is_there):
        raise ValueError(f"{path}: {fault}")
    by_columns = is_measured or content.get("labels") == "columns"
    return Task(
        file=path,
        classes=tuple(classes),
        split=content["split"],
        source=content["source"],
        statements={} if by_columns else {name: _statement_names(path, name, classes[name]) for name in classes},
        column_prefix=content.get("column_prefix", ""),
        labelled_only=content.get("labelled_only", False),
        measurement=content.get("measurement", ""),
        relation=_LIMITS[limits[0]] if limits else "",
        limits=_limits(path, limits[0], content[limits[0]]) if limits else (math.nan, math.nan),
        contrast=next(iter(contrast), ""),
        texts={name: _texts(path, name) for name in (*classes, *contrast)},
    )


def _check_fields(
    path: Path, where: str, content: Any, known: Mapping[str, Any], required: tuple[str, ...] = ()
) -> None:
    """Raise `ValueError` unless `content` is a mapping with `required` fields and none but `known` ones, of their
    types."""
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {where}{content!r} is no mapping with {', '.join(known)}")
    for name in required:
        if name not in content:
            raise ValueError(f"{path}: {where}{name} is missing")
    for name, value in content.items():
        if name not in known:
            raise ValueError(f"{path}: {where}{name} is unknown; known are {', '.join(known)}")
        kinds = known[name] if isinstance(known[name], tuple) else (known[name],)
        if not isinstance(value, kinds):
            wanted = " or ".join(_KINDS[each] for each in kinds)
            raise ValueError(f"{path}: {where}{name}: {value!r} is not {wanted}")


def _statement_names(path: Path, name: str, about: Mapping[str, Any] | None) -> tuple[str, ...]:
    names = (about or {}).get("statements", [name])
    for each in names:
        if not isinstance(each, str):
            raise ValueError(f"{path}: classes.{name}: statements: {each!r} is no text: write it in quotes")
    return tuple(names)


def _limits(path: Path, name: str, value: Any) -> tuple[float, float]:
    limits: list[Any] = [value.get("male"), value.get("female")] if isinstance(value, dict) else [value, value]
    if not all(type(limit) in (int, float) for limit in limits):
        raise ValueError(f"{path}: {name}: {value!r} is neither a number nor {{male: number, female: number}}")
    return float(limits[0]), float(limits[1])


def _texts(path: Path, name: str, seen: tuple[tuple[Path, str], ...] = ()) -> Mapping[str, Any]:
    """The prompts of a class, where they stand in another task's file those there; {} where it has none."""
    content = _read_yaml(path)
    about = ({**content["classes"], **(content.get("contrast") or {})}.get(name)) or {}
    prompts = about.get("prompts", {})
    if isinstance(prompts, dict):
        return prompts
    task, _, other = prompts.partition("/")
    place = next((each for each in (path.with_name(f"{task}.yaml"), FOLDER / f"{task}.yaml") if each.exists()), None)
    known = {} if place is None else {**_read_yaml(place)["classes"], **(_read_yaml(place).get("contrast") or {})}
    if place is None or (other or name) not in known or (place, other or name) in seen:
        raise ValueError(f"{path}: classes.{name}: prompts: {prompts!r} is no TASK or TASK/CLASS that has prompts")
    return _texts(place, other or name, (*seen, (place, other or name)))


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """A YAML file that is a mapping."""
    return _parse_yaml(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _parse_yaml(path: Path, changed: int) -> Mapping[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from None
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path}: not a mapping of names to contents")
    return tree


TASKS: dict[str, Task] = {path.stem: read_task(path) for path in sorted(FOLDER.glob("*.yaml"))}


def labels(rows: Iterable[Row], task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The labels of `rows` in `task`, and which rows take part.

    A PTB-XL statement counts whatever its likelihood, 0 included (0 means "not stated" there), as in the benchmark.
    A row takes no part where a label is unknown (a missing or implausible measurement, an empty column, no sex where
    the limit depends on it), and in tasks with `labelled_only` where it has none of the classes.

    Returns:
        (n, classes) float32: 0/1, or the measurement itself; 0 in rows that take no part.
        (n,) bool: True where the row takes part.

    Raises:
        ValueError: a row holds none of the columns the task reads, or a value that is not a label; names the record.
    """
    known: list[list[float]] = []
    slips: list[str] = []
    for index, row in enumerate(rows):
        record = f"record {row.get('record_id', index)}"
        if task.measurement:
            known.append([_measured_label(row, task, record, slips)])
        else:
            known.append(_stated_labels(row, task, record))
    if slips:
        warnings.warn(f"{len(slips)} rows take no part in {task.name}, the first: {slips[0]}", stacklevel=2)
    targets = np.array(known, dtype=np.float32).reshape(-1, len(task.classes))  # (n, classes)
    takes_part = np.asarray(np.isfinite(targets).all(axis=1))  # (n,)
    targets[~takes_part] = 0
    if task.labelled_only:
        takes_part = takes_part & targets.any(axis=1)
    return targets, takes_part


def _stated_labels(row: Row, task: Task, record: str) -> list[float]:
    stated = _statements(row, record) if task.statements else set()
    if stated:
        return [float(not stated.isdisjoint((*task.statements[name], name))) for name in task.classes]
    columns = {**row, **(row.get("labels") or {})}
    found = [_column_label(columns, task, name, record) for name in task.classes]
    missing = [name for name, label in zip(task.classes, found, strict=True) if label is None]
    if missing:
        if task.statements and {"scp_codes", "statements"} & row.keys():
            return [math.nan] * len(found)  # the row could state something, and states nothing
        raise ValueError(f"{record}: nothing in it tells the classes {', '.join(missing)} of {task.name}")
    return [label for label in found if label is not None]


def _statements(row: Row, record: str) -> set[str]:
    """What a row states: its `statements` (strings or {"code", "likelihood"}) or `scp_codes` (those, or a mapping)."""
    stated: set[str] = set()
    for key in ("statements", "scp_codes"):
        entries = row.get(key) or ()
        if isinstance(entries, str):
            raise ValueError(f"{record}: {key} is the text {entries[:50]!r}, not a list or mapping: parse it first")
        if isinstance(entries, Mapping):  # Arrow fills the codes a record does not carry with None
            stated.update(code for code, likelihood in entries.items() if likelihood is not None)
        else:
            stated.update(entry if isinstance(entry, str) else entry["code"] for entry in entries)
    return stated


def _column_label(columns: Row, task: Task, name: str, record: str) -> float | None:
    """A class's label from its own 0/1 column, or else from those of all its statements; None where there are none."""
    own = task.column_prefix + name
    codes = (own,) if own in columns else task.statements.get(name, ())
    if not codes or any(code not in columns for code in codes):
        return None
    found = [_binary(columns[code], f"{record}, column {code}") for code in codes]
    return 1.0 if 1.0 in found else sum(found)  # 0, or NaN where one is unknown


def _binary(value: Any, where: str) -> float:
    if value is None or value == "" or value != value:
        return math.nan
    try:
        return _BINARY[str(value).lower()]
    except KeyError:
        raise ValueError(f"{where}: {value!r} is not 0 or 1") from None


def _measured_label(row: Row, task: Task, record: str, slips: list[str]) -> float:
    """The label of a measurement task, NaN where it is unknown; values taken for slips are noted in `slips`."""
    measurement = MEASUREMENTS[task.measurement]
    if "measurements" not in row and not measurement.columns.keys() & row.keys():
        raise ValueError(f"{record}: {task.name} needs one of the columns {', '.join(measurement.columns)}")
    low, high = measurement.plausible
    values = []
    columns = {**row, **(row.get("measurements") or {})}
    for column, unit in measurement.columns.items():
        value = columns.get(column)
        if value is None or value == "" or value != value:
            continue
        try:
            values.append(float(value) * _SCALES[unit])
        except ValueError:
            values.append(math.inf)
        if not low <= values[-1] <= high:
            slips.append(f"{record}: {column} = {value} {unit} is not within {low:g} to {high:g} {measurement.unit}")
            return math.nan
    if task.is_value or not values:
        return max(values, default=math.nan)
    male, female = task.limits
    limit = male if male == female else {"male": male, "female": female}.get(row.get("sex") or "", math.nan)
    return math.nan if math.isnan(limit) else float(_RELATIONS[task.relation](max(values), limit))


def prompts(
    task: Task, language: str | tuple[str, ...] = LANGUAGES, file: str | PathLike[str] | None = None
) -> dict[str, list[str]]:
    """Texts for every class of `task` (and its `contrast`), as reports write them, in the order of `language`.

    Args:
        language: one or several of the languages of the texts; our tasks have "en" and "de".
        file: a YAML file with other texts, task -> class -> language -> list of texts.

    Raises:
        ValueError: the file lacks the task, a class or a language, has a class the task doesn't, an empty text, or a
            text that stands in two places.
    """
    path = Path(file) if file else task.file
    by_class = _read_yaml(path).get(task.name) if file else task.texts
    if not isinstance(by_class, Mapping):
        raise ValueError(f"{path}: no classes for task {task.name}")
    unknown, missing = set(by_class) - set(task.prompt_classes), set(task.prompt_classes) - set(by_class)
    if unknown or missing:
        faults = [f"{what} {sorted(map(str, names))}" for what, names in (("unknown", unknown), ("missing", missing))]
        raise ValueError(f"{path}: classes of {task.name}: {'; '.join(faults)}")
    languages = (language,) if isinstance(language, str) else language
    result: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for name in task.prompt_classes:
        result[name] = []
        for code in languages:
            texts = by_class[name].get(code) if isinstance(by_class[name], Mapping) else None
            if not isinstance(texts, list) or not texts:
                raise ValueError(f"{path}: {task.name}, class {name}: no list of texts in language {code!r}")
            for text in texts:
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"{path}: {task.name}, class {name}, language {code!r}: {text!r} is no text")
                if text.lower() in owner:
                    raise ValueError(f"{path}: {task.name}: {text!r} stands for {owner[text.lower()]} and for {name}")
                owner[text.lower()] = name
                result[name].append(text)
    return result


def words(task: Task) -> dict[str, str]:
    """Class -> what it is called, for the classes of PTB-XL's statements; a group of one statement is called like it.

    Raises:
        ValueError: a class without a name.
    """
    tree = _read_yaml(WORDS_FILE)
    level = {"ptbxl_super": "superclasses", "ptbxl_sub": "subclasses"}.get(task.name, "statements")
    names = {**tree["statements"], **tree[level]}
    if unknown := [name for name in task.classes if name not in names]:
        raise ValueError(f"{WORDS_FILE}: no words for {', '.join(unknown)} of {task.name}")
    return {name: names[name] for name in task.classes}


def ejection_fraction_prompts(
    language: str | tuple[str, ...] = LANGUAGES, file: str | PathLike[str] | None = None
) -> list[list[str]]:
    """For every template of the "lvef" task its 101 texts, one for each ejection fraction from 0 to 100 %.

    The candidates of EchoCLIP's rule for continuous values (Christensen et al., Nature Medicine 30:1481, 2024).
    """
    templates = prompts(TASKS["lvef"], language, file)["lvef"]
    for template in templates:
        if "{value}" not in template:
            raise ValueError(f"{file or TASKS['lvef'].file}: lvef: {template!r} has no {{value}} to fill in")
    return [[template.replace("{value}", str(value)) for value in range(101)] for template in templates]
