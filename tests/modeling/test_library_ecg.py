"""Files of carts and Holters, made here with the structure of each format, against the numbers that were put in."""

import base64
import sys
from pathlib import Path

import numpy as np
import pytest
from ecg_files import COUNTS, IDENTITY, NAME, RATE, zipped

from ecgformers.modeling import library_ecg
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgReadError

pytest.importorskip("ecgdatakit")
STORED = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")  # carts leave out what follows from I and II
ROWS = {lead: COUNTS[STANDARD_LEADS.index(lead)] for lead in STANDARD_LEADS}
BEAT = np.arange(60, dtype="<i2")


def muse_waveform(kind: str, rows: dict[str, np.ndarray]) -> str:
    leads = "".join(
        f"<LeadData><LeadByteCountTotal>{2 * row.size}</LeadByteCountTotal><LeadTimeOffset>0</LeadTimeOffset>"
        f"<LeadSampleCountTotal>{row.size}</LeadSampleCountTotal><LeadAmplitudeUnitsPerBit>4.88</LeadAmplitudeUnitsPerBit>"
        f"<LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits><LeadID>{lead}</LeadID><LeadSampleSize>2</LeadSampleSize>"
        f"<WaveFormData>{base64.b64encode(row.tobytes()).decode()}</WaveFormData></LeadData>"
        for lead, row in rows.items()
    )
    rate = f"<SampleBase>{RATE}</SampleBase><SampleExponent>0</SampleExponent>"
    return f"<Waveform><WaveformType>{kind}</WaveformType>{rate}{leads}</Waveform>"


def muse(folder: Path) -> Path:
    rhythm = muse_waveform("Rhythm", {lead: ROWS[lead] for lead in STORED})
    median = muse_waveform("Median", dict.fromkeys(STORED, BEAT))
    path = folder / "muse.xml"
    path.write_text(
        f"<?xml version='1.0' encoding='ISO-8859-1'?><RestingECG><MuseInfo><MuseVersion>9</MuseVersion></MuseInfo>"
        f"<PatientDemographics><PatientID>{IDENTITY}</PatientID><PatientLastName>{NAME}</PatientLastName>"
        f"</PatientDemographics>{median}{rhythm}</RestingECG>"
    )
    return path


def aecg(folder: Path) -> Path:
    def sequence(lead: str, row: np.ndarray) -> str:
        digits = " ".join(map(str, row))
        return (
            f"<component><sequence><code code='MDC_ECG_LEAD_{lead.upper()}' codeSystem='2.16.840.1.113883.6.24'/>"
            f"<value xsi:type='SLIST_PQ'><origin value='0' unit='uV'/><scale value='5' unit='uV'/>"
            f"<digits>{digits}</digits></value></sequence></component>"
        )

    time = (
        "<component><sequence><code code='TIME_ABSOLUTE' codeSystem='2.16.840.1.113883.5.4'/>"
        "<value xsi:type='GLIST_TS'><head value='20020101000000.000'/><increment value='0.002' unit='s'/></value>"
        "</sequence></component>"
    )
    body = time + "".join(sequence(lead, ROWS[lead]) for lead in STANDARD_LEADS)
    path = folder / "aecg.xml"
    path.write_text(
        "<?xml version='1.0' encoding='UTF-8'?><AnnotatedECG xmlns='urn:hl7-org:v3' "
        "xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'><id root='1.2.3'/>"
        "<componentOf><timepointEvent><componentOf><subjectAssignment><subject><trialSubject>"
        f"<id extension='{IDENTITY}'/>"
        f"<subjectDemographicPerson><name>{NAME}</name></subjectDemographicPerson></trialSubject></subject>"
        "</subjectAssignment></componentOf></timepointEvent></componentOf>"
        "<component><series><code code='RHYTHM'/><component><sequenceSet>"
        f"{body}</sequenceSet></component></series></component></AnnotatedECG>"
    )
    return path


def edf(folder: Path, labels: tuple[str, ...] = STANDARD_LEADS) -> Path:
    def column(values: list, width: int) -> str:
        return "".join(str(value).ljust(width) for value in values)

    count = len(labels)
    header = "0".ljust(8) + f"{IDENTITY} F 02-MAR-1901 {NAME}".ljust(80) + "Startdate 01-JAN-2020 X X X".ljust(80)
    header += "01.01.2000.00.00" + str(256 * (count + 1)).ljust(8) + "".ljust(44)
    header += column(["1", "1.2"], 8) + str(count).ljust(4)
    header += column(list(labels), 16) + column([""] * count, 80) + column(["uV"] * count, 8)
    header += column([-32768] * count, 8) + column([32767] * count, 8)
    header += column([-32768] * count, 8) + column([32767] * count, 8)
    header += column([""] * count, 80) + column([600] * count, 8) + column([""] * count, 32)
    path = folder / "ecg.edf"
    path.write_bytes(header.encode("latin-1") + COUNTS[:count].tobytes())
    return path


