import io
import os
import struct
import sys
import time
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
import scipy.io
import soundfile
import wfdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydicom.data import get_testdata_file
from transformers.dynamic_module_utils import get_imports

from ecgformers.modeling import dicom_ecg, reading_ecg, wfdb_ecg
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgReadError, EcgRecord

RATE = 500
SIGNAL = np.random.default_rng(0).normal(scale=0.4, size=(12, 1000)).round(3)
DIGITAL = (SIGNAL * 1000).round().astype("<i2")
DICOM_ECG = str(get_testdata_file("waveform_ecg.dcm"))
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, in wfdb
fresh_folder = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_record(folder: Path, record: str = "rec", digital=DIGITAL, lines=None, first=None, **fields) -> Path:
    """A format 16 record; `lines` and `first` replace lines of its header, `fields` those of lead II (row 1)."""
    digital.T.tofile(folder / f"{record}.dat")
    if lines is None:
        lines = []
        for i, lead in enumerate(STANDARD_LEADS[: len(digital)]):
            values = {"file": f"{record}.dat", "format": "16", "gain": "1000(0)/mV", "initial": str(digital[i, 0])}
            values |= {"checksum": str(int(digital[i].sum()) % 65536), "name": lead} | (fields if i == 1 else {})
            lines.append("{file} {format} {gain} 16 0 {initial} {checksum} 0 {name}".format(**values))
    first = first or f"{record} {len(digital)} {RATE} {digital.shape[1]}"
    (folder / f"{record}.hea").write_text("\n".join([first, *lines, "# Age: 60"]) + "\n", encoding="utf-8")
    return folder / record


def write_dicom(folder: Path, change) -> Path:
    dataset = pydicom.dcmread(DICOM_ECG)
    change(dataset.WaveformSequence[0], dataset)
    dataset.save_as(folder / "rec.dcm")
    return folder / "rec.dcm"


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@contextmanager
def watched(allowed: Path, seconds: float = 1.0):
    """Fail when the block takes long, opens a socket, or opens a file outside `allowed` (imports aside)."""
    events: list = []
    _watchers.append(events)
    start = time.perf_counter()
    try:
        yield
    finally:
        elapsed = time.perf_counter() - start
        _watchers.remove(events)
    libraries = (sys.prefix, sys.base_prefix, "/proc", "/dev/null", "/etc/mime.types")
    for event, args in events:
        assert not event.startswith("socket"), (event, args)
        if event == "open" and isinstance(args[0], str | bytes) and str(args[0]) not in ("", "."):
            path = os.path.realpath(os.fsdecode(args[0]))
            assert path.startswith((str(allowed.resolve()), *libraries)), f"read {path}"
    assert elapsed < seconds, f"took {elapsed:.2f} s"


_watchers: list[list] = []


def _note(event: str, args: tuple) -> None:
    for events in _watchers:
        events.append((event, args))


sys.addaudithook(_note)


# ---- what is read, and that it is right


def test_dicom_ecg_against_its_raw_samples():
    record = read_ecg(DICOM_ECG)
    group = pydicom.dcmread(DICOM_ECG).WaveformSequence[0]
    stored = np.frombuffer(group.WaveformData, "<i2").reshape(10000, 12)
    assert record.lead_names == STANDARD_LEADS
    assert (record.sampling_rate, record.duration, record.units) == (1000, 10.0, ("uV",) * 12)
    assert record.metadata == {"group": 0, "groups": 2, "group_label": "RHYTHM"}
    np.testing.assert_allclose(record.signal, stored.T * 1.25e-3, rtol=1e-12)  # 1.25 uV a step
    assert stored[0, :3].tolist() == [80, 90, 10] and record.signal[0, 0] == pytest.approx(0.1)
    assert np.abs(record.signal[1] - record.signal[0] - record.signal[2]).max() < 0.003  # Einthoven, to rounding


def test_dicom_scaling_baseline_padding_and_byte_order(tmp_path):
    def change(group, dataset):
        channel = group.ChannelDefinitionSequence[1]
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = 0.002, 1.5
        channel.ChannelBaseline = 0.25
        channel.ChannelSensitivityUnitsSequence[0].CodeValue = "mV"
        del channel.ChannelSourceSequence
        channel.ChannelLabel = "II"
        group.add_new("WaveformPaddingValue", "OW", struct.pack("<h", 90))

    record = read_ecg(write_dicom(tmp_path, change))
    stored = np.frombuffer(pydicom.dcmread(DICOM_ECG).WaveformSequence[0].WaveformData, "<i2").reshape(-1, 12)[:, 1]
    np.testing.assert_allclose(record.signal[1], stored * 0.003 + 0.25, rtol=1e-9)  # 90 is a voltage like any other
    assert record.lead_names == STANDARD_LEADS and np.isfinite(record.signal).all()


