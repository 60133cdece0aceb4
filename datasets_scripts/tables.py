"""Reading the tables of publishers: lines of CSV files, and what their fields say."""

import ast
import csv
import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_table(path: Path, columns: Iterable[str], delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The lines of a CSV file (or of the same name + ".gz"), read one by one.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it lacks one of `columns`.
    """
    path, opener = (path, open) if path.exists() else (path.with_name(f"{path.name}.gz"), gzip.open)
    if not path.exists():
        raise FileNotFoundError(f"{path.with_suffix('')} is missing.")
    stream = opener(path, "rt", newline="", encoding="utf-8-sig", errors="replace")
    reader = csv.DictReader(stream, delimiter=delimiter)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    missing = [column for column in columns if column not in reader.fieldnames]
    if missing:
        stream.close()
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(reader.fieldnames)}")

    def lines() -> Iterator[dict[str, str]]:
        with stream:
            yield from reader

    return lines()


def inside(folder: Path, name: str) -> Path:
    """The file of this name below `folder`; `ValueError` where it lies elsewhere."""
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"{name} does not lie in {folder}")
    return path


def number(text: str | None) -> float | None:
    """A number of a table; None where the field is empty or says NaN."""
    if text is None or text.strip().lower() in {"", "nan", "na", "none", "unknown"}:
        return None
    return float(text)


def binary(text: str | None) -> int | None:
    """A 0/1 field of a table, also written as true/false or 1.0; None where it is empty."""
    if text is None or not text.strip():
        return None
    try:
        return {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text!r} is not 0 or 1") from None


def sex_name(text: str | None, male: str, female: str) -> str | None:
    """ "male" or "female" for the source's own words for them; None where the field is empty or says neither."""
    return {male.lower(): "male", female.lower(): "female"}.get((text or "").strip().lower())


def likelihoods(text: str) -> dict[str, float]:
    """The `scp_codes` of PTB-XL, written as a Python dict: {'NORM': 100.0, 'SR': 0.0}."""
    try:
        return {str(code): float(likelihood) for code, likelihood in ast.literal_eval(text).items()}
    except (SyntaxError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{text!r} does not give statements their likelihoods: {error}") from error


def read_split_tables(**tables: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Split tables as published with MERL and MELP, one CSV a split: `read_split_tables(train=..., test=...)`.

    A record's id is its `filename`, or the stem of its `ecg_path`; `diagnose` (CSN) holds its statements; classes are
    0/1 columns.  Empty lines are skipped (one of the published tables begins with one).

    Returns:
        record id -> row with `record_id`, `split`, `statements` (CSN) and the table's columns.

    Raises:
        ValueError: a table without such an id column, or a record that stands in two places.
    """
    rows: dict[str, dict[str, Any]] = {}
    for split, path in tables.items():
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(line for line in file if line.strip()):
                if not {"filename", "ecg_path"} & row.keys():
                    raise ValueError(f"{path}: it has neither a column filename nor ecg_path to know records by")
                record_id = row.get("filename") or Path(row["ecg_path"]).stem
                if record_id in rows:
                    raise ValueError(f"{path}: record {record_id} is already in split {rows[record_id]['split']}")
                rows[record_id] = {**row, "record_id": record_id, "split": split}
                rows[record_id].pop("scp_codes", None)  # empty in all of them
                if row.get("diagnose"):
                    rows[record_id]["statements"] = row["diagnose"].split(",")
    return rows