MADE = {"muse": (muse, STORED, 4.88e-3), "aecg": (aecg, STANDARD_LEADS, 5e-3), "edf": (edf, STANDARD_LEADS, 1e-3)}


@pytest.mark.parametrize("name", MADE)
def test_the_numbers_that_were_put_in(tmp_path, name):
    make, leads, millivolts = MADE[name]
    path = make(tmp_path)
    record = read_ecg(path)
    expected = np.stack([ROWS[lead] for lead in leads]) * millivolts
    assert set(leads) <= set(record.lead_names)
    rows = [record.lead_names.index(lead) for lead in leads]
    np.testing.assert_allclose(record.signal[rows], expected, rtol=1e-12)
    assert record.sampling_rate == (RATE if name != "edf" else 500)
    for other in (path.read_bytes(), zipped(tmp_path, path.name)):
        np.testing.assert_array_equal(read_ecg(other).signal, record.signal)


@pytest.mark.parametrize("name", MADE)
def test_the_patient_stays_outside_unless_asked_for(tmp_path, name):
    path = MADE[name][0](tmp_path)
    content = repr(vars(read_ecg(path)))
    assert IDENTITY not in content and NAME not in content
    assert IDENTITY in repr(read_ecg(path, keep_patient=True).metadata["patient"])


def test_the_median_beat_of_a_cart_is_read_only_when_asked_for(tmp_path):
    path = muse(tmp_path)
    assert read_ecg(path).signal.shape[1] == 600
    beat = read_ecg(path, dataset="median")
    np.testing.assert_allclose(beat.signal[0], BEAT * 4.88e-3)
    with pytest.raises(EcgReadError, match="no part 'mean'"):
        read_ecg(path, dataset="mean")


def test_the_second_with_the_calibration_pulse_is_cut_off():
    signal = np.concatenate([COUNTS, np.zeros((12, 400))], axis=1)
    signal[:, 700:800] = 200
    assert library_ecg._end_of_ecg(list(signal), 500) == 500
    assert library_ecg._end_of_ecg(list(COUNTS), 500) is None
    assert library_ecg._end_of_ecg(list(signal[:2]), 500) is None


def test_channels_without_names_of_leads_are_asked_about(tmp_path):
    path = edf(tmp_path, ("ECG", "noise"))
    with pytest.raises(EcgReadError, match=r"\(ECG, noise\) has the name of a standard lead: pass leads="):
        read_ecg(path)
    np.testing.assert_allclose(read_ecg(path, leads=["ECG"], lead_names=["II"]).signal[0], COUNTS[0] / 1000)


@pytest.mark.parametrize("content", [b"<html><body/></html>", b"<RestingECG>", b'{"a": 1}', b"0       " + b"x" * 400])
def test_what_is_no_ecg_is_refused(tmp_path, content):
    with pytest.raises(EcgReadError, match="bytes: "):
        read_ecg(content)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ecgdatakit", None)
    with pytest.raises(
        ImportError, match=r'muse\.xml: is a XML file; to read it: pip install "ecgformers\[formats\]"'
    ):
        read_ecg(muse(tmp_path))


def test_real_files_of_each_format(formats_dir):
    records = {
        path.name: read_ecg(path) for path in sorted(formats_dir.iterdir()) if path.suffix in (".xml", ".scp", ".dcm")
    }
    same = [records[name] for name in ("hl7_aecg.xml", "scp_ecg.scp", "dicom_padding_value_zero.dcm")]
    for record in same:  # one recording in three formats
        rows = [record.lead_names.index(lead) for lead in STANDARD_LEADS]
        np.testing.assert_array_equal(record.signal[rows], same[2].signal)
    for name, record in records.items():
        if name.startswith("philips"):
            assert record.signal.shape == (12, 5000) and record.metadata["trimmed"] == (0, 500)
            limb = dict(zip(record.lead_names, record.signal, strict=True))
            assert np.abs(limb["I"] + limb["III"] - limb["II"]).max() < 0.011  # 5 uV a step
        if name.startswith("ge_muse"):
            assert record.lead_names == STORED and record.signal.shape == (8, 5000)