def test_wfdb_record_by_any_of_its_names(tmp_path):
    path = write_record(tmp_path)
    for source in (path, str(path), f"{path}.hea", f"{path}.dat"):
        with watched(tmp_path):
            record = read_ecg(source)
        np.testing.assert_array_equal(record.signal, DIGITAL / 1000.0)
        assert record.lead_names == STANDARD_LEADS and record.sampling_rate == RATE and record.units == ("mV",) * 12
        assert record.metadata["comments"] == ("Age: 60",) and record.source == str(source)


@pytest.mark.parametrize(("gain", "factor"), [("200/uV", 5e-6), ("4880/mV", 1 / 4.88e3), ("2000(100)/V", 0.5)])
def test_wfdb_gain_unit_and_baseline(tmp_path, gain, factor):
    record = read_ecg(write_record(tmp_path, gain=gain))
    baseline = 100 if "(" in gain else 0
    np.testing.assert_allclose(record.signal[1], (DIGITAL[1] - baseline) * factor, rtol=1e-12)
    assert record.units[1] == gain.partition("/")[2]


def test_wfdb_micro_sign_length_from_file_default_baseline_and_invalid_samples(tmp_path):
    digital = np.array([[-32768, 7, 9]], "<i2")
    path = write_record(tmp_path, digital=digital, first="rec 1 250", lines=["rec.dat 16 2/µV 16 5 0 0 0 MLII"])
    record = read_ecg(path, verify_checksum=False)
    np.testing.assert_allclose(record.signal, [[np.nan, 0.001, 0.002]])
    assert record.lead_names == ("MLII",)


def test_wfdb_skew_and_several_samples_a_frame(tmp_path):
    digital = np.arange(24, dtype="<i2").reshape(2, 12)
    lines = ["rec.dat 16x2:1 1/mV 12 0 0 0 0 I", "rec.dat 16x2 1/mV 12 0 0 0 0 II"]
    path = write_record(tmp_path, digital=digital, first="rec 2 250/10 6", lines=lines)
    record = read_ecg(path, verify_checksum=False)
    expected = wfdb.rdrecord(str(path), physical=False, smooth_frames=False).e_d_signal
    assert record.sampling_rate == 500
    np.testing.assert_array_equal(record.signal[1], expected[1])
    np.testing.assert_array_equal(record.signal[0], [*expected[0][:-2], np.nan, np.nan])


def test_wfdb_segments_are_joined_by_lead_name_and_gaps_are_nan(tmp_path):
    first, second = DIGITAL[:2, :300], DIGITAL[:2, 300:700]
    write_record(tmp_path, "s1", first)
    write_record(tmp_path, "s2", second, first="s2 2 500 400", name="V1")
    layout = ["~ 0 1/mV 0 0 0 0 0 V1", "~ 0 1/mV 0 0 0 0 0 I", "~ 0 1/mV 0 0 0 0 0 II"]
    (tmp_path / "lay.hea").write_text("\n".join(["lay 3 500 0", *layout]))
    (tmp_path / "rec.hea").write_text("rec/4 3 500 750\nlay 0\ns1 300\n~ 50\ns2 400\n")
    record = read_ecg(tmp_path / "rec")
    expected = np.full((3, 750), np.nan)
    expected[1, :300], expected[2, :300] = first / 1000
    expected[1, 350:], expected[0, 350:] = second / 1000
    np.testing.assert_array_equal(record.signal, expected)
    assert record.lead_names == ("V1", "I", "II")
    np.testing.assert_array_equal(record.signal, wfdb.rdsamp(str(tmp_path / "rec"))[0].T)


@fresh_folder
@given(data=st.data(), leads=st.integers(1, 8), samples=st.integers(1, 40))
@pytest.mark.parametrize(
    ("form", "bits"), [("16", 16), ("24", 24), ("32", 32), ("80", 8), ("508", 8), ("516", 16), ("524", 24)]
)
def test_wfdb_records_written_by_wfdb(tmp_path_factory, form, bits, data, leads, samples):
    folder = tmp_path_factory.mktemp("wfdb")
    limit = (1 << bits - 1) - 1
    digital = data.draw(npst.arrays(np.int64, (samples, leads), elements=st.integers(-limit, limit)))
    gains = data.draw(st.lists(st.sampled_from([1.0, 200.0, 4880.0, 0.5]), min_size=leads, max_size=leads))
    units = data.draw(st.lists(st.sampled_from(["uV", "mV", "V"]), min_size=leads, max_size=leads))
    baselines = data.draw(st.lists(st.integers(-50, 50), min_size=leads, max_size=leads))
    names = list(STANDARD_LEADS[:leads])
    calibration = {"fmt": [form] * leads, "adc_gain": gains, "baseline": baselines, "units": units}
    wfdb.wrsamp("rec", fs=360, sig_name=names, d_signal=digital, write_dir=str(folder), **calibration)
    record = read_ecg(folder / "rec")
    factors = np.array([{"uV": 1e-3, "mV": 1.0, "V": 1e3}[unit] for unit in units])
    expected = (digital - np.array(baselines)) / np.array(gains) * factors
    np.testing.assert_allclose(record.signal, expected.T, rtol=1e-12)
    assert record.units == tuple(units) and record.sampling_rate == 360


