"""Which files of a folder are read, and whether other readers find the same numbers in them.

    python -m benchmarks.reading_formats FOLDER

The others: wfdb, pydicom, sierraecg (Philips) and pyedflib (EDF) where they are installed; for GE MUSE and HL7 aECG,
of which there is none, the numbers as the XML itself writes them.  "Equal" is to 1e-9 mV in every sample of every lead
that both have.  SCP-ECG has no second reader here; its files count as read, unchecked.
"""

import argparse
import base64
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgRecord, is_voltage, lead_name, millivolts

Leads = dict[str, np.ndarray]  # (samples,) in mV, by standard name
OUTCOMES = ("equal", "read, unchecked", "refused in words", "wrong", "traceback")


def by_wfdb(path: Path) -> Leads:
    import wfdb

    signal, fields = wfdb.rdsamp(str(path.with_suffix("")))
    columns = zip(fields["sig_name"], fields["units"], signal.T, strict=True)
    return {lead_name(name): values * millivolts(unit) for name, unit, values in columns if is_voltage(unit)}


def by_pydicom(path: Path) -> Leads:
    import pydicom

    dataset = pydicom.dcmread(path)
    leads: Leads = {}
    for index, group in enumerate(dataset.WaveformSequence):
        if group.WaveformOriginality != "ORIGINAL":
            continue
        for channel, values in zip(group.ChannelDefinitionSequence, dataset.waveform_array(index).T, strict=True):
            name = lead_name(channel.ChannelSourceSequence[0].CodeMeaning)
            leads[name] = values * millivolts(channel.ChannelSensitivityUnitsSequence[0].CodeValue)
    return leads


def by_sierraecg(path: Path) -> Leads:
    import sierraecg

    recording = sierraecg.read_file(str(path))
    return {lead.label: np.asarray(lead.samples, float) * 5e-3 for lead in recording.leads}  # 5 uV a step


def by_pyedflib(path: Path) -> Leads:
    import pyedflib

    with pyedflib.EdfReader(str(path)) as file:
        return {
            lead_name(name): file.readSignal(number) * millivolts(file.getPhysicalDimension(number))
            for number, name in enumerate(file.getSignalLabels())
        }


def by_muse_xml(path: Path) -> Leads:
    from defusedxml import ElementTree

    leads: Leads = {}
    for waveform in ElementTree.parse(path).iter("Waveform"):
        if waveform.findtext("WaveformType") == "Rhythm":
            for lead in waveform.iter("LeadData"):
                counts = np.frombuffer(base64.b64decode(lead.findtext("WaveFormData")), "<i2")
                step = float(lead.findtext("LeadAmplitudeUnitsPerBit"))
                leads[lead.findtext("LeadID")] = counts * step * millivolts(lead.findtext("LeadAmplitudeUnits"))
    return leads


def by_aecg_xml(path: Path) -> Leads:
    from defusedxml import ElementTree

    space = "{urn:hl7-org:v3}"
    series = next(ElementTree.parse(path).iter(f"{space}series"))
    leads: Leads = {}
    for sequence in next(series.iter(f"{space}sequenceSet")).iter(f"{space}sequence"):
        scale = sequence.find(f"{space}value/{space}scale")
        if scale is not None:
            digits = np.array(sequence.findtext(f"{space}value/{space}digits").split(), float)
            step = float(scale.get("value")) * millivolts(scale.get("unit"))
            leads[lead_name(sequence.find(f"{space}code").get("code"))] = digits * step
    return leads


def kind_of(path: Path) -> tuple[str, Callable[[Path], Leads] | None]:
    """The format of a file, and who else reads it."""
    head = path.read_bytes()[:8192].lower()
    text = head.replace(b"\0", b"")  # of UTF-16, too
    if path.suffix == ".hea":
        return "WFDB", by_wfdb
    if head[128:132] == b"dicm":
        return "DICOM", by_pydicom
    for mark, name, reader in (
        (b"restingecgdata", "Philips Sierra", by_sierraecg),
        (b"<restingecg", "GE MUSE", by_muse_xml),
        (b"annotatedecg", "HL7 aECG", by_aecg_xml),
    ):
        if mark in text:
            return name, reader
    if head.startswith(b"0       "):
        return "EDF", by_pyedflib
    return path.suffix.lstrip(".").upper() or "none", None


def outcome(path: Path, other: Callable[[Path], Leads] | None) -> str:
    """One of `OUTCOMES`."""
    try:
        record = read_ecg(path)
    except (ValueError, OSError, ImportError) as error:
        print(f"{path.name}: {error}")
        return "refused in words"
    except Exception as error:
        print(f"{path.name}: {error!r}")
        return "traceback"
    if other is None:
        return "read, unchecked"
    try:
        leads = other(path)
    except Exception as error:
        print(f"{path.name}: the other reader: {error!r}")
        return "read, unchecked"
    return "equal" if equal(record, leads) else "wrong"


def equal(record: EcgRecord, leads: Leads) -> bool:
    """Whether all leads that both have are the same, but for the ends that `metadata` says were trimmed."""
    both = [name for name in record.lead_names if name in leads]
    start, end = record.metadata.get("trimmed", (0, 0))
    expected = np.stack([leads[name][start : leads[name].size - end] for name in both])
    rows = [record.lead_names.index(name) for name in both]
    return bool(both) and np.allclose(record.signal[rows], expected, rtol=0, atol=1e-9, equal_nan=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    warnings.simplefilter("ignore")
    counts: dict[str, Counter[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".md", ".dat", ".txt", ".atr"):
            kind, other = kind_of(path)
            counts.setdefault(kind, Counter())[outcome(path, other)] += 1
    print("\n| format | files tried | " + " | ".join(OUTCOMES) + " |\n|---|" + "---|" * (len(OUTCOMES) + 1))
    for kind, found in sorted(counts.items()):
        print(f"| {kind} | {found.total()} | " + " | ".join(str(found[name]) for name in OUTCOMES) + " |")


if __name__ == "__main__":
    main()
