"""Tables of samples: what they say of themselves, what must be said for them, and what is refused as ambiguous."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ecg_files import COUNTS, IDENTITY, RATE

from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgReadError

SIGNAL = COUNTS[:, :50] / 1000  # mV


def table(
    header: list[str] | None = list(STANDARD_LEADS),  # noqa: B006
    delimiter: str = ",",
    comma: bool = False,
    digits: str = "%.3f",
    before: dict[str, list] | None = None,
    newline: str = "\n",
) -> str:
    """A table of `SIGNAL`, with other columns `before` it."""
    rows = [[digits % value for value in row] for row in SIGNAL.T]
    rows = [[cell.replace(".", ",") for cell in row] if comma else row for row in rows]
    before = before or {}
    rows = [[str(column[i]) for column in before.values()] + row for i, row in enumerate(rows)]
    lines = rows if header is None else [[*before, *header], *rows]
    return newline.join(delimiter.join(line) for line in lines) + newline


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def assert_signal(record, leads=STANDARD_LEADS) -> None:
    assert record.lead_names == tuple(leads) and record.sampling_rate == RATE
    np.testing.assert_allclose(record.signal, SIGNAL, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "encoding"),
    [
        ({}, "utf-8"),
        ({}, "utf-8-sig"),
        ({}, "utf-16"),
        ({"newline": "\r\n"}, "utf-8"),
        ({"delimiter": "\t", "comma": True}, "utf-8"),
        ({"delimiter": ";", "comma": True}, "latin-1"),
        ({"delimiter": " ", "comma": True}, "utf-8"),
        ({"delimiter": "|"}, "utf-8"),
        ({"header": [f"{lead} [mV]" for lead in STANDARD_LEADS]}, "utf-8"),
        ({"header": [f'"Ableitung {lead}"' for lead in STANDARD_LEADS], "delimiter": ";"}, "latin-1"),
        ({"before": {"time_s": [i / RATE for i in range(50)]}}, "utf-8"),
        ({"before": {"Time (ms)": [2 * i for i in range(50)]}}, "utf-8"),
        ({"before": {"time": [i / RATE for i in range(50)]}}, "utf-8"),
        ({"before": {"sampling_rate": [RATE] * 50, "units": ["mV"] * 50}}, "utf-8"),
        ({"before": {"patient": [IDENTITY] * 50, "sample": list(range(50))}}, "utf-8"),
    ],
)
def test_tables_with_a_header(tmp_path, options, encoding):
    path = write(tmp_path / "ecg.csv", table(**options), encoding)
    says_rate = any("time" in name.lower() or "rate" in name for name in options.get("before", {}))
    record = read_ecg(path, sampling_rate=None if says_rate else RATE)
    assert_signal(record)
    assert IDENTITY not in repr(vars(record))


@pytest.mark.parametrize("name", ["ecg.tsv", "ecg.txt", "ecg", "ecg.asc"])
def test_endings_do_not_matter(tmp_path, name):
    assert_signal(read_ecg(write(tmp_path / name, table(delimiter="\t")), sampling_rate=RATE))
    assert_signal(read_ecg(table().encode(), sampling_rate=RATE))


def test_a_table_without_a_header_needs_names(tmp_path):
    path = write(tmp_path / "ecg.csv", table(header=None))
    with pytest.raises(EcgReadError, match="pass lead_names="):
        read_ecg(path, sampling_rate=RATE)
    with pytest.raises(EcgReadError, match="pass sampling_rate="):
        read_ecg(path, lead_names=STANDARD_LEADS)
    assert_signal(read_ecg(path, lead_names=STANDARD_LEADS, sampling_rate=RATE))
    with pytest.raises(EcgReadError, match="2 lead names for 12 leads"):
        read_ecg(path, lead_names=["I", "II"], sampling_rate=RATE)


def test_a_sidecar_or_comments_describe_a_table(tmp_path):
    path = write(tmp_path / "ecg.csv", table(header=None))
    described = {"sampling_rate": RATE, "units": "mV", "lead_names": list(STANDARD_LEADS), "patient": IDENTITY}
    (tmp_path / "ecg.json").write_text(json.dumps(described))
    record = read_ecg(path)
    assert_signal(record)
    assert IDENTITY not in repr(vars(record))
    text = f"# sampling rate: {RATE}\n# units = mV\n" + table()
    assert_signal(read_ecg(write(tmp_path / "other.csv", text)))
    (tmp_path / "ecg.json").write_text("{")
    with pytest.raises(EcgReadError, match=r"ecg\.json: is no JSON"):
        read_ecg(path)


def test_units_of_columns_and_whole_numbers(tmp_path):
    header = [f"{lead} (µV)" for lead in STANDARD_LEADS]
    text = table(header=header, digits="%.3f")
    record = read_ecg(write(tmp_path / "a.csv", text, "latin-1"), sampling_rate=RATE)
    np.testing.assert_allclose(record.signal, SIGNAL / 1000)
    rows = table().splitlines()
    record = read_ecg(
        write(tmp_path / "b.csv", "\n".join([rows[0], ",".join(["uV"] * 12), *rows[1:]])), sampling_rate=RATE
    )
    np.testing.assert_allclose(record.signal, SIGNAL / 1000)
    counts = "I,II\n" + "\n".join(f"{a},{b}" for a, b in COUNTS[:2, :50].T)
    with pytest.raises(EcgReadError, match="holds integers"):
        read_ecg(counts.encode(), sampling_rate=RATE)
    np.testing.assert_array_equal(
        read_ecg(counts.encode(), sampling_rate=RATE, units="uV").signal, COUNTS[:2, :50] * 1e-3
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table(comma=True), "commas stand in decimals, too.* separate cells by ; or tabs"),
        ("I,II\n0.1,0.2\n0.3\n", "rows differ in length"),
        ("I;II\n0.1;0.2\nx;0.2\n", "lead I holds 'x' in row 2"),
        ("time,I\n0,0.1\n1,0.2\n2,0.3\n", "call the column time_s or time_ms"),
        ("time_s,I\n0,0.1\n0.002,0.2\n0.5,0.3\n", "not evenly spaced"),
        ("fs,I\n500,0.1\n250,0.2\n", "column fs holds not one value but 2"),
        ("name,age\nx,y\nz,w\n", "none of its columns .* holds the numbers of a lead"),
        ("I,II\n", "holds no rows of numbers"),
        ("I,I\n0.1,0.2\n", "lead I occurs twice"),
        ("\n\n", "format that is known|empty file"),
    ],
)
def test_what_is_ambiguous_is_refused_in_words(text, message):
    with pytest.raises(EcgReadError, match=message):
        read_ecg(text.encode(), sampling_rate=None if "fs" in text or "time" in text else RATE)


def test_empty_cells_were_not_measured():
    record = read_ecg(b"I,II\n0.1,\n0.2,0.3\nNaN,0.4\n", sampling_rate=RATE)
    np.testing.assert_array_equal(record.signal, [[0.1, 0.2, np.nan], [np.nan, 0.3, 0.4]])


def test_frames_and_parquet(tmp_path):
    frame = pd.DataFrame(SIGNAL.T, columns=STANDARD_LEADS)
    frame.insert(0, "patient", IDENTITY)
    assert_signal(read_ecg(frame, sampling_rate=RATE))
    frame["sampling_rate"] = RATE
    frame.to_parquet(tmp_path / "ecg.parquet")
    assert_signal(read_ecg(tmp_path / "ecg.parquet"))
    described = pa.table(dict(zip(STANDARD_LEADS, SIGNAL, strict=True))).replace_schema_metadata(
        {"sampling_rate": "500"}
    )
    pq.write_table(described, tmp_path / "described")
    assert_signal(read_ecg(tmp_path / "described"))
    pq.write_table(pa.table({"signal": [[1.0, 2.0]]}), tmp_path / "nested")
    with pytest.raises(EcgReadError, match="hold lists"):
        read_ecg(tmp_path / "nested", sampling_rate=RATE)
    with pytest.raises(EcgReadError, match="not a readable Parquet file"):
        read_ecg((tmp_path / "described").read_bytes()[:-50])