@fresh_folder
@given(data=st.data(), leads=st.integers(1, 7), samples=st.integers(2, 40))
@pytest.mark.parametrize("form", ["8", "16", "24", "32", "61", "80", "160", "212", "310", "311"])
def test_any_bytes_are_decoded_as_wfdb_does(tmp_path_factory, form, data, leads, samples):
    folder = tmp_path_factory.mktemp("wfdb")
    content = data.draw(npst.arrays(np.uint8, 4 * (leads * samples + 1)))
    if form == "311":
        content[3::4] &= 0x3F  # the two spare bits, which wfdb takes for a part of the sample
    content.tofile(folder / "rec.dat")
    lines = [f"rec.dat {form} 3(1)/mV 16 0 7 0 0 {lead}" for lead in STANDARD_LEADS[:leads]]
    (folder / "rec.hea").write_text("\n".join([f"rec {leads} 500 {samples}", *lines]))
    expected = wfdb.rdrecord(str(folder / "rec"), physical=form != "8")
    expected = (expected.d_signal - 1) / 3 if form == "8" else expected.p_signal  # wfdb cannot scale format 8
    np.testing.assert_array_equal(read_ecg(folder / "rec", verify_checksum=False).signal, expected.T)


@fresh_folder
@given(signal=npst.arrays(float, (3, 30), elements=st.floats(-5, 5)), gain=st.sampled_from([200, 1000, 4880]))
def test_physical_signals_survive_to_within_half_a_quantum(tmp_path_factory, signal, gain):
    folder = tmp_path_factory.mktemp("wfdb")
    names = ["I", "II", "III"]
    options = {"fmt": ["16"] * 3, "adc_gain": [gain] * 3, "baseline": [0] * 3, "write_dir": str(folder)}
    wfdb.wrsamp("rec", fs=500, units=["mV"] * 3, sig_name=names, p_signal=signal.T, **options)
    np.testing.assert_allclose(read_ecg(folder / "rec").signal, signal, atol=0.5 / gain + 1e-9)


def test_format_8_holds_differences(tmp_path):
    steps = np.array([[0, 3, -5, 127], [0, -1, -1, 2]], "i1")
    lines = ["rec.dat 8 1/mV 8 0 100 0 0 I", "rec.dat 8 1/mV 8 0 -7 0 0 II"]
    path = write_record(tmp_path, digital=steps, first="rec 2 250 4", lines=lines)
    record = read_ecg(path, verify_checksum=False)
    np.testing.assert_array_equal(record.signal, [[100, 103, 98, 225], [-7, -8, -9, -7]])


def test_matlab_files(tmp_path):
    described = {"lead_names": STANDARD_LEADS, "sampling_rate": RATE}
    for name, form in (("four", "4"), ("five", "5")):
        scipy.io.savemat(tmp_path / f"{name}.mat", {"val": DIGITAL}, format=form)
        with watched(tmp_path):
            record = read_ecg(tmp_path / f"{name}.mat", units="uV", **described)
        np.testing.assert_allclose(record.signal, DIGITAL / 1000.0)
    scipy.io.savemat(tmp_path / "feats.mat", {"feats": SIGNAL})
    np.testing.assert_array_equal(read_ecg(tmp_path / "feats.mat", **described).signal, SIGNAL)


def test_cinc_layout_of_mat_and_hea(tmp_path):
    scipy.io.savemat(tmp_path / "A1.mat", {"val": DIGITAL}, format="4")
    lines = [
        f"A1.mat 16+24 1000/mV 16 0 {row[0]} {row.sum() % 65536} 0 {n}"
        for row, n in zip(DIGITAL, STANDARD_LEADS, strict=True)
    ]
    (tmp_path / "A1.hea").write_text("\n".join(["A1 12 500 1000 12-May-2020 12:33:59", *lines, "#Dx: 426783006"]))
    for source in ("A1", "A1.mat", "A1.hea"):
        np.testing.assert_array_equal(read_ecg(tmp_path / source).signal, DIGITAL / 1000.0)


def test_numpy_sources(tmp_path):
    described = {"lead_names": STANDARD_LEADS, "sampling_rate": RATE}
    np.save(tmp_path / "a.npy", np.asfortranarray(SIGNAL))
    np.savez_compressed(tmp_path / "a.npz", signal=SIGNAL, units="mV", **described)
    np.savez(tmp_path / "uv.npz", signal=DIGITAL, units=["uV"] * 12, **described)
    sources = [SIGNAL, tmp_path / "a.npy", tmp_path / "a.npz", tmp_path / "uv.npz", {"signal": SIGNAL, **described}]
    for source in sources:
        with watched(tmp_path):
            options = {} if isinstance(source, dict) or str(source).endswith(".npz") else described
            record = read_ecg(source, **options)
        np.testing.assert_allclose(record.signal, SIGNAL)
        assert record.lead_names == STANDARD_LEADS and record.sampling_rate == RATE


