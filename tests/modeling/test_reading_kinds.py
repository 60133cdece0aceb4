"""Recordings as hospitals hand them out: what stands beside the ECG, what is missing, headers as they are written."""

import os
import time

import numpy as np
import pydicom
import pytest
import soundfile
import torch
import wfdb
from ecg_files import (
    COUNTS,
    IDENTITY,
    NAME,
    PRESSURE,
    RATE,
    SCP_NUMBERS,
    dicom_channel,
    dicom_group,
    standard_channels,
    standard_group,
    write_dicom,
    write_wfdb,
    zipped,
)

from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.plotting_ecg import plot_ecg
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgReadError

MICROVOLTS = COUNTS * 2.5e-3  # mV, of the DICOM groups
MILLIVOLTS = COUNTS / 1000  # mV, of the WFDB records
DESCRIBED = {"lead_names": STANDARD_LEADS, "sampling_rate": RATE}


def assert_standard(record, signal=MICROVOLTS) -> None:
    assert record.lead_names == STANDARD_LEADS and record.sampling_rate == RATE
    np.testing.assert_allclose(record.signal, signal, rtol=1e-12)


# ---- padding values


@pytest.mark.parametrize("value", [0, 90, -7, b"", b"\0", b"\xff\xff\xff\x7f"])
def test_a_padding_value_that_is_a_voltage_makes_no_holes(tmp_path, value):
    counts = np.where(COUNTS == 90, 91, COUNTS)
    counts[:, 100:400:7] = value if isinstance(value, int) else 0
    record = read_ecg(write_dicom(tmp_path / "a.dcm", standard_group(counts, padding=value)))
    assert_standard(record, counts * 2.5e-3)
    EcgFeatureExtractor(implausible_scale="ignore", min_duration=0)(record)


@pytest.mark.parametrize("value", [0, -32768])
def test_padding_at_the_ends_of_all_leads_is_trimmed(tmp_path, value):
    counts = COUNTS.copy()
    counts[:, :50], counts[:, 570:], counts[3, 200] = value, value, 0
    record = read_ecg(write_dicom(tmp_path / "a.dcm", standard_group(counts, padding=value)))
    assert_standard(record, counts[:, 50:570] * 2.5e-3)
    assert record.metadata["trimmed"] == (50, 30)


def test_padding_in_one_lead_or_apart_from_all_voltages_is_not_measured(tmp_path):
    counts = COUNTS.copy()
    counts[2, :300] = counts[5] = 0  # 0.6 s at one end, and a lead that holds nothing else
    record = read_ecg(write_dicom(tmp_path / "a.dcm", standard_group(counts, padding=0)))
    expected = counts * 2.5e-3
    expected[2, :300] = expected[5] = np.nan
    assert_standard(record, expected)
    counts = COUNTS.copy()
    counts[4, 300:350] = -32768
    record = read_ecg(write_dicom(tmp_path / "b.dcm", standard_group(counts, padding=-32768)))
    assert np.isnan(record.signal[4, 300:350]).all() and np.isnan(record.signal).sum() == 50


def test_a_recording_of_padding_alone_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", standard_group(np.zeros_like(COUNTS), padding=0))
    with pytest.raises(EcgReadError, match="nothing but the padding value"):
        read_ecg(path)


# ---- channels that are no ECG


@pytest.mark.parametrize(
    ("name", "unit"), [("ABP", "mm[Hg]"), ("RESP", "uV"), ("Marker", "uV"), ("PLETH", "1"), ("Pacer 1", "uV")]
)
def test_other_channels_of_a_dicom_group_are_left_out_by_name(tmp_path, name, unit):
    channels = [dicom_channel(lead) for lead in STANDARD_LEADS]
    channels.insert(5, dicom_channel(name, unit, 0.1))
    path = write_dicom(tmp_path / "a.dcm", dicom_group(np.insert(COUNTS, 5, PRESSURE, axis=0), channels))
    record = read_ecg(path)
    assert_standard(record)
    assert list(record.metadata["left_out"]) == [name]
    alone = read_ecg(path, leads=[name], units="mV")
    assert alone.lead_names == (name,) and alone.signal.shape == (1, 600)
    assert read_ecg(path, channels=[6, 0]).lead_names == ("aVF", "I")


def test_other_groups_of_a_dicom_file_are_left_out_by_name(tmp_path):
    pressure = dicom_group(np.ones((2, 150)), [dicom_channel("ABP", "mm[Hg]"), dicom_channel("CVP", "mm[Hg]")], 125)
    path = write_dicom(tmp_path / "a.dcm", pressure, standard_group())
    record = read_ecg(path)
    assert_standard(record)
    assert record.metadata["group"] == 1
    assert record.metadata["left_out"] == {"ABP": "in another group", "CVP": "in another group"}
    assert read_ecg(path, dataset=0, units="uV").sampling_rate == 125


