"""WFDB recordings of any format, gain, baseline and unit: rows give exactly what wfdb reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgformers.datasets_scripts.digital_ecg import read_wfdb
from ecgformers.datasets_scripts.rows import row_features, row_to_record, signal_columns

BITS = {"16": 16, "24": 24, "32": 32, "80": 8}  # the formats that wfdb writes
MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "V": 1e3}


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(list(BITS)),
    gain=st.floats(0.01, 10000).map(lambda gain: round(gain, 3)),
    baseline=st.integers(-500, 500),
    unit=st.sampled_from(list(MILLIVOLTS)),
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(2, 50),
)
def test_rows_give_what_wfdb_reads(
    tmp_path_factory: pytest.TempPathFactory, form: str, gain: float, baseline: int, unit: str, seed: int, samples: int
) -> None:
    folder = tmp_path_factory.mktemp("wfdb")
    limit = (1 << (BITS[form] - 1)) - 1
    digital = np.random.default_rng(seed).integers(-limit, limit + 1, (samples, 3))
    wfdb.wrsamp(
        "record", 250, [unit] * 3, ["I", "II", "V1"], d_signal=digital, fmt=[form] * 3, adc_gain=[gain] * 3,
        baseline=[baseline] * 3, write_dir=str(folder),
    )  # fmt: skip
    recording = read_wfdb(folder / "record")
    np.testing.assert_array_equal(recording.signal, digital)
    assert recording.signal.dtype == (np.int32 if BITS[form] > 16 else np.int16)

    schema = row_features(3, str(recording.signal.dtype)).arrow_schema
    columns = signal_columns([recording, recording], schema)
    row = {name: column.to_pylist()[1] for name, column in columns.items()}
    physical, fields = wfdb.rdsamp(str(folder / "record"))
    record = row_to_record(row)
    np.testing.assert_array_equal(record.signal, (physical * MILLIVOLTS[unit]).T)
    assert record.lead_names == tuple(fields["sig_name"]) and record.units == (unit,) * 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("record/2 1 250 20\none 10\ntwo 10", "several segments"),
        ("record 1 250 10\nrecord.dat 16:3 200 16 0 0 0 0 I", "skewed"),
        ("record 1 250 10\n../record.dat 16 200 16 0 0 0 0 I", "does not lie in the record's own folder"),
        ("record 1 250 10\nrecord.dat 16 200 16 0 0 1 0 I", "checksum"),
        ("record 1 250 10\nrecord.dat 160 200 16 0 0 0 0 I", "10 samples of lead I are NaN"),
        ("record 1 250 10\nrecord.dat 8 200 16 0 2147483648 0 0 I", "more than 32 bits"),
        ("record 2 250 3\nrecord.dat 16 200 16 0 0 0 0 I\nrecord.dat 16x2 200 16 0 0 0 0 II", "sampling rate"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "record.hea").write_text(line + "\n")
    (tmp_path / "record.dat").write_bytes(bytes(20))
    with pytest.raises(ValueError, match=message):
        read_wfdb(tmp_path / "record")


def test_leads_in_several_files_and_formats(tmp_path: Path) -> None:
    short, long = np.array([5, -7, 9]), np.array([70000, -70000, 1])
    short.astype("<i2").tofile(tmp_path / "a.dat")
    long.astype("<i4").tofile(tmp_path / "b.dat")
    (tmp_path / "record.hea").write_text("record 2 250 3\na.dat 16 200 16 0\nb.dat 32 100/uV 16 0\n")
    recording = read_wfdb(tmp_path / "record")
    np.testing.assert_array_equal(recording.signal, np.stack([short, long], axis=1))
    assert recording.lead_names == ["lead 1", "lead 2"] and recording.units == ["mV", "uV"]
    recording.check(leads=2)
    with pytest.raises(ValueError, match="more than 32 bits"):  # Arrow could not hold it
        replace(recording, baseline=[0, 1 << 31]).check(leads=2)