def test_precision_units_and_names_of_arrays():
    single = read_ecg(SIGNAL.astype("f4"), lead_names=STANDARD_LEADS, sampling_rate=RATE, units="V")
    assert single.signal.dtype == np.float32
    np.testing.assert_allclose(single.signal, SIGNAL * 1000, rtol=1e-6)
    mixed = read_ecg(np.ones((2, 5), np.float16), lead_names=["DI", "Vx "], sampling_rate=RATE, units=["uV", "mV"])
    assert mixed.signal.dtype == np.float64 and mixed.signal[:, 0].tolist() == [0.001, 1.0]
    assert mixed.lead_names == ("I", "Vx") and mixed.units == ("uV", "mV")
    assert read_ecg(mixed) is mixed


def test_what_the_caller_states_wins(tmp_path):
    record = read_ecg(write_record(tmp_path), lead_names=STANDARD_LEADS, sampling_rate=250, units="uV")
    assert record.lead_names == STANDARD_LEADS and record.sampling_rate == 250
    np.testing.assert_allclose(record.signal, DIGITAL * 1e-6)


def test_the_array_of_the_caller_is_not_shared():
    signal = SIGNAL.copy()
    record = read_ecg(signal, lead_names=STANDARD_LEADS, sampling_rate=RATE)
    signal[:] = 0
    np.testing.assert_array_equal(record.signal, SIGNAL)


def test_wrong_checksum_can_be_overruled(tmp_path):
    path = write_record(tmp_path, checksum="1")
    with pytest.raises(EcgReadError, match=r"lead II in rec\.dat .* checksum"):
        read_ecg(path)
    np.testing.assert_array_equal(read_ecg(path, verify_checksum=False).signal, DIGITAL / 1000.0)


def test_links_of_a_download_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    write_record(blobs)
    for suffix in (".hea", ".dat"):  # as huggingface_hub lays its cache out
        (blobs / f"rec{suffix}").rename(blobs / f"0a1b{suffix}")
        (snapshot / f"rec{suffix}").symlink_to(blobs / f"0a1b{suffix}")
    np.testing.assert_array_equal(read_ecg(snapshot / "rec").signal, DIGITAL / 1000.0)


# ---- what is refused


def wfdb_case(**options):
    return lambda folder: write_record(folder, **options)


def dicom_case(change):
    return lambda folder: write_dicom(folder, change)


def array_case(signal, **options):
    return lambda folder: {"signal": signal, "lead_names": STANDARD_LEADS, "sampling_rate": RATE} | options


def file_case(name, content):
    return lambda folder: write_bytes(folder / name, content)


def mat_case(**variables):
    def make(folder):
        scipy.io.savemat(folder / "rec.mat", variables)
        return folder / "rec.mat"

    return make


def mixed_rates(folder: Path) -> Path:
    path = write_record(folder, digital=np.zeros((12, 1000), "<i2"), format="16x2")
    np.zeros((1000, 13), "<i2").tofile(folder / "rec.dat")
    return path


def outside(folder: Path, name: str = "../secret.dat") -> Path:
    DIGITAL.T.tofile(folder.parent / "secret.dat")
    return write_record(folder, digital=DIGITAL[:1], lines=[f"{name} 16 1000/mV 16 0 0 0 0 I"])


def linked(folder: Path) -> Path:
    DIGITAL.T.tofile(folder.parent / "secret.dat")
    path = write_record(folder)
    (folder / "rec.dat").unlink()
    (folder / "rec.dat").symlink_to(folder.parent / "secret.dat")
    return path


def truncated(folder: Path) -> Path:
    path = write_record(folder)
    with open(folder / "rec.dat", "r+b") as file:
        file.truncate(23_000)
    return path


def without_data(folder: Path) -> Path:
    path = write_record(folder)
    (folder / "rec.dat").unlink()
    return path


def flac(folder: Path, content: bytes, samples: int = 1000) -> Path:
    lines = ["rec.dat 516 1000/mV 16 0 0 0 0 I"]
    path = write_record(folder, digital=DIGITAL[:1], lines=lines, first=f"rec 1 500 {samples}")
    return write_bytes(folder / "rec.dat", content) and path


def flac_bomb(folder: Path) -> Path:
    soundfile.write(folder / "zeros.flac", np.zeros(1000, "<i2"), 96_000)
    content = bytearray((folder / "zeros.flac").read_bytes())
    content[22:26] = (40_000_000).to_bytes(4, "big")  # the number of samples
    return flac(folder, bytes(content), samples=40_000_000)


def npz_bomb(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "rec.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f8", "fortran_order": False, "shape": (12, 1_000_000)}
        )
        archive.writestr("signal.npy", header.getvalue() + bytes(96_000_000))
    return folder / "rec.npz"


