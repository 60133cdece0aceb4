"""ECG files as carts, monitors and archives write them, made of a few samples."""

import io
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, GeneralECGWaveformStorage, generate_uid

from ecgformers.modeling.leads_ecg import STANDARD_LEADS

RATE = 500
COUNTS = np.random.default_rng(1).integers(-1200, 1200, (12, 600)).astype("<i2")  # (leads, samples)
PRESSURE = np.full((1, 600), 800, "<i2")
NAME, IDENTITY = "Zweistein^Alberta", "PID-4711-0815"  # of no patient
SCP_NUMBERS = (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def dicom_channel(name: str, unit: str | None = "uV", sensitivity: float | None = 2.5, **source: str) -> Dataset:
    """A channel by its label, or by a code (CodeValue=, CodingSchemeDesignator=, CodeMeaning=)."""
    channel = item(ChannelLabel=name, WaveformBitsStored=16)
    if source:
        channel.ChannelSourceSequence = [item(**source)]
    if sensitivity is not None:
        channel.ChannelSensitivity = sensitivity
        channel.ChannelSensitivityCorrectionFactor = 1
        channel.ChannelBaseline = 0
    if unit is not None:
        channel.ChannelSensitivityUnitsSequence = [item(CodeValue=unit, CodingSchemeDesignator="UCUM")]
    return channel


def dicom_group(counts: np.ndarray, channels: Sequence[Dataset], rate: float | None = RATE, **more: Any) -> Dataset:
    """A multiplex group of counts (channels, samples)."""
    group = item(
        WaveformOriginality="ORIGINAL",
        NumberOfWaveformChannels=counts.shape[0],
        NumberOfWaveformSamples=counts.shape[1],
        ChannelDefinitionSequence=list(channels),
        WaveformBitsAllocated=16,
        WaveformSampleInterpretation="SS",
    )
    if rate is not None:
        group.SamplingFrequency = rate
    group.add_new("WaveformData", "OW", counts.T.astype("<i2").tobytes())
    for keyword, value in more.items():
        if keyword == "padding":
            group.add_new("WaveformPaddingValue", "OW", struct.pack("<h", value) if isinstance(value, int) else value)
        else:
            setattr(group, keyword, value)
    return group


def write_dicom(path: Path, *groups: Dataset, preamble: bool = True) -> Path:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = GeneralECGWaveformStorage, generate_uid()
    dataset.PatientName, dataset.PatientID = NAME, IDENTITY
    dataset.PatientBirthDate, dataset.PatientSex = "19010203", "F"
    dataset.WaveformSequence = list(groups)
    if preamble:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(path, enforce_file_format=True)
    else:
        dataset.save_as(path, implicit_vr=True, little_endian=True)
    return path


def standard_group(counts: np.ndarray = COUNTS, **more: Any) -> Dataset:
    return dicom_group(counts, [dicom_channel(lead) for lead in STANDARD_LEADS], **more)


def write_wfdb(
    folder: Path,
    channels: Sequence[tuple[str, str, np.ndarray]],
    *,
    record: str = "rec",
    named: str | None = None,
    rate: float = RATE,
    frames: str = "",
    encoding: str = "utf-8",
    newline: str = "\n",
    comments: Sequence[str] = (),
    checksums: bool = True,
) -> Path:
    """A record in format 16 of channels (name, gain/unit, counts); several samples a frame where counts are longer."""
    shortest = min(len(counts) for _, _, counts in channels)
    named = record if named is None else named
    interleaved = [counts.reshape(shortest, -1) for _, _, counts in channels]
    np.concatenate(interleaved, axis=1).astype("<i2").tofile(folder / f"{record}.dat")
    lines = [f"{named} {len(channels)} {rate:g} {frames or shortest}"]
    for name, gain, counts in channels:
        width = len(counts) // shortest
        total = int(counts.sum()) % 65536 if checksums else 1
        lines.append(f"{named}.dat 16{f'x{width}' if width > 1 else ''} {gain} 16 0 {counts[0]} {total} 0 {name}")
    text = newline.join([*lines, *(f"# {comment}" for comment in comments)]) + newline
    (folder / f"{record}.hea").write_bytes(text.encode(encoding))
    return folder / record


def standard_channels(gain: str = "1000/mV", counts: np.ndarray = COUNTS) -> list[tuple[str, str, np.ndarray]]:
    return [(lead, gain, row) for lead, row in zip(STANDARD_LEADS, counts, strict=True)]


def zipped(folder: Path, *names: str, prefix: str = "ecgs/") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, prefix + name)
    return content.getvalue()
