"""What is written is read again as the same integers, and nothing of the patient is in it."""

import dataclasses

import numpy as np
import pydicom
import pytest
import wfdb
from ecg_files import COUNTS, IDENTITY, NAME, RATE, standard_channels, standard_group, write_dicom, write_wfdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgRecord
from ecgformers.modeling.writing_ecg import to_integers, write_ecg

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, in wfdb
SOURCES = {
    "wfdb": lambda folder: write_wfdb(folder, standard_channels("200(-7)/mV")),
    "wfdb in volts": lambda folder: write_wfdb(folder, standard_channels("4880.5/V")),
    "dicom": lambda folder: write_dicom(folder / "source.dcm", standard_group()),
}


@pytest.mark.parametrize("target", ["out/copy", "copy.hea", "copy.dcm"])
@pytest.mark.parametrize("source", SOURCES)
def test_integers_survive_exactly(tmp_path, source, target):
    record = read_ecg(SOURCES[source](tmp_path))
    np.testing.assert_array_equal(to_integers(record).signal, COUNTS)
    copy = read_ecg(write_ecg(record, tmp_path / target))
    np.testing.assert_array_equal(to_integers(copy).signal, COUNTS)
    np.testing.assert_allclose(copy.signal, record.signal, rtol=1e-9, atol=1e-12)
    assert copy.lead_names == record.lead_names and copy.sampling_rate == RATE


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    signal=npst.arrays(st.sampled_from(["f4", "f8"]), (3, 20), elements=st.floats(-20, 20, width=32)),
    suffix=st.sampled_from(["", ".dcm"]),
)
def test_any_signal_is_kept_to_a_billionth(tmp_path_factory, signal, suffix):
    record = EcgRecord(signal, ("I", "II", "X"), 333.0)
    copy = read_ecg(write_ecg(record, tmp_path_factory.mktemp("out") / f"copy{suffix}"))
    np.testing.assert_allclose(copy.signal, signal, atol=1e-8 * max(1.0, np.abs(signal).max()))
    assert copy.lead_names == ("I", "II", "X") and copy.sampling_rate == 333


@pytest.mark.parametrize("name", ["copy", "copy.dcm"])
def test_what_was_not_measured_stays_so(tmp_path, name):
    signal = COUNTS / 1000
    signal[3, 40:60] = signal[8, 7] = np.nan
    copy = read_ecg(write_ecg(EcgRecord(signal, STANDARD_LEADS, 500.0), tmp_path / name))
    np.testing.assert_allclose(copy.signal, signal, atol=1e-12)


def test_other_libraries_read_it(tmp_path):
    record = read_ecg(SOURCES["wfdb"](tmp_path))
    write_ecg(record, tmp_path / "copy")
    np.testing.assert_array_equal(wfdb.rdrecord(str(tmp_path / "copy"), physical=False).d_signal.T, COUNTS)
    group = pydicom.dcmread(write_ecg(record, tmp_path / "copy.dcm"))
    np.testing.assert_allclose(group.waveform_array(0).T, record.signal * 1000, atol=1e-9)  # uV
    assert group.SOPClassUID.name == "General ECG Waveform Storage"


@pytest.mark.parametrize("source", ["wfdb", "dicom"])
@pytest.mark.parametrize("target", ["copy", "copy.dcm", "picture.svg", "picture.png"])
def test_nothing_of_the_patient_is_in_what_is_saved(tmp_path, source, target):
    if source == "wfdb":
        path = write_wfdb(tmp_path, standard_channels(), comments=[f"Name: {NAME}", f"patient_id: {IDENTITY}"])
    else:
        path = SOURCES["dicom"](tmp_path)
    record, out = read_ecg(path), tmp_path / "out"
    if target.startswith("picture"):
        out.mkdir()
        record.plot().savefig(out / target)
    else:
        write_ecg(record, out / target)
    for file in out.iterdir():
        assert NAME.encode() not in file.read_bytes() and IDENTITY.encode() not in file.read_bytes()
    kept = read_ecg(path, keep_patient=True)
    assert IDENTITY in repr(kept.metadata)


def test_what_cannot_be_written_is_said(tmp_path):
    record = EcgRecord(COUNTS / 1000, STANDARD_LEADS, 500.0)
    write_ecg(record, tmp_path / "copy")
    with pytest.raises(FileExistsError, match=r"copy\.hea is there already"):
        write_ecg(record, tmp_path / "copy.hea")
    write_ecg(record, tmp_path / "copy.hea", overwrite=True)
    with pytest.raises(ValueError, match=r"neither in \.dcm"):
        write_ecg(record, tmp_path / "copy.edf")
    with pytest.raises(ValueError, match="letters, digits"):
        write_ecg(record, tmp_path / "my copy")


# ---- the record itself


def test_a_record_in_one_line_and_its_parts():
    record = EcgRecord(COUNTS / 1000, STANDARD_LEADS, 500.0, ("mV",) * 12, "rec.hea", {"annotations": ((0.5, "N"),)})
    assert repr(record) == "EcgRecord(I II III aVR aVL aVF V1 V2 V3 V4 V5 V6; 500 Hz, 1.2 s; 'rec.hea')"
    assert record["lead ii"].lead_names == ("II",) and record["lead ii"].units == ("mV",)
    assert record[["V1", "I"]].lead_names == ("V1", "I")
    part = record["V1", 0.4:1]
    np.testing.assert_array_equal(part.signal, record.signal[6:7, 200:500])
    assert part.metadata["annotations"] == ((pytest.approx(0.1), "N"),) and part.duration == 0.6
    assert record[1:].signal.shape == (12, 100) and record[:9].signal.shape == (12, 600)
    with pytest.raises(KeyError, match="has no lead V9"):
        record["V9"]
    for nothing in (slice(2, 3), slice(1, 1), slice(-1, None), slice(0, 1, 2)):
        with pytest.raises(IndexError, match="has no part"):
            record[nothing]


def test_resampling_keeps_gaps():
    times = np.arange(1000) / 500
    signal = np.stack([np.sin(2 * np.pi * times), np.cos(2 * np.pi * times)])
    signal[1, 400:500] = np.nan
    record = EcgRecord(signal, ("I", "II"), 500.0).resample(250)
    assert record.sampling_rate == 250 and record.signal.shape == (2, 500)
    np.testing.assert_allclose(record.signal[0, 20:-20], np.sin(2 * np.pi * np.arange(500) / 250)[20:-20], atol=1e-3)
    assert np.isnan(record.signal[1, 200:250]).all() and np.isfinite(record.signal[1, :199]).all()
    up = dataclasses.replace(record, gain=(1.0, 1.0), baseline=(0.0, 0.0)).resample(1000)
    assert up.signal.shape == (2, 2000) and up.gain == () and np.isnan(up.signal[1, 800:997]).all()


def test_a_record_draws_itself():
    record = EcgRecord(COUNTS[:2] / 1000, ("I", "II"), 500.0)
    assert record._repr_png_().startswith(b"\x89PNG") and record.plot(title="t").axes
