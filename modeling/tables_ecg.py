"""Reading tables of samples: CSV, TSV and other text, Parquet, and the frames of pandas and polars.

A row is a time, a column a lead.  What a table may say of itself: names and units of leads (`I`, `V1 [mV]`; a second
row of units), the rate and unit as columns of one value (`sampling_rate`, `units`) or as a time column, or in a JSON
file of the same name beside it with `sampling_rate`, `units` and `lead_names`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .leads_ecg import STANDARD_LEADS
from .record_ecg import RawEcg, decode_text, is_voltage, lead_name, refuse_bomb
from .units_ecg import EcgReadError

MAX_SIDECAR_BYTES = 1 << 16
RATES = (20.0, 50_000.0)  # Hz; tells seconds from milliseconds where a time column names no unit
_SECONDS = {
    "s": 1.0,
    "sec": 1.0,
    "seconds": 1.0,
    "ms": 1e-3,
    "msec": 1e-3,
    "milliseconds": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
}
_NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?|nan|", re.IGNORECASE)
_COMMENT = re.compile(r"#\s*(sampling[ _]rate|fs|units?)\s*[:=]\s*(\S+)", re.IGNORECASE)
_RATE_NAMES = ("sampling_rate", "sampling rate", "sampling_rate_hz", "sample_rate", "fs", "sampling_frequency")


def read_text_table(file: BinaryIO, source: str, suffix: str, max_bytes: int | None = None) -> RawEcg:
    """The recording in a table of text.

    Raises:
        EcgReadError: it is no table of numbers, or can be understood in more than one way; the message says what to
            pass.
    """
    stored = file.seek(0, 2)
    file.seek(0)
    refuse_bomb(4 * stored, stored, source, max_bytes)
    lines = [line for line in re.split("\r\n|\r|\n", decode_text(file.read())) if line.strip()]
    notes = {match[1]: match[2] for match in map(_COMMENT.match, lines) if match}
    lines = [line for line in lines if not line.startswith("#")]
    if not lines:
        raise EcgReadError(f"{source}: is an empty file")
    delimiter = _delimiter(lines, source)
    rows = [[cell.strip().strip("'\"").strip() for cell in line.split(delimiter)] for line in lines]
    width = len(rows[0])
    if all(row[-1] == "" for row in rows):  # a delimiter at the end of each line
        rows, width = [row[:-1] for row in rows], width - 1
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise EcgReadError(
                f"{source}: row {number} has {len(row)} cells, the first {width}; do commas stand in decimals, too?  "
                "Separate cells by ; or tabs"
            )
    names, units = None, None
    if not all(_NUMBER.fullmatch(cell) for cell in rows[0]):
        names, rows = rows[0], rows[1:]
        if rows and not any(_NUMBER.fullmatch(cell) and cell for cell in rows[0]):
            units, rows = rows[0], rows[1:]
    comma = delimiter != ","
    columns = [_numbers(column, comma) for column in zip(*rows, strict=True)] if rows else []
    raw = _columns(source, names, columns, units)
    return _with_notes(raw, notes, _sidecar(file, source))


def _delimiter(lines: Sequence[str], source: str) -> str | None:
    """What separates the cells: the one of tab, ; and , that occurs equally often in every line, or blanks."""
    sample = lines[:50]
    for delimiter in ("\t", ";", ",", "|"):
        counts = {line.count(delimiter) for line in sample}
        if counts != {0}:
            if delimiter == "," and len(counts) > 1 and not any(line.strip().count(" ") for line in sample):
                raise EcgReadError(
                    f"{source}: commas stand in decimals, too, or rows differ in length; separate cells by ; or tabs"
                )
            if len(counts) == 1:
                return delimiter
    return None


def _numbers(cells: Sequence[str], comma: bool) -> np.ndarray | Sequence[str]:
    """A column as integers or floats; as text where a cell is no number."""
    if not all(_NUMBER.fullmatch(cell) for cell in cells):
        return cells
    if all(re.fullmatch(r"[-+]?\d{1,15}", cell) for cell in cells):
        return np.array(cells, np.int64)
    return np.array([(cell.replace(",", ".") if comma else cell) or "nan" for cell in cells], np.float64)


def _columns(source: str, names: Sequence[str] | None, columns: Sequence[Any], units: Sequence[str] | None) -> RawEcg:
    """The leads among the columns of a table, and what the others say of them."""
    if not columns or not len(columns[0]):
        raise EcgReadError(f"{source}: holds no rows of numbers")
    if names is None:
        text = [number for number, column in enumerate(columns) if not isinstance(column, np.ndarray)]
        if text:
            raise EcgReadError(f"{source}: column {text[0] + 1} holds text among its numbers")
        return RawEcg(_stack(columns))
    rate: float | None = None
    unit: str | None = None
    leads, left_out = [], {}
    for number, (name, column) in enumerate(zip(names, columns, strict=True)):
        plain = name.strip().lower()
        words = [word for word in re.split(r"[\s_()\[\]]+", plain) if word]
        if plain in _RATE_NAMES:
            rate = float(_one(column, name, source))
        elif plain in ("unit", "units"):
            unit = str(_one(column, name, source))
        elif words and words[0] in ("time", "t", "zeit", "elapsed"):
            rate = _rate(column, words, source) or rate
        elif not isinstance(column, np.ndarray):
            if lead_name(name) in STANDARD_LEADS:
                bad = next(row for row, cell in enumerate(column, 1) if not _NUMBER.fullmatch(cell))
                raise EcgReadError(f"{source}: lead {name} holds {column[bad - 1][:40]!r} in row {bad} of its numbers")
            left_out[name] = "text"
        else:
            leads.append(number)
    standard = [number for number in leads if lead_name(names[number]) in STANDARD_LEADS]
    if standard:
        left_out |= {names[number]: "not the name of a lead" for number in leads if number not in standard}
        leads = standard
    if not leads:
        raise EcgReadError(f"{source}: none of its columns {list(names)} holds the numbers of a lead")
    own = [_unit(names[number], units[number] if units else "") or unit for number in leads]
    return RawEcg(
        _stack([columns[number] for number in leads]),
        [names[number] for number in leads],
        rate,
        [value or "mV" for value in own] if any(own) else (),
        {"left_out": left_out} if left_out else {},
    )


def _stack(columns: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(list(columns))  # (leads, samples)


def _unit(name: str, below: str) -> str | None:
    """The unit in a column's name, or in the row below it."""
    found = re.search(r"(?:[\[(/_ ]\s*)([num\u00b5\u03bc]?V)\s*[\])]?$", name, re.IGNORECASE)
    if found and len(found[1]) == 2:
        return found[1]
    return below if is_voltage(below) else None