def npy_header(shape) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return header.getvalue()


def saved_object_array(folder: Path) -> Path:
    np.save(folder / "rec.npy", np.array([[print]], object), allow_pickle=True)
    return folder / "rec.npy"


def mat_of_claimed_shape(folder: Path) -> Path:
    name = b"val\0"
    return write_bytes(folder / "rec.mat", struct.pack("<5i", 0, 12, 2**31 - 1, 0, len(name)) + name + bytes(80))


def mat_bomb(folder: Path) -> Path:
    scipy.io.savemat(folder / "rec.mat", {"val": np.zeros((12, 900_000))}, do_compression=True)
    return folder / "rec.mat"


def segmented(*lines: str, first: str = "rec/2 2 500 600"):
    def make(folder):
        write_record(folder, "s1", DIGITAL[:2, :300])
        write_record(folder, "s2", DIGITAL[:2, :300])
        (folder / "rec.hea").write_text("\n".join([first, *lines]))
        return folder / "rec"

    return make


def deflated(folder: Path) -> Path:
    dataset = pydicom.dcmread(DICOM_ECG)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(folder / "rec.dcm")
    return folder / "rec.dcm"


def damaged_dicom(folder: Path, keep: int, rest: bytes = b"") -> Path:
    return write_bytes(folder / "rec.dcm", Path(DICOM_ECG).read_bytes()[:keep] + rest)


def claim_more_samples(group, dataset):
    group.NumberOfWaveformSamples = 1_000_000_000


def remove_sensitivity(group, dataset):
    del group.ChannelDefinitionSequence[4].ChannelSensitivity


def set_unit(group, dataset):
    group.ChannelDefinitionSequence[4].ChannelSensitivityUnitsSequence[0].CodeValue = "mmHg"


def compand(group, dataset):
    group.WaveformSampleInterpretation = "MB"


def drop_waveform(group, dataset):
    del dataset.WaveformSequence


def drop_channel(group, dataset):
    del group.ChannelDefinitionSequence[-1]


def skew_channel(group, dataset):
    group.ChannelDefinitionSequence[2].ChannelSampleSkew = 3


def repeat_lead(group, dataset):
    group.ChannelDefinitionSequence[2].ChannelSourceSequence = group.ChannelDefinitionSequence[1].ChannelSourceSequence


def spoil(group, dataset):
    group.NumberOfWaveformChannels = 0