@pytest.mark.parametrize(
    ("name", "gain"), [("ABP", "10/mmHg"), ("PLETH", "100/NU"), ("RESP", "500/mV"), ("EVENT", "0")]
)
def test_other_channels_of_a_wfdb_record_are_left_out_by_name(tmp_path, name, gain):
    path = write_wfdb(tmp_path, [*standard_channels()[:3], (name, gain, PRESSURE[0]), *standard_channels()[3:]])
    record = read_ecg(path)
    assert_standard(record, MILLIVOLTS)
    assert list(record.metadata["left_out"]) == [name]


def test_leads_of_the_main_rate_are_taken_and_others_can_be_chosen(tmp_path):
    path = write_wfdb(tmp_path, [*standard_channels(), ("vibration", "100/mV", PRESSURE[0, :150])], rate=125)
    record = read_ecg(path)
    assert_standard(record, MILLIVOLTS)
    assert record.metadata["left_out"] == {"vibration": "150 samples at 125.0 Hz"}
    chosen = read_ecg(path, leads=["Vibration"])
    assert chosen.sampling_rate == 125 and chosen.signal.shape == (1, 150)
    with pytest.raises(EcgReadError, match=r"differ in sampling rate .*leads="):
        read_ecg(path, leads=["I", "vibration"])
    with pytest.raises(EcgReadError, match="no one channel 'V9'; its channels are 0 I, 1 II"):
        read_ecg(path, leads=["V9"])


def test_segments_with_other_channels_and_rates_are_joined(tmp_path):
    two = [("II", "1000/mV", COUNTS[1]), ("V5", "1000/mV", COUNTS[10]), ("ABP", "10/mmHg", PRESSURE[0, :150])]
    write_wfdb(tmp_path, two, record="s1", rate=125)
    write_wfdb(tmp_path, two[:1] + two[2:], record="s2", rate=125)
    lines = ["~ 0x4 1000/mV 0 0 0 0 0 II", "~ 0x4 1000/mV 0 0 0 0 0 V5", "~ 0 10/mmHg 0 0 0 0 0 ABP"]
    (tmp_path / "lay.hea").write_text("\n".join(["lay 3 125 0", *lines]))
    (tmp_path / "rec.hea").write_text("rec/4 3 125 320\nlay 0\ns1 150\n~ 20\ns2 150\n")
    record = read_ecg(tmp_path / "rec")
    assert record.lead_names == ("II", "V5") and record.sampling_rate == RATE and record.signal.shape == (2, 1280)
    np.testing.assert_array_equal(record.signal[0], [*MILLIVOLTS[1], *[np.nan] * 80, *MILLIVOLTS[1]])
    assert np.isnan(record.signal[1, 600:]).all() and list(record.metadata["left_out"]) == ["ABP"]
    with pytest.raises(EcgReadError, match="layout of a record of several segments"):
        read_ecg(tmp_path / "lay")


# ---- twelve leads in several groups


def test_limb_and_chest_leads_in_two_groups_are_one_recording(tmp_path):
    groups = [
        dicom_group(COUNTS[i : i + 6], [dicom_channel(lead) for lead in STANDARD_LEADS[i : i + 6]]) for i in (0, 6)
    ]
    record = read_ecg(write_dicom(tmp_path / "a.dcm", *groups))
    assert_standard(record)
    assert record.metadata["group"] == (0, 1) and "left_out" not in record.metadata


