"""`EcgRecord` -> a WFDB record or a DICOM file, in integers: what was read from integers is written as the same ones.

Research use only, not a medical device.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .leads_ecg import STANDARD_LEADS
from .record_ecg import EcgRecord, millivolts

GAINS = (200.0, 1e3, 1e4, 1e5, 1e6)  # integers per mV that are tried where the source had none
MAX_INT16, MAX_INT32 = (1 << 15) - 1, (1 << 31) - 1  # the numbers below their negatives mark what was not measured
EXACT = 1e-3  # of a step: beyond rounding in float64

_MDC_NUMBERS = dict(zip(STANDARD_LEADS, (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8), strict=True))


class Integers(NamedTuple):
    """A record as integers: value in `units` = (integer - baseline) / gain, lead by lead."""

    signal: np.ndarray  # (leads, samples) int64, 0 where not measured
    missing: np.ndarray  # (leads, samples) bool
    gain: list[float]
    baseline: list[int]
    units: list[str]

    @property
    def bits(self) -> int:
        return 16 if np.abs(self.signal).max() <= MAX_INT16 else 32


def to_integers(record: EcgRecord) -> Integers:
    """The integers of the source; where it had none, those of the coarsest of `GAINS` that loses nothing.

    Where none of them does, samples are rounded to steps of 2^-30 of the largest amplitude or finer.
    """
    missing = np.isnan(record.signal)
    signal = np.where(missing, 0, record.signal).astype(np.float64)  # mV
    if record.gain and all(record.gain) and all(float(value).is_integer() for value in record.baseline):
        scale = np.array([millivolts(unit) for unit in record.units])[:, None]
        gain, baseline = np.array(record.gain)[:, None], np.array(record.baseline)[:, None]
        values = signal / scale * gain + baseline
        counts = np.where(missing, 0, np.rint(values))
        if np.abs(np.where(missing, 0, values) - counts).max() < EXACT and np.abs(counts).max() <= MAX_INT32:
            offsets = [int(value) for value in record.baseline]
            return Integers(counts.astype(np.int64), missing, list(record.gain), offsets, list(record.units))
    largest = float(np.abs(signal).max()) or 1.0
    exact = (each for each in GAINS if np.abs(signal * each - np.rint(signal * each)).max() < EXACT)
    common = next((each for each in exact if each * largest <= MAX_INT32), 2.0 ** np.floor(np.log2(2**30 / largest)))
    leads = len(record.lead_names)
    return Integers(
        np.rint(signal * common).astype(np.int64), missing, [float(common)] * leads, [0] * leads, ["mV"] * leads
    )


def write_ecg(record: EcgRecord, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write a recording so that `read_ecg` reads the same; returns the file to read.

    Args:
        record: what to write.  Of its metadata only the comments of a WFDB header are kept; of the patient nothing.
        path: ending in `.dcm`: a DICOM General ECG (16 bits, or the 32-bit kind where the samples need it), in
            `.hea` or nothing: a WFDB record of `.hea` and `.dat`.
        overwrite: replace files that are there.

    Samples that were not measured (NaN) are marked as such; DICOM's readers may trim them at the ends.

    Raises:
        FileExistsError: unless `overwrite`.
        ValueError: another ending, or a name or value that the format cannot hold.
    """
    path = Path(path)
    if path.suffix not in (".dcm", ".hea", ""):
        raise ValueError(f"{path}: ends neither in .dcm (DICOM) nor in .hea or nothing (WFDB)")
    files = [path] if path.suffix == ".dcm" else [path.with_suffix(".hea"), path.with_suffix(".dat")]
    for file in files:
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} is there already; pass overwrite=True to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    (_write_dicom if path.suffix == ".dcm" else _write_wfdb)(record, to_integers(record), path)
    return files[0]


def _write_wfdb(record: EcgRecord, integers: Integers, path: Path) -> None:
    import wfdb

    if not re.fullmatch(r"[-\w]+", path.stem):
        raise ValueError(f"{path}: names of WFDB records have letters, digits, - and _ alone")
    mark = -(MAX_INT16 if integers.bits == 16 else MAX_INT32) - 1
    wfdb.wrsamp(
        path.stem,
        fs=float(record.sampling_rate),
        units=integers.units,
        sig_name=list(record.lead_names),
        d_signal=np.where(integers.missing, mark, integers.signal).T,  # (samples, leads)
        fmt=[str(integers.bits)] * len(record.lead_names),
        adc_gain=integers.gain,
        baseline=integers.baseline,
        comments=list(record.metadata.get("comments", ())),
        write_dir=str(path.parent),
    )


def _write_dicom(record: EcgRecord, integers: Integers, path: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        ExplicitVRLittleEndian,
        General32bitECGWaveformStorage,
        GeneralECGWaveformStorage,
        generate_uid,
    )
    from pydicom.valuerep import format_number_as_ds

    def item(**elements: Any) -> Dataset:
        dataset = Dataset()
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        return dataset

    def code(value: str, scheme: str, meaning: str) -> list[Dataset]:
        return [item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]

    channels = []
    for name, gain, baseline, unit in zip(
        record.lead_names, integers.gain, integers.baseline, integers.units, strict=True
    ):
        step = 1000 * millivolts(unit) / gain  # uV
        channel = item(
            ChannelLabel=name[:16],
            ChannelSensitivity=format_number_as_ds(step),
            ChannelSensitivityUnitsSequence=code("uV", "UCUM", "microvolt"),
            ChannelSensitivityCorrectionFactor="1",
            ChannelBaseline=format_number_as_ds(-baseline * step),
            ChannelSampleSkew="0",
            WaveformBitsStored=integers.bits,
        )
        if name in _MDC_NUMBERS:
            channel.ChannelSourceSequence = code(f"2:{_MDC_NUMBERS[name]}", "MDC", f"Lead {name}")
        channels.append(channel)
    group = item(
        WaveformOriginality="ORIGINAL",
        NumberOfWaveformChannels=len(channels),
        NumberOfWaveformSamples=integers.signal.shape[1],
        SamplingFrequency=format_number_as_ds(float(record.sampling_rate)),
        ChannelDefinitionSequence=channels,
        WaveformBitsAllocated=integers.bits,
        WaveformSampleInterpretation="SS" if integers.bits == 16 else "SL",
    )
    dtype = np.dtype("<i2" if integers.bits == 16 else "<i4")
    mark = np.iinfo(dtype).min
    group.add_new("WaveformData", "OW", np.where(integers.missing, mark, integers.signal).T.astype(dtype).tobytes())
    if integers.missing.any():
        group.add_new("WaveformPaddingValue", "OW", np.array(mark, dtype).tobytes())

    storage = GeneralECGWaveformStorage if integers.bits == 16 else General32bitECGWaveformStorage
    dataset = item(
        SOPClassUID=storage,
        SOPInstanceUID=generate_uid(),
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        Modality="ECG",
        PatientName="",
        PatientID="",
        PatientBirthDate="",
        PatientSex="",
        StudyDate="",
        StudyTime="",
        ReferringPhysicianName="",
        StudyID="",
        AccessionNumber="",
        SeriesNumber=1,
        InstanceNumber=1,
        Manufacturer="",
        WaveformSequence=[group],
    )
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = storage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