FLAT = np.zeros((12, 10))
NOISE = np.random.default_rng(0).bytes(5000)
REFUSED = {
    # WFDB: nothing but the record's own folder
    "url": (lambda folder: "s3://bucket/rec", r"s3://bucket/rec: is not a local file"),
    "chained url": (lambda folder: "simplecache::https://x/rec", "is not a local file"),
    "http": (lambda folder: "https://physionet.org/files/ptb-xl/rec", "is not a local file"),
    "parent folder": (outside, r"rec\.hea: names the file '\.\./secret\.dat'"),
    "absolute name": (lambda folder: outside(folder, "/etc/passwd"), r"names the file '/etc/passwd'"),
    "url as data file": (lambda folder: outside(folder, "s3://bucket/x.dat"), "names the file 's3://bucket/x.dat'"),
    "link to outside": (linked, r"names the file 'rec\.dat', which does not lie in the record's own folder"),
    "segment outside": (segmented("../s1 300", "s2 300"), r"names the file '\.\./s1\.hea'"),
    # WFDB: calibration and header
    "gain 0": (wfdb_case(gain="0/mV"), r"rec: lead II is uncalibrated .* pass units="),
    "gain 0 with baseline": (wfdb_case(gain="0.0(12)/mV"), "lead II is uncalibrated"),
    "no gain": (wfdb_case(digital=DIGITAL[:1], lines=["rec.dat 16"]), "does not say its lead names"),
    "gain nan": (wfdb_case(gain="nan"), "cannot read the gain 'nan' of lead II"),
    "gain of rubbish": (wfdb_case(gain="e-"), "'e-' is not a number"),
    "unknown unit": (wfdb_case(gain="200/mmHg"), "the unit of lead II, 'mmHg'"),
    "unknown format": (wfdb_case(format="17"), "unknown signal format '17' of lead II"),
    "null signal": (lambda folder: outside(folder, "~"), "names the file '~'"),
    "mixed formats in a file": (wfdb_case(format="61"), r"rec\.dat are not side by side in one format"),
    "mixed rates": (mixed_rates, "differ in sampling rate .*, II: 2000 samples at 1000"),
    "no samples a frame": (wfdb_case(digital=DIGITAL[:1], lines=["rec.dat 16x0 1/mV"]), "differ in sampling rate"),
    "lead twice": (wfdb_case(name="lead I"), "rec: lead I occurs twice"),
    "lead without name": (wfdb_case(name=""), "does not say its lead names"),
    "no leads": (wfdb_case(first="rec 0 500 1000", lines=[]), "has no leads"),
    "too few lines": (wfdb_case(first="rec 13 500 1000"), "announces 13 leads, describes 12"),
    "1e9 leads": (wfdb_case(first="rec 1000000000 500 1000"), "announces 1000000000 leads"),
    "rate 0": (wfdb_case(first="rec 12 0 1000"), "sampling rate must be a positive number"),
    "rate nan": (wfdb_case(first="rec 12 nan 1000"), "sampling rate must be a positive number"),
    "rate inf": (wfdb_case(first="rec 12 1e999 1000"), "sampling rate must be a positive number"),
    "rate negative": (wfdb_case(first="rec 12 -500 1000"), "sampling rate must be a positive number"),
    "no rate": (wfdb_case(first="rec 12"), "does not say its sampling rate"),
    "empty header": (file_case("rec.hea", b""), r"rec\.hea: is not a WFDB header"),
    "binary header": (file_case("rec.hea", bytes(range(256)) * 9), r"rec\.hea: is not a WFDB header"),
    "huge header": (file_case("rec.hea", b"#\n" * 600_000), "too long for a WFDB header"),
    "number of 5000 digits": (wfdb_case(first="rec 12 500 " + "9" * 5000), "is not a whole number"),
    # WFDB: data
    "missing data": (without_data, r"rec\.dat is missing"),
    "truncated data": (truncated, r"rec\.dat holds 23000 bytes of signal, but 1000 samples of 12 leads"),
    "empty data": (
        wfdb_case(digital=np.zeros((1, 0), "<i2"), first="rec 1 500", lines=["rec.dat 16 1/mV"]),
        r"rec\.dat holds 0 bytes",
    ),
    "1e9 samples": (wfdb_case(first="rec 12 500 1000000000"), "1000000000 samples of 12 leads .* take 24000000000"),
    "1e14 samples a frame": (
        wfdb_case(digital=DIGITAL[:1], lines=["rec.dat 16x99999999999999 1/mV 0 0 0 0 0 I"]),
        r"rec\.dat holds 2000 bytes",
    ),
    "offset past the end": (
        wfdb_case(digital=DIGITAL[:1], lines=["rec.dat 16+99999 1/mV"]),
        "holds 0 bytes of signal",
    ),
    "wrong checksum": (wfdb_case(checksum="4242"), r"lead II in rec\.dat does not have the checksum"),
    "flac of rubbish": (lambda folder: flac(folder, b"fLaC" + bytes(500)), r"rec\.dat: is not a readable FLAC file"),
    "flac bomb": (flac_bomb, r"rec\.dat: claims to hold 320000000 bytes"),
    "segments of a gap": (segmented("s1 300", "~ 9000000000", first="rec/2 2 500"), "claims to hold"),
    "segment twice": (segmented("s1 300", "s1 300"), "segment s1 is listed twice"),
    "segment of itself": (segmented("rec 300", "s1 300"), "segment rec is itself divided"),
    "segment of other length": (segmented("s1 300", "s2 299"), "segment s2 differs from the length"),
    "segments missing": (segmented("s1 300"), "announces 2 segments, lists 1"),
    "segment without header": (segmented("s1 300", "s3 300"), r"s3\.hea is missing"),
    "only gaps": (segmented("~ 300", "~ 300"), "every segment is empty"),
    # DICOM
    "dicom without waveform": (dicom_case(drop_waveform), r"rec\.dcm: is a DICOM file without a waveform"),
    "dicom cut in the data": (lambda folder: damaged_dicom(folder, 150_000), r"rec\.dcm: is not a readable DICOM"),
    "dicom cut in the header": (lambda folder: damaged_dicom(folder, 1200), r"rec\.dcm: is "),
    "dicom of noise": (lambda folder: damaged_dicom(folder, 400, NOISE), r"rec\.dcm: is "),
    "deflated dicom": (deflated, r"rec\.dcm: is compressed as a whole"),
    "deflated noise": (
        lambda folder: write_bytes(deflated(folder), deflated(folder).read_bytes()[:600] + NOISE),
        r"rec\.dcm: is compressed as a whole",
    ),
    "text as dicom": (file_case("rec.dcm", b"not a DICOM file" * 50), r"rec\.dcm: is not a readable DICOM"),
    "dicom of 1e9 samples": (dicom_case(claim_more_samples), r"rec\.dcm: holds 240000 bytes of waveform"),
    "dicom without sensitivity": (
        dicom_case(remove_sensitivity),
        "lead aVL is uncalibrated .*sensitivity.* pass units=",
    ),
    "dicom in mmHg": (dicom_case(set_unit), "the unit of lead aVL, 'mmHg'"),
    "dicom companded": (dicom_case(compand), "cannot decode 16-bit samples of kind MB"),
    "dicom channels": (dicom_case(drop_channel), "defines 11 channels, stores 12"),
    "dicom skew": (dicom_case(skew_channel), "lead III is skewed by 3 samples"),
    "dicom lead twice": (dicom_case(repeat_lead), "lead II occurs twice"),
    # MATLAB
    "mat of text": (file_case("rec.mat", b"hello" * 100), r"rec\.mat: is not a readable MATLAB file"),
    "empty mat": (file_case("rec.mat", b""), r"rec\.mat: is not a readable MATLAB file"),
    "mat 7.3": (
        file_case("rec.mat", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)),
        r"rec\.mat: is not a readable HDF5 file",
    ),
    "mat of a claimed shape": (mat_of_claimed_shape, r"rec\.mat: claims to hold"),
    "mat bomb": (mat_bomb, r"rec\.mat: claims to hold 86400000 bytes"),
    "mat of noise": (
        file_case("rec.mat", b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + zlib.compress(b"x" * 99)),
        r"rec\.mat: is not a readable MATLAB file",
    ),
    "feats without description": (mat_case(feats=SIGNAL), r"rec\.mat: does not say its lead names: pass lead_names="),
    "mat of two matrices": (mat_case(a=SIGNAL, b=SIGNAL), r"rec\.mat: has no matrix 'val', but \['a', 'b'\]"),
    "mat of text variable": (mat_case(val="text"), r"rec\.mat: "),
    "mat of a cell": (mat_case(val=np.array([[{}], [1]], object)), r"rec\.mat: "),
    # NumPy
    "pickled npy": (saved_object_array, r"rec\.npy: is not a readable NumPy file: .*Python objects"),
    "npy of claimed shape": (file_case("rec.npy", npy_header((12, 10**15))), r"rec\.npy: is not a readable NumPy"),
    "empty npy": (file_case("rec.npy", b""), r"rec\.npy: is not a readable NumPy file"),
    "npz of noise": (file_case("rec.npz", b"PK\x03\x04" + bytes(90)), r"rec\.npz: is not a readable NumPy file"),
    "npz bomb": (npz_bomb, r"rec\.npz: claims to hold 96000128 bytes"),
    # arrays
    "one dimension": (array_case(np.zeros(10)), r"mapping: an ECG has shape \(leads, samples\)"),
    "no samples": (array_case(np.zeros((12, 0))), "neither of them 0"),
    "no leads at all": (array_case(np.zeros((0, 10)), lead_names=["I"]), "neither of them 0"),
    "a batch": (array_case(np.zeros((2, 12, 10))), "an ECG has shape"),
    "transposed": (array_case(FLAT.T), r"12 lead names for 10 leads; is it transposed\?  Pass signal\.T"),
    "complex": (array_case(FLAT + 1j), "a signal of type complex128 is not an ECG"),
    "bool": (array_case(FLAT > 0), "a signal of type bool"),
    "text": (array_case(FLAT.astype(str)), "a signal of type <U"),
    "object": (array_case(FLAT.astype(object)), "a signal of type object"),
    "ragged": (array_case([[1.0, 2.0], [1.0]]), r"not an array \(leads, samples\)"),
    "integers without unit": (array_case(DIGITAL), "holds integers .int16., most likely ADC counts"),
    "integer overflow": (array_case(np.full((12, 9), 2**63 - 1), units="uV"), "integers too large for a voltage"),
    "infinite": (array_case(np.pad(FLAT, ((0, 0), (0, 1)), constant_values=np.inf)), "lead I holds infinite values"),
    "overflow in volts": (array_case(np.full((12, 9), 3e38, "f4"), units="V"), "lead I holds infinite values"),
    "names twice": (array_case(FLAT, lead_names=[*STANDARD_LEADS[:11], "Lead I"]), "lead I occurs twice"),
    "no names": (array_case(FLAT, lead_names=None), "does not say its lead names"),
    "no rate given": (array_case(FLAT, sampling_rate=None), "does not say its sampling rate"),
    "rate of text": (array_case(FLAT, sampling_rate="500"), "must be a positive number of Hz, not '500'"),
    "rate of True": (array_case(FLAT, sampling_rate=True), "must be a positive number of Hz, not True"),
    "rate infinite": (array_case(FLAT, sampling_rate=float("inf")), "not inf"),
    "kilovolts": (array_case(FLAT, units="kV"), "the unit of lead I, 'kV', is not nV, uV, mV or V"),
    "two units": (array_case(FLAT, units=["mV", "uV"]), "2 units for 12 leads"),
    "mapping without signal": (lambda folder: {"ecg": FLAT}, r"has no 'signal' among its keys \['ecg'\]"),
    "number": (lambda folder: 42, "cannot read an ECG from int"),
    # files
    "no such file": (lambda folder: folder / "none", r"none: there is no such file, nor .*none\.hea"),
    "a folder": (lambda folder: folder, "there is no such file"),
    "other file": (file_case("rec.txt", b"0.1 0.2\0"), r"rec\.txt: is not a WFDB record"),
    "data without header": (file_case("rec.dat", b"\0" * 99), r"rec\.dat: is not a WFDB record with its \.hea"),
}
MISSING = {"missing data", "segment without header", "no such file", "a folder"}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_sources_are_refused_at_once_and_by_name(tmp_path, case):
    make, message = REFUSED[case]
    folder = tmp_path / "records"
    folder.mkdir()
    source = make(folder)
    with watched(folder), pytest.raises((ValueError, OSError), match=message) as error:
        read_ecg(source)
    assert type(error.value) is (FileNotFoundError if case in MISSING else EcgReadError)


