"""Structures of every format, mutated: a record or a clear error, at once, in little memory, and no wrong value.

The suite tries `EXAMPLES` of each format; `make fuzz` sets ECGFORMERS_FUZZ_EXAMPLES and goes on for about an hour.
"""

import io
import os
import resource
import time
import warnings
import zlib
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
import scipy.io
import wfdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.reading_ecg import read_ecg

EXAMPLES = int(os.environ.get("ECGFORMERS_FUZZ_EXAMPLES", "100"))
DIGITAL = np.random.default_rng(0).integers(-900, 900, (12, 60)).astype("<i2")
SIGNAL = DIGITAL / 1000
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES == 100
)


def matlab(variables: dict, **options) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, **options)
    return file.getvalue()


def hdf5(**options) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        content.create_dataset("ecg/val", data=SIGNAL, **options)
        content["ecg/val"].attrs["unit"] = "mV"
    return file.getvalue()


def numpy_file(save, *args, **kwargs) -> bytes:
    file = io.BytesIO()
    save(file, *args, **kwargs)
    return file.getvalue()


def dicom() -> bytes:
    dataset = pydicom.dcmread(get_testdata_file("waveform_ecg.dcm"))
    del dataset.WaveformSequence[1:]
    group = dataset.WaveformSequence[0]
    group.WaveformData, group.NumberOfWaveformSamples = DIGITAL.T.tobytes(), DIGITAL.shape[1]
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


DESCRIBED = {"lead_names": STANDARD_LEADS, "sampling_rate": 500.0, "units": "mV"}
CORPUS = {
    "mat": [
        matlab({"val": DIGITAL}),
        matlab({"val": SIGNAL}, do_compression=True),
        matlab({"val": DIGITAL, "note": "text"}, format="4"),
        matlab({"ECG": {"sex": "Male", "age": 60.0, "data": SIGNAL}}),
        matlab({"ECG": {"sex": "Male", "data": SIGNAL}}, do_compression=True),
    ],
    "h5": [hdf5(), hdf5(compression="gzip", chunks=(12, 20), shuffle=True, fletcher32=True)],
    "npy": [numpy_file(np.save, SIGNAL), numpy_file(np.save, np.asfortranarray(DIGITAL))],
    "npz": [numpy_file(save, signal=SIGNAL, **DESCRIBED) for save in (np.savez, np.savez_compressed)],
    "dcm": [dicom()],
}

# (where, what is written there, how many bytes it replaces); where is a share of the content, or near its beginning
interesting = st.sampled_from(
    [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"9" * 9]
)
mutation = st.tuples(
    st.one_of(st.floats(0, 1, exclude_max=True), st.integers(0, 400)),
    st.one_of(interesting, st.binary(max_size=9)),
    st.integers(0, 12),
)
mutations = st.lists(mutation, min_size=1, max_size=4)


def mutated(content: bytes, changes) -> bytes:
    for where, new, removed in changes:
        place = where % len(content) if isinstance(where, int) else int(where * len(content))
        content = content[:place] + new + content[place + removed :] or b"\0"
    return content


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def read_or_refuse(source: Path, **options):
    """The record; None where it is refused: by ValueError or OSError, in words that name it, in two seconds."""
    start, before = time.perf_counter(), peak_bytes()
    record = None
    try:
        record = read_ecg(source, **options)
    except (ValueError, OSError) as error:
        assert source.stem in str(error)
    assert time.perf_counter() - start < 2 and peak_bytes() - before < 1 << 30
    return record


@pytest.mark.parametrize("suffix", CORPUS)
@fuzz
@given(data=st.data())
def test_files(tmp_path_factory, suffix, data):
    content = mutated(data.draw(st.sampled_from(CORPUS[suffix])), data.draw(mutations))
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{suffix}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = read_or_refuse(path, lead_names=STANDARD_LEADS, sampling_rate=500, units="mV")
        if record is not None and suffix == "npy":
            np.testing.assert_array_equal(record.signal, np.load(path, allow_pickle=False).astype(record.signal.dtype))


@fuzz
@given(data=st.data())
def test_inside_compressed_matlab_variables(tmp_path_factory, data):
    """Damage that zlib's checksum does not show: the content was damaged before it was compressed."""
    inside = mutated(matlab({"val": SIGNAL[:, :20], "ECG": {"data": SIGNAL[:, :9]}})[128:], data.draw(mutations))
    folded = zlib.compress(inside)
    path = tmp_path_factory.getbasetemp() / "fuzzed.mat"
    path.write_bytes(matlab({})[:128] + np.array([15, len(folded)], "<u4").tobytes() + folded)
    read_or_refuse(path, lead_names=STANDARD_LEADS, sampling_rate=500, units="mV")


HEADER = [f"fuzzed {len(DIGITAL)} 500 {DIGITAL.shape[1]}"] + [
    f"fuzzed.dat 16 1000(0)/mV 16 0 {row[0]} {int(row.sum()) % 65536} 0 {name}"
    for row, name in zip(DIGITAL, STANDARD_LEADS, strict=True)
]
words = st.sampled_from(
    ["212", "16", "80", "16x2", "16:3", "16+8", "1/uV", "200(5)/mV", "0", "-1", "9" * 25, "1e400", "~"]
)
edits = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 8), words), max_size=3)


@fuzz
@given(header_changes=edits, changes=st.lists(mutation, max_size=3), verify=st.booleans())
def test_wfdb_records_as_wfdb_reads_them(tmp_path_factory, header_changes, changes, verify):
    lines = [line.split(" ") for line in HEADER]
    for row, column, word in header_changes:
        lines[row][column % len(lines[row])] = word
    folder = tmp_path_factory.getbasetemp()
    (folder / "fuzzed.hea").write_text("\n".join(" ".join(line) for line in lines) + "\n")
    (folder / "fuzzed.dat").write_bytes(mutated(DIGITAL.T.tobytes(), changes))
    record = read_or_refuse(folder / "fuzzed.hea", verify_checksum=verify)
    if record is None or record.metadata.get("left_out"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs, fields = wfdb.rdsamp(str(folder / "fuzzed"))
        except Exception:  # what wfdb cannot read it does not contradict
            return
    if fields["fs"] != record.sampling_rate or any("x" in word for _, _, word in header_changes):
        return  # several samples a frame: wfdb averages them
    scale = {"mv": 1.0, "uv": 1e-3, "v": 1e3, "nv": 1e-6}
    theirs = theirs.T * np.array([[scale[unit.lower()]] for unit in fields["units"]])
    np.testing.assert_allclose(record.signal, theirs[:, : record.signal.shape[1]], rtol=1e-9, atol=1e-12)


@fuzz
@given(changes=mutations)
def test_dicom_numbers_as_pydicom_has_them(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "fuzzed.dcm"
    path.write_bytes(mutated(CORPUS["dcm"][0], changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = read_or_refuse(path)
        if record is None or record.metadata.get("left_out"):
            return
        try:
            theirs = pydicom.dcmread(path).waveform_array(0).T  # in the unit of each channel
        except Exception:  # what pydicom cannot read it does not contradict
            return
    millivolts = {"uv": 1e-3, "mv": 1.0, "v": 1e3, "nv": 1e-6}
    ours = record.signal / np.array([[millivolts[unit.lower()]] for unit in record.units])
    measured = ~np.isnan(ours)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[measured], theirs[measured], rtol=1e-6, atol=1e-9)
