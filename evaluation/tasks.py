"""The evaluation tasks: which classes, which labels a row carries, which split it belongs to, which texts describe it.

    from ecgformers.evaluation.tasks import TASKS, labels, prompts

    task = TASKS["ptbxl_super"]
    rows = dataset.remove_columns("signal")     # any iterable of mappings
    targets, takes_part = labels(rows, task)    # (n, classes) float32, (n,) bool
    texts = prompts(task, language=("en", "de"))

Tasks over ECG statements read a row's `statements` or `scp_codes`, or 0/1 columns named after classes or statements
(its own or in its `labels`); tasks over echo measurements read the columns of `MEASUREMENTS` (its own or in its
`measurements`).  Research use, not a medical device.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

Row = Mapping[str, Any]

PROMPTS_FILE = Path(__file__).with_name("prompts.yaml")
LANGUAGES = ("en", "de")

# PTB-XL's 44 diagnostic statements by superclass and subclass, its 19 form and 12 rhythm statements (4 form statements
# are diagnostic too: 71 in all).  Facts of scp_statements.csv, PTB-XL 1.0.3, CC BY 4.0, Wagner et al., Scientific
# Data 7:154 (2020), https://doi.org/10.13026/kfzx-aw45.
PTB_XL_DIAGNOSTIC: dict[str, dict[str, tuple[str, ...]]] = {
    "NORM": {"NORM": ("NORM",)},
    "MI": {
        "AMI": ("AMI", "ASMI", "ALMI", "INJAS", "INJAL", "INJLA"),
        "IMI": ("IMI", "ILMI", "IPMI", "IPLMI", "INJIN", "INJIL"),
        "LMI": ("LMI",),
        "PMI": ("PMI",),
    },
    "STTC": {
        "STTC": ("NDT", "DIG", "LNGQT", "ANEUR", "EL"),
        "NST_": ("NST_",),
        "ISC_": ("ISC_",),
        "ISCA": ("ISCAL", "ISCAS", "ISCLA", "ISCAN"),
        "ISCI": ("ISCIN", "ISCIL"),
    },
    "CD": {
        "LAFB/LPFB": ("LAFB", "LPFB"),
        "_AVB": ("1AVB", "2AVB", "3AVB"),
        "CLBBB": ("CLBBB",),
        "CRBBB": ("CRBBB",),
        "ILBBB": ("ILBBB",),
        "IRBBB": ("IRBBB",),
        "IVCD": ("IVCD",),
        "WPW": ("WPW",),
    },
    "HYP": {
        "LVH": ("LVH",),
        "RVH": ("RVH",),
        "SEHYP": ("SEHYP",),
        "LAO/LAE": ("LAO/LAE",),
        "RAO/RAE": ("RAO/RAE",),
    },
}
# fmt: off
PTB_XL_FORM = (
    "NDT", "NST_", "DIG", "LNGQT", "ABQRS", "PVC", "STD_", "VCLVH", "QWAVE", "LOWT",
    "NT_", "PAC", "LPR", "INVT", "LVOLT", "HVOLT", "TAB_", "STE_", "PRC(S)",
)
PTB_XL_RHYTHM = (
    "SR", "AFIB", "STACH", "SARRH", "SBRAD", "PACE", "SVARR", "BIGU", "AFLT", "SVTAC", "PSVT", "TRIGU",
)
# fmt: on

# SNOMED CT codes and names under which the PhysioNet/CinC challenges publish the nine CPSC 2018 classes.
CPSC2018_STATEMENTS = {
    "NORM": ("426783006", "Normal"),
    "AFIB": ("164889003", "AF"),
    "1AVB": ("270492004", "I-AVB"),
    "CLBBB": ("164909002", "LBBB"),
    "CRBBB": ("59118001", "RBBB"),
    "PAC": ("284470004",),
    "VPC": ("164884008", "PVC"),
    "STD": ("429622005",),
    "STE": ("164931005",),
}
# The acronyms and SNOMED CT codes of the Chapman-Shaoxing-Ningbo database (ConditionNames_SNOMED-CT.csv).
# Its AF is atrial flutter, and its STE a prolonged ST segment ("ST extension"), not an elevated one (STTU).
CSN_STATEMENTS = {
    "1AVB": ("270492004",),
    "2AVB": ("195042002",),
    "2AVB1": ("54016002",),
    "AF": ("164890007",),
    "AFIB": ("164889003",),
    "ALS": ("39732003",),
    "APB": ("284470004",),
    "AQW": ("164917005",),
    "ARS": ("47665007",),
    "AT": ("713422000",),
    "AVB": ("233917008",),
    "CCR": ("251199005",),
    "CR": ("251198002",),
    "ERV": ("428417006",),
    "JEB": ("426995002",),
    "LBBB": ("164909002",),
    "LVH": ("164873001",),
    "MI": ("164865005",),
    "PRIE": ("164947007",),
    "PWC": ("164912004",),
    "QTIE": ("111975006",),
    "RBBB": ("59118001",),
    "RVH": ("89792004",),
    "SA": ("427393009",),
    "SR": ("426783006",),
    "ST": ("427084000",),
    "STDD": ("429622005",),
    "STE": ("164930006",),
    "STTC": ("428750005",),
    "STTU": ("164931005",),
    "SVT": ("426761007",),
    "TWC": ("164934002",),
    "TWO": ("59931005",),
    "UW": ("164937009",),
    "VB": ("11157007",),
    "VEB": ("75532003",),
    "VPB": ("17338001",),
    "WPW": ("74390002",),
}


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
    """One evaluation task.

    - `kind`: where labels come from.  "statements": the statements a row carries (or 0/1 columns named after them);
      "columns": 0/1 columns only; "threshold": 1 where a measurement fulfils `relation` to its limit; "value": the
      measurement itself (regression).
    - `statements`: for every class the statements that stand for it, besides the class's own name.
    - `column_prefix`: a class's own 0/1 column is this prefix + the class.
    - `labelled_only`: records without any of the classes take no part.
    - `relation`, `limits`: "<", ">" or ">=", and the limit for male and female patients in the measurement's unit.
    - `contrast`: the complementary class of a binary task: it has prompts, but no column among the labels.
    - `split`: "folds" (PTB-XL's `fold`), "tables" (those published with MERL and MELP) or "row" (the row's `split`).
    """

    name: str
    classes: tuple[str, ...]
    kind: Literal["statements", "columns", "threshold", "value"]
    split: Literal["folds", "tables", "row"]
    source: str
    statements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    column_prefix: str = ""
    labelled_only: bool = False
    measurement: str = ""
    relation: str = ""
    limits: tuple[float, float] = (math.nan, math.nan)
    contrast: str = ""

    @property
    def prompt_classes(self) -> tuple[str, ...]:
        """The classes that have prompts: `classes`, and `contrast` where there is one."""
        return (*self.classes, self.contrast) if self.contrast else self.classes


def _ptb_xl(name: str, statements: Mapping[str, tuple[str, ...]], column_prefix: str = "") -> Task:
    return Task(
        name=name,
        classes=tuple(statements),
        kind="statements",
        split="folds",
        source="Strodthoff et al., IEEE JBHI 25:1519 (2021), https://doi.org/10.1109/JBHI.2020.3022989",
        statements=statements,
        column_prefix=column_prefix,
        labelled_only=True,
    )


def _echo(
    name: str, contrast: str, measurement: str, relation: str, limit: float | tuple[float, float], source: str
) -> Task:
    limits = limit if isinstance(limit, tuple) else (limit, limit)
    return Task(
        name, (name,), "threshold", "row", source,
        measurement=measurement, relation=relation, limits=limits, contrast=contrast,
    )  # fmt: skip


_SUBCLASSES = {name: codes for subclasses in PTB_XL_DIAGNOSTIC.values() for name, codes in subclasses.items()}
_SUPERCLASSES = {
    name: tuple(code for codes in subclasses.values() for code in codes)
    for name, subclasses in PTB_XL_DIAGNOSTIC.items()
}
_ALL_STATEMENTS = tuple(
    dict.fromkeys([c for codes in _SUPERCLASSES.values() for c in codes] + [*PTB_XL_FORM, *PTB_XL_RHYTHM])
)
_MELP = "Wang et al., ICML 2025, https://arxiv.org/abs/2506.21803"
_ECHOING_ECG = "Gao et al., MICCAI 2025, https://arxiv.org/abs/2509.25791"
_ECHO_NEXT = "Poterucha et al., Nature 644:221 (2025), https://doi.org/10.1038/s41586-025-09227-0"
_CHAMBERS = "Lang et al., ASE/EACVI, JASE 28:1 (2015), https://doi.org/10.1016/j.echo.2014.10.003"
_ATRIUM = "Lang et al., ASE, JASE 18:1440 (2005), https://doi.org/10.1016/j.echo.2005.10.005"
_STENOSIS = "Baumgartner et al., EACVI/ASE, JASE 30:372 (2017), https://doi.org/10.1016/j.echo.2017.02.009"

_TASKS = (
    _ptb_xl("ptbxl_super", _SUPERCLASSES, column_prefix="super_"),
    _ptb_xl("ptbxl_sub", _SUBCLASSES, column_prefix="sub_"),
    _ptb_xl("ptbxl_form", {code: (code,) for code in PTB_XL_FORM}),
    _ptb_xl("ptbxl_rhythm", {code: (code,) for code in PTB_XL_RHYTHM}),
    _ptb_xl("ptbxl_all", {code: (code,) for code in _ALL_STATEMENTS}),
    Task(
        "cpsc2018", tuple(CPSC2018_STATEMENTS), "statements", "tables",
        f"Liu et al., J. Med. Imaging Health Inform. 8:1368 (2018); as evaluated by {_MELP}",
        statements=CPSC2018_STATEMENTS,
    ),
    Task(
        "csn", tuple(CSN_STATEMENTS), "statements", "tables",
        f"Zheng et al., Scientific Reports 10:2898 (2020); classes as in {_MELP}",
        statements=CSN_STATEMENTS,
    ),
    # The published 0/1 columns were filled by searching each acronym in the text of all of them: ST is set by STTC,
    # AF by AFIB, AVB by 1AVB and so on (ST, AF, SA, AVB, VB, CR and 2AVB have false positives).  This task keeps them
    # for comparison with published figures; `csn` has the same classes with every acronym read whole.
    Task(
        "csn_published", tuple(CSN_STATEMENTS), "columns", "tables",
        f"Zheng et al., Scientific Reports 10:2898 (2020); labels as in the split tables used by {_MELP}",
    ),
    Task(
        "code_test", ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF"), "columns", "row",
        "Ribeiro et al., Nature Communications 11:1760 (2020), https://doi.org/10.1038/s41467-020-15432-4",
    ),
    Task("lvef", ("lvef",), "value", "row", _ECHOING_ECG, measurement="lvef"),
    _echo("lvef_below_40", "lvef_at_least_40", "lvef", "<", 40, _ECHOING_ECG),
    _echo("lvef_below_50", "lvef_at_least_50", "lvef", "<", 50, _ECHOING_ECG),
    _echo("lv_dilated", "lv_not_dilated", "lv_diameter", ">", (58.4, 52.2), _CHAMBERS),
    _echo("lv_wall_thick", "lv_wall_not_thick", "lv_wall", ">=", 13, _ECHO_NEXT),
    _echo("la_dilated", "la_not_dilated", "la_diameter", ">", (40, 38), _ATRIUM),
    _echo("rv_dysfunction", "rv_function_normal", "tapse", "<", 17, _CHAMBERS),
    _echo("tr_velocity_high", "tr_velocity_not_high", "tr_velocity", ">=", 3.2, _ECHO_NEXT),
    _echo("aortic_stenosis", "no_aortic_stenosis", "av_velocity", ">=", 3.0, _STENOSIS),
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}

_RELATIONS = {"<": operator.lt, ">": operator.gt, ">=": operator.ge}
_BINARY = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "0.0": 0.0, "1.0": 1.0}


def labels(rows: Iterable[Row], task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The labels of `rows` in `task`, and which rows take part.

    A PTB-XL statement counts whatever its likelihood, 0 included (0 means "not stated" there), as in the benchmark.
    A row takes no part where a label is unknown (a missing or implausible measurement, an empty column, no sex where
    the limit depends on it), and in tasks with `labelled_only` where it has none of the classes.

    Returns:
        (n, classes) float32: 0/1, or the measurement itself for a "value" task; 0 in rows that take no part.
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
    stated = _statements(row, record) if task.kind == "statements" else set()
    if stated:
        return [float(not stated.isdisjoint((*task.statements[name], name))) for name in task.classes]
    columns = {**row, **(row.get("labels") or {})}
    found = [_column_label(columns, task, name, record) for name in task.classes]
    missing = [name for name, label in zip(task.classes, found, strict=True) if label is None]
    if missing:
        if task.kind == "statements" and {"scp_codes", "statements"} & row.keys():
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
    if task.kind == "value" or not values:
        return max(values, default=math.nan)
    male, female = task.limits
    limit = male if male == female else {"male": male, "female": female}.get(row.get("sex") or "", math.nan)
    return math.nan if math.isnan(limit) else float(_RELATIONS[task.relation](max(values), limit))


def prompts(
    task: Task, language: str | tuple[str, ...] = LANGUAGES, file: str | PathLike[str] | None = None
) -> dict[str, list[str]]:
    """Texts for every class of `task` (and its `contrast`), as reports write them, in the order of `language`.

    Args:
        language: one or several of the languages in the file; ours has "en" and "de".
        file: a YAML file of the same form, task -> class -> language -> list of texts, instead of ours.

    Raises:
        ValueError: the file lacks the task, a class or a language, has a class the task doesn't, an empty text, or a
            text that stands in two places.
    """
    path = Path(file) if file else PROMPTS_FILE
    by_class = _read_prompts(path).get(task.name)
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


@lru_cache(maxsize=4)
def _read_prompts(path: Path) -> Mapping[str, Any]:
    with open(path, encoding="utf-8") as file:
        tree = yaml.safe_load(file)
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path}: not a mapping of tasks to classes")
    return tree


def ejection_fraction_prompts(
    language: str | tuple[str, ...] = LANGUAGES, file: str | PathLike[str] | None = None
) -> list[list[str]]:
    """For every template of the "lvef" task its 101 texts, one for each ejection fraction from 0 to 100 %.

    The candidates of EchoCLIP's rule for continuous values (Christensen et al., Nature Medicine 30:1481, 2024).
    """
    templates = prompts(TASKS["lvef"], language, file)["lvef"]
    for template in templates:
        if "{value}" not in template:
            raise ValueError(f"{file or PROMPTS_FILE}: lvef: {template!r} has no {{value}} to fill in")
    return [[template.replace("{value}", str(value)) for value in range(101)] for template in templates]