def test_a_record_is_not_redescribed_in_passing():
    record = read_ecg(SIGNAL, lead_names=STANDARD_LEADS, sampling_rate=RATE)
    with pytest.raises(EcgReadError, match=r"dataclasses\.replace"):
        read_ecg(record, units="uV")
    with pytest.raises(EcgReadError, match="float32 or float64"):
        EcgRecord(DIGITAL, STANDARD_LEADS, RATE)


words = st.sampled_from(
    ["rec", "rec.dat", "/2", "12", "1", "0", "-1", "500", "16", "212", "16x3", "8:9", "516+4", "1000/mV", "200(3)/uV"]
) | st.sampled_from(["1e400", "~", "..", "/", "#", "\n", "\t", "\0", "µ", "rec/1", "9" * 30])


@fresh_folder
@given(header=st.one_of(st.binary(max_size=300), st.lists(words, max_size=40).map(lambda w: " ".join(w).encode())))
def test_any_bytes_as_header_end_in_a_record_or_a_clear_error(tmp_path_factory, header):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "rec.dat").write_bytes(bytes(range(200)))
    (folder / "rec.hea").write_bytes(header)
    with watched(folder):
        try:
            assert read_ecg(folder / "rec").signal.size > 0
        except (EcgReadError, OSError) as error:
            assert "rec" in str(error)