def _one(column: Any, name: str, source: str) -> Any:
    values = {str(value) for value in column} - {"", "nan"}
    if len(values) != 1:
        raise EcgReadError(f"{source}: its column {name} holds not one value but {len(values)}")
    return values.pop()


def _rate(column: Any, words: Sequence[str], source: str) -> float | None:
    """The sampling rate of a time column; None where it holds no numbers, or just one."""
    if not isinstance(column, np.ndarray) or len(column) < 2:
        return None
    step = float(column[-1] - column[0]) / (len(column) - 1)
    if not step > 0 or np.abs(np.diff(column.astype(float)) - step).max() > 0.6 * step:
        raise EcgReadError(
            f"{source}: its times are not evenly spaced; resample it, or leave them out and pass sampling_rate="
        )
    named = [_SECONDS[word] for word in words[1:] if word in _SECONDS]
    units = named or [unit for unit in (1.0, 1e-3) if RATES[0] <= 1 / (step * unit) <= RATES[1]]
    if len(units) != 1 or (not named and step == 1):  # it may count samples
        raise EcgReadError(f"{source}: its times do not say their unit: call the column time_s or time_ms")
    return round(1 / (step * units[0]), 3)


def _sidecar(file: BinaryIO, source: str) -> dict[str, Any]:
    """What the JSON file of the same name beside a table says."""
    path = Path(str(getattr(file, "name", ""))).with_suffix(".json") if getattr(file, "name", "") else None
    if path is None or not path.is_file():
        return {}
    if path.stat().st_size > MAX_SIDECAR_BYTES:
        raise EcgReadError(f"{path}: is too long to describe {source}")
    try:
        content = json.loads(decode_text(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise EcgReadError(f"{path}: is no JSON that describes {source}: {error}") from error
    return content if isinstance(content, dict) else {}


def _with_notes(raw: RawEcg, notes: dict[str, str], sidecar: dict[str, Any]) -> RawEcg:
    """The recording with what comments and side-car add where its columns say nothing."""
    said = {re.sub(" ", "_", key.lower()): value for key, value in notes.items()} | sidecar
    rate = said.get("sampling_rate", said.get("fs"))
    try:
        rate = None if rate is None else float(rate)
    except (TypeError, ValueError):
        rate = None
    units = said.get("units", said.get("unit")) or ()
    return raw._replace(
        lead_names=raw.lead_names or said.get("lead_names") or (),
        sampling_rate=rate if raw.sampling_rate is None else raw.sampling_rate,
        units=raw.units or units,
    )


def read_frame(frame: Any, source: str) -> RawEcg:
    """The recording in a frame of pandas or polars."""
    names = [str(name) for name in frame.columns]
    columns = [np.asarray(frame[name]) for name in frame.columns]
    return _columns(
        source, names, [column if column.dtype.kind in "fiu" else list(map(str, column)) for column in columns], None
    )


def read_parquet(file: BinaryIO, source: str, max_bytes: int | None = None) -> RawEcg:
    """The recording in a Parquet file whose columns are leads."""
    try:  # transformers takes an import outside a try block for a requirement of every model on the Hub
        import pyarrow as pa
        import pyarrow.parquet as pq

        stored = file.seek(0, 2)
        file.seek(0)
        content = pq.ParquetFile(file)
        refuse_bomb(content.metadata.num_rows * content.metadata.num_columns * 8, stored, source, max_bytes)
        nested = [field.name for field in content.schema_arrow if pa.types.is_nested(field.type)]
        if nested:
            raise EcgReadError(
                f"{source}: its columns {nested[:5]} hold lists; a column must hold the samples of one lead"
            )
        table = content.read()
        columns = [table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names]
        notes = {
            key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items() if len(value) < 100
        }
    except (EcgReadError, ImportError):
        raise
    except Exception as error:  # pyarrow meets damaged files with errors of many classes
        raise EcgReadError(f"{source}: is not a readable Parquet file: {error!r}") from error
    columns = [column if column.dtype.kind in "fiu" else list(map(str, column)) for column in columns]
    return _with_notes(_columns(source, table.column_names, columns, None), notes, _sidecar(file, source))


def looks_like_text(head: bytes) -> bool:
    """Whether a file that begins with these bytes may be a table of text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    return bool(head.strip()) and b"\0" not in head and not re.search(rb"[\x01-\x08\x0e-\x1f]", head)