def test_groups_that_follow_each_other_are_placed_in_time(tmp_path):
    groups = [
        dicom_group(
            COUNTS[i : i + 3, :150],
            [dicom_channel(lead) for lead in STANDARD_LEADS[i : i + 3]],
            MultiplexGroupTimeOffset=100 * i,  # ms
        )
        for i in (0, 3, 6, 9)
    ]
    record = read_ecg(write_dicom(tmp_path / "a.dcm", *groups))
    assert record.lead_names == STANDARD_LEADS and record.signal.shape == (12, 600)
    for row in range(12):
        start = 50 * (row // 3 * 3)
        np.testing.assert_allclose(record.signal[row, start : start + 150], MICROVOLTS[row, :150])
        assert np.isfinite(record.signal[row]).sum() == 150


def test_median_beats_are_taken_only_when_asked_for(tmp_path):
    beat = standard_group(COUNTS[:, :100], WaveformOriginality="DERIVED", MultiplexGroupLabel="MEDIAN BEAT")
    path = write_dicom(tmp_path / "a.dcm", beat, standard_group())
    assert_standard(read_ecg(path))
    assert read_ecg(path, dataset="MEDIAN BEAT").signal.shape == (12, 100)
    with pytest.raises(EcgReadError, match="no one group 'RHYTHM'"):
        read_ecg(path, dataset="RHYTHM")


# ---- arguments that supply what a file lacks


def test_dicom_without_rate_sensitivity_or_preamble(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", standard_group(rate=None))
    with pytest.raises(EcgReadError, match="pass sampling_rate="):
        read_ecg(path)
    assert_standard(read_ecg(path, sampling_rate=RATE))
    bare = dicom_group(COUNTS, [dicom_channel(lead, None, None) for lead in STANDARD_LEADS])
    path = write_dicom(tmp_path / "b.dcm", bare)
    with pytest.raises(EcgReadError, match=r"lead I is uncalibrated .*pass units="):
        read_ecg(path)
    assert_standard(read_ecg(path, units="uV"), COUNTS / 1000)
    assert_standard(read_ecg(write_dicom(tmp_path / "c.dcm", standard_group(), preamble=False)))


def test_wfdb_without_gain_rate_or_right_checksum(tmp_path):
    path = write_wfdb(tmp_path, standard_channels("0"))
    with pytest.raises(EcgReadError, match=r"lead I is uncalibrated .*pass units="):
        read_ecg(path)
    assert_standard(read_ecg(path, units="uV"), MILLIVOLTS)
    path = write_wfdb(tmp_path, standard_channels(), checksums=False)
    with pytest.raises(EcgReadError, match="verify_checksum=False"):
        read_ecg(path)
    assert_standard(read_ecg(path, verify_checksum=False), MILLIVOLTS)


def test_names_and_units_for_the_channels_or_for_the_leads(tmp_path):
    path = write_wfdb(
        tmp_path, [("a", "1000/mV", COUNTS[0]), ("b", "1000/mV", COUNTS[1]), ("ABP", "1/mmHg", PRESSURE[0])]
    )
    for names in (["DI", "DII"], ["DI", "DII", "pressure"]):
        record = read_ecg(path, lead_names=names, units="mV")
        assert record.lead_names == ("I", "II") and record.units == ("mV", "mV")
    with pytest.raises(EcgReadError, match="4 lead names for 2 leads of 3 channels"):
        read_ecg(path, lead_names=["I", "II", "III", "aVR"])
    with pytest.raises(EcgReadError, match="4 units for 2 leads"):
        read_ecg(path, units=["mV"] * 4)


# ---- names


@pytest.mark.parametrize(("scheme", "offset"), [("MDC", 131072), ("MDC", 131328), ("MDC", 0), ("SCPECG", 0)])
def test_numeric_codes_of_leads(tmp_path, scheme, offset):
    channels = [
        dicom_channel("", CodeValue=str(offset + number), CodingSchemeDesignator=scheme, CodeMeaning="MDC_ECG_LEAD")
        for number in SCP_NUMBERS
    ]
    assert_standard(read_ecg(write_dicom(tmp_path / "a.dcm", dicom_group(COUNTS, channels))))


# ---- headers as the world writes them


@pytest.mark.parametrize(
    "changes",
    [
        {"record": "rec(1)"},
        {"record": "rec (1)"},
        {"named": "made_elsewhere/rec"},
        {"named": "made\\elsewhere\\rec"},
        {"named": "C:\\data\\rec"},
        {"named": "/home/somebody/rec"},
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
        {"newline": "\r\n"},
        {"newline": "\r"},
        {"frames": "600.0"},
        {"record": "100", "named": "mitdb/100"},
        {"record": "ÉCG-ü"},
    ],
)
def test_headers_as_the_world_writes_them(tmp_path, changes):
    assert_standard(read_ecg(write_wfdb(tmp_path, standard_channels(), **changes)), MILLIVOLTS)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-16"])
@pytest.mark.parametrize("unit", ["µV", "uV", "microvolts", "UV"])
def test_microvolts_in_any_encoding(tmp_path, encoding, unit):
    path = write_wfdb(tmp_path, standard_channels(f"1/{unit}"), encoding=encoding)
    assert_standard(read_ecg(path), MILLIVOLTS)


def test_a_data_file_that_is_missing_is_said_to_be(tmp_path):
    path = write_wfdb(tmp_path, standard_channels(), record="rec(1)")
    (tmp_path / "rec(1).dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"its file rec\(1\)\.dat is missing"):
        read_ecg(path)


# ---- arrays and tensors of any type


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_any_type_with_gradients(dtype):
    tensor = torch.from_numpy(MILLIVOLTS).to(dtype).requires_grad_()
    expected = tensor.detach().double().numpy()
    assert_standard(read_ecg(tensor, **DESCRIBED), expected)
    assert_standard(read_ecg({"signal": tensor, **DESCRIBED}), expected)


def test_integer_tensors_need_units_and_sparse_ones_are_refused():
    assert_standard(read_ecg(torch.from_numpy(COUNTS), units="uV", **DESCRIBED), MILLIVOLTS)
    with pytest.raises(EcgReadError, match="holds integers"):
        read_ecg(torch.from_numpy(COUNTS), **DESCRIBED)
    with pytest.raises(EcgReadError, match="is not an array"):
        read_ecg(torch.zeros(12, 600).to_sparse(), **DESCRIBED)


def test_masked_samples_are_not_measured():
    mask = np.zeros(COUNTS.shape, bool)
    mask[4, 100:110] = True
    expected = np.where(mask, np.nan, MILLIVOLTS)
    assert_standard(read_ecg(np.ma.array(MILLIVOLTS, mask=mask), **DESCRIBED), expected)
    assert_standard(read_ecg({"signal": np.ma.array(COUNTS, mask=mask), "units": "uV", **DESCRIBED}), expected)
    assert_standard(read_ecg(np.ma.array(MILLIVOLTS), **DESCRIBED), MILLIVOLTS)
    with pytest.raises(ValueError, match="lead aVL has 10 NaN"):
        EcgFeatureExtractor(min_duration=0)(np.ma.array(MILLIVOLTS, mask=mask), RATE, STANDARD_LEADS)


# ---- where a recording may come from


def test_bytes_files_data_sets_and_archives(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", standard_group())
    write_wfdb(tmp_path, standard_channels())
    (tmp_path / "without_ending").write_bytes(path.read_bytes())
    assert_standard(read_ecg(tmp_path / "without_ending"))
    assert_standard(read_ecg(path.read_bytes()))
    assert_standard(read_ecg(pydicom.dcmread(path)))
    with path.open("rb") as file:
        assert_standard(read_ecg(file))
        assert not file.closed
    for content in (zipped(tmp_path, "a.dcm"), zipped(tmp_path, "rec.hea", "rec.dat", prefix="")):
        (tmp_path / "z").write_bytes(content)
        record = read_ecg(tmp_path / "z")
        assert record.lead_names == STANDARD_LEADS and record.source == str(tmp_path / "z")
    both = zipped(tmp_path, "a.dcm", "rec.hea", "rec.dat")
    assert_standard(read_ecg(both), MILLIVOLTS)
    assert_standard(read_ecg(both, dataset="a.dcm"))


def test_what_a_stream_or_an_archive_cannot_give_is_said(tmp_path):
    write_wfdb(tmp_path, standard_channels())
    write_wfdb(tmp_path, standard_channels(), record="other")
    with (tmp_path / "rec.hea").open() as file, pytest.raises(EcgReadError, match=r"rec\.hea: is opened as text"):
        read_ecg(file)
    with pytest.raises(EcgReadError, match=r"bytes: is but the header .* zip"):
        read_ecg((tmp_path / "rec.hea").read_bytes())
    two = zipped(tmp_path, "rec.hea", "rec.dat", "other.hea", "other.dat")
    with pytest.raises(EcgReadError, match=r"holds 2 recordings.* dataset= one of ecgs/rec\.hea, ecgs/other\.hea"):
        read_ecg(two)
    assert_standard(read_ecg(two, dataset="other"), MILLIVOLTS)
    with pytest.raises(FileNotFoundError, match=r"bytes: .*rec\.dat is missing"):
        read_ecg(zipped(tmp_path, "rec.hea"))
    (tmp_path / "inner.zip").write_bytes(two)
    with pytest.raises(EcgReadError, match="an archive in an archive"):
        read_ecg(zipped(tmp_path, "inner.zip"))
    with pytest.raises(EcgReadError, match="not a readable archive"):
        read_ecg(two[:200])


# ---- the reading budget


def refused_at_once(source, match: str) -> None:
    start = time.process_time()
    with pytest.raises(EcgReadError, match=match):
        read_ecg(source)
    assert time.process_time() - start < 1


def test_a_record_line_of_many_digits(tmp_path):
    (tmp_path / "r.hea").write_text("r 1 " + "9" * 200_000 + " x\n")
    refused_at_once(tmp_path / "r", "not a whole number")


def test_many_segments_without_samples(tmp_path):
    (tmp_path / "r.hea").write_text("r/40000 20000 500\n" + "x 0\n" * 40_000)
    (tmp_path / "x.hea").write_text("x 20000 500 0\n" + "~ 0 1/mV\n" * 20_000)
    refused_at_once(tmp_path / "r", "20000 leads, more than 1024")
    (tmp_path / "x.hea").write_text("x 2 500 0\n~ 0 1/mV 0 0 0 0 0 I\n~ 0 1/mV 0 0 0 0 0 II\n")
    refused_at_once(tmp_path / "r", "segment x is listed twice")


@pytest.mark.parametrize("frames", ["10000000000", ""])
def test_a_sparse_file(tmp_path, frames):
    (tmp_path / "r.hea").write_text(f"r 1 500 {frames}\nd.dat 16 200/mV 16 0 0 0 0 I\n")
    with (tmp_path / "d.dat").open("wb") as file:
        os.truncate(file.fileno(), 20_000_000_000)
    refused_at_once(tmp_path / "r", "claims to hold 80000000000 bytes of signal .* max_bytes=80000000000")


@pytest.mark.parametrize("rate", ["0.01", "0.1", "1e7"])
def test_a_rate_that_no_ecg_has(tmp_path, rate):
    path = write_wfdb(tmp_path, standard_channels())
    header = (tmp_path / "rec.hea").read_text().replace(f" {RATE} ", f" {rate} ", 1)
    (tmp_path / "rec.hea").write_text(header)
    refused_at_once(path, "not that of an ECG: pass sampling_rate=")
    assert_standard(read_ecg(path, sampling_rate=RATE), MILLIVOLTS)


@pytest.mark.parametrize("rate", [10**400, 0.05, -1, float("nan")])
def test_such_rates_of_arrays_are_refused_too(rate):
    with pytest.raises(EcgReadError, match="sampling rate"):
        read_ecg(MILLIVOLTS, lead_names=STANDARD_LEADS, sampling_rate=rate)


def test_constant_leads_in_flac_are_read_and_the_budget_can_be_raised(tmp_path):
    soundfile.write(tmp_path / "rec.dat", np.zeros((2_900_000, 3), "<i2"), 96_000, format="FLAC")
    lines = [f"rec.dat 516 200/mV 16 0 0 0 0 {lead}" for lead in STANDARD_LEADS[:3]]
    (tmp_path / "rec.hea").write_text("\n".join(["rec 3 500 2900000", *lines]))
    assert read_ecg(tmp_path / "rec").signal.shape == (3, 2_900_000)
    with pytest.raises(EcgReadError, match="max_bytes=69600000"):
        read_ecg(tmp_path / "rec", max_bytes=1_000_000)


# ---- the patient


def test_the_patient_stays_outside_unless_asked_for(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", standard_group())
    assert NAME not in repr(vars(read_ecg(path))) and IDENTITY not in repr(vars(read_ecg(path)))
    patient = read_ecg(path, keep_patient=True).metadata["patient"]
    assert patient["PatientName"] == NAME and patient["PatientID"] == IDENTITY
    comments = [f"Name: {NAME}", f"Patient ID = {IDENTITY}", "Age: 60", "Dx: 426783006", "Geburtsdatum: 1.2.1901"]
    path = write_wfdb(tmp_path, standard_channels(), comments=comments)
    assert read_ecg(path).metadata["comments"] == ("Age: 60", "Dx: 426783006")
    assert read_ecg(path, keep_patient=True).metadata["comments"] == tuple(comments)


# ---- annotations


def test_annotations_are_read_and_drawn_where_asked_for(tmp_path):
    path = write_wfdb(tmp_path, standard_channels())
    wfdb.wrann("rec", "atr", np.array([100, 350]), symbol=["N", "V"], fs=RATE, write_dir=str(tmp_path))
    assert "annotations" not in read_ecg(path).metadata
    record = read_ecg(path, annotations="atr")
    assert record.metadata["annotations"] == ((0.2, "N"), (0.7, "V"))
    marks = [text for text in plot_ecg(record).axes[0].texts if text.get_gid() == "annotation"]
    assert [text.get_text() for text in marks] == ["N", "V"]
    assert marks[1].get_position()[0] - marks[0].get_position()[0] == pytest.approx(0.5 * 25)  # 25 mm/s
    with pytest.raises(FileNotFoundError, match=r"rec\.qrs is missing"):
        read_ecg(path, annotations="qrs")
    with pytest.raises(EcgReadError, match="does not lie in the record's own folder"):
        read_ecg(path, annotations="/../../secret")
    with pytest.raises(EcgReadError, match="of WFDB records alone"):
        read_ecg(MILLIVOLTS, annotations="atr", **DESCRIBED)