@fresh_folder
@given(place=st.integers(0, 4000), rubbish=st.binary(min_size=1, max_size=40), suffix=st.sampled_from(["dcm", "mat"]))
def test_damaged_binary_files_end_in_a_record_or_a_clear_error(tmp_path_factory, place, rubbish, suffix):
    folder = tmp_path_factory.mktemp("fuzz")
    if suffix == "mat":
        scipy.io.savemat(folder / "rec.mat", {"val": DIGITAL[:, :100]}, do_compression=place % 2 == 0)
        content = (folder / "rec.mat").read_bytes()
    else:
        content = Path(DICOM_ECG).read_bytes()[:60_000]
    place %= len(content)
    (folder / f"rec.{suffix}").write_bytes(content[:place] + rubbish + content[place + len(rubbish) :])
    with watched(folder):
        try:
            read_ecg(folder / f"rec.{suffix}", lead_names=STANDARD_LEADS, sampling_rate=RATE, units="uV")
        except EcgReadError as error:
            assert "rec" in str(error)


# ---- real data


def test_cinc_records_agree_with_wfdb(cinc2021_dir):
    headers = sorted(cinc2021_dir.rglob("*.hea"))
    gains = set()
    for header in headers:
        name = str(header.with_suffix(""))
        signal, fields = wfdb.rdsamp(name)
        record = read_ecg(header)
        np.testing.assert_array_equal(record.signal, signal.T)
        assert record.sampling_rate == fields["fs"] and record.lead_names == STANDARD_LEADS
        assert list(record.metadata["comments"]) == fields["comments"]
        gains |= set(wfdb.rdheader(name).adc_gain)
    assert len(headers) == 42 and gains == {1000.0, 4880.0}


def test_ptb_xl_records_agree_with_wfdb(ptb_xl_500hz_dir):
    headers = sorted(ptb_xl_500hz_dir.rglob("*.hea"))
    for header in headers:
        record = read_ecg(header)
        np.testing.assert_array_equal(record.signal, wfdb.rdsamp(str(header.with_suffix("")))[0].T)
        assert record.lead_names == STANDARD_LEADS and (record.sampling_rate, record.duration) == (500, 10)
    assert len(headers) == 48


def test_code15_files_need_a_description(code15_dir):
    path = sorted(code15_dir.glob("org/*.mat"))[0]
    with pytest.raises(EcgReadError, match="does not say its lead names"):
        read_ecg(path)
    record = read_ecg(path, lead_names=STANDARD_LEADS, sampling_rate=400)
    np.testing.assert_array_equal(record.signal, scipy.io.loadmat(path)["feats"])


# ---- as part of a model's code on the Hub


def test_optional_readers_are_no_requirement_of_a_hub_repo(monkeypatch):
    for module in (wfdb_ecg, dicom_ecg, reading_ecg):
        assert not {"pydicom", "soundfile", "wfdb"} & set(get_imports(module.__file__))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match="pydicom"):
        read_ecg(DICOM_ECG)
