"""The real PTB-XL: both of its tables, against wfdb and against each other."""

import csv
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import wfdb

from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.ecg_folder import EcgFolder
from ecgformers.datasets_scripts.ptb_xl import PtbXl
from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation.tasks import TASKS, labels

CHUNKS = ("00000", "01000", "03000", "09000", "13000")  # of the packed excerpt
EVERY = 8  # of their records, besides the known differences
# Records whose statements differ between the two versions of the table.
KNOWN_DIFFERENCES = {"1371", "3796", "3797", "3799", "3802", "9822", "13803"}


def restored(packed: Path, folder: Path) -> dict[str, np.ndarray]:
    """Some hundred records in PhysioNet's layout, with the lines of both tables about them; their samples."""
    specification = importlib.util.spec_from_file_location("restore", packed / "restore.py")
    restore = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(restore)
    signals = {}
    for chunk in CHUNKS:
        ids, samples = restore.load_chunk(packed / "chunks" / f"{chunk}.ptb")
        for place, (ecg_id, signal) in enumerate(zip(map(str, ids), samples, strict=True)):
            if place % EVERY == 0 or ecg_id in KNOWN_DIFFERENCES:
                path = folder / "records100" / chunk / f"{int(ecg_id):05d}_lr"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".dat").write_bytes(signal.astype("<i2").tobytes())
                path.with_suffix(".hea").write_text(restore.header(int(ecg_id), signal))
                signals[ecg_id] = signal
    for table in ("ptbxl_database.csv", "ptbxl_labels.csv"):
        header, *lines = (packed / table).read_text().splitlines()
        (folder / table).write_text("\n".join([header, *(line for line in lines if line.split(",")[0] in signals)]))
    return signals


@pytest.fixture(scope="module")
def excerpt(ptb_xl_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Records restored, and built from both tables."""
    folder = tmp_path_factory.mktemp("ptb_xl")
    signals = restored(ptb_xl_dir, folder / "source")
    options = {"data_dir": str(folder / "source"), "cache_dir": str(folder / "cache")}
    build(PtbXl(rate=100, **options), folder / "database", strict=True)
    columns = {
        "path_column": "filename_lr",
        "id_column": "ecg_id",
        "patient_column": "patient_id",
        "sex_column": "sex",
    }
    folds = {"fold_column": "strat_fold", "validation_folds": "9", "age_column": "age", "male": "0", "female": "1"}
    table = {"table": "ptbxl_labels.csv", "label_columns": "super_NORM:ISCAS"}
    build(EcgFolder(**columns, **folds, **table, **options), folder / "labels", strict=True)
    loaded = {
        name: datasets.concatenate_datasets(
            list(datasets.load_dataset(str(folder / name), cache_dir=str(folder / f"loaded {name}")).values())
        )
        for name in ("database", "labels")
    }
    return SimpleNamespace(source=folder / "source", signals=signals, **loaded)


def by_id(rows: datasets.Dataset) -> dict[str, dict[str, Any]]:
    return {row["record_id"]: row for row in rows}


def test_every_sample_is_what_wfdb_reads(excerpt: SimpleNamespace) -> None:
    rows = by_id(excerpt.labels.with_format("numpy"))
    assert rows.keys() == excerpt.signals.keys() and len(rows) > 500
    for record_id, row in rows.items():
        record = wfdb.rdrecord(str(excerpt.source / row["source"]), physical=False)
        np.testing.assert_array_equal(row["signal"], record.d_signal)
        np.testing.assert_array_equal(row["signal"], excerpt.signals[record_id])
        np.testing.assert_array_equal(row_to_record(row).signal.T, record.dac())


def test_both_tables_agree(excerpt: SimpleNamespace) -> None:
    rows, others = by_id(excerpt.database), by_id(excerpt.labels)
    differing = set()
    for record_id, row in rows.items():
        other = others[record_id]
        for column in ("signal", "patient_id", "sex", "fold", "split", "source", "sampling_rate"):
            assert row[column] == other[column], f"record {record_id}, {column}"
        stated = {statement["code"] for statement in row["statements"]}
        marked = {name for name, mark in other["labels"].items() if mark and not name.startswith("super_")}
        if stated != marked:
            differing.add(record_id)
    assert len(rows) > 250 and differing == KNOWN_DIFFERENCES


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith("ptbxl")])
def test_the_tasks_read_both(excerpt: SimpleNamespace, task: str) -> None:
    rows = by_id(excerpt.database.remove_columns("signal"))
    others = by_id(excerpt.labels.remove_columns("signal"))
    common = sorted(rows.keys() - KNOWN_DIFFERENCES)
    of_statements, part = labels((rows[record_id] for record_id in common), TASKS[task])
    of_columns, other_part = labels((others[record_id] for record_id in common), TASKS[task])
    np.testing.assert_array_equal(of_statements, of_columns)
    np.testing.assert_array_equal(part, other_part)
    assert part.any()


def test_the_known_differences_are_all_there_are(ptb_xl_dir: Path) -> None:
    """Over all 10,956 rows of both tables, by the tables alone."""
    with open(ptb_xl_dir / "ptbxl_labels.csv", newline="") as file:
        marked = {row["ecg_id"]: row for row in csv.DictReader(file)}
    statements = [*next(iter(marked.values()))][12:]
    assert len(statements) == 71 and len(marked) == 19601
    with open(ptb_xl_dir / "ptbxl_database.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10956
    differing = {
        row["ecg_id"]
        for row in rows
        if {name for name in statements if f"'{name}'" in row["scp_codes"]}
        != {name for name in statements if marked[row["ecg_id"]][name] == "1"}
    }
    assert differing == KNOWN_DIFFERENCES
