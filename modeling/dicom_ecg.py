"""Reading DICOM waveforms: 12-lead, general and ambulatory ECG objects (DICOM PS3.3 A.34, C.10.9)."""

from pathlib import Path
from typing import Any

import numpy as np

from .leads_ecg import canonical_lead_name
from .record_ecg import EcgReadError, RawEcg

_DTYPES = {"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}


def read_dicom(path: Path) -> RawEcg:
    """The recording in a DICOM file: of several multiplex groups the original one with the most leads.

    `metadata` says which group was taken of how many.  Nothing of the patient's data is kept.
    """
    with path.open("rb") as file:
        try:  # transformers takes an import outside a try block for a requirement of every model on the Hub
            import pydicom
            from pydicom.filereader import read_file_meta_info
            from pydicom.uid import DeflatedExplicitVRLittleEndian

            if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise EcgReadError(f"{path}: is compressed as a whole (deflate); convert it with dcmconv first")
            dataset = pydicom.dcmread(file, specific_tags=["WaveformSequence"])
            groups = list(dataset.get("WaveformSequence") or [])
            if not groups:
                raise EcgReadError(f"{path}: is a DICOM file without a waveform")
            index = max(range(len(groups)), key=lambda i: _rank(groups[i]))
            return _read_group(path, groups[index], "<" if dataset.original_encoding[1] else ">", index, len(groups))
        except (EcgReadError, ImportError):
            raise
        except Exception as error:  # pydicom meets damaged files with errors of many classes
            raise EcgReadError(f"{path}: is not a readable DICOM waveform: {error!r}") from error


def _rank(group: Any) -> tuple[bool, int, int]:
    """Recordings before derived groups (median beats), then by leads, then by samples."""
    original = group.get("WaveformOriginality") != "DERIVED"
    return original, group.get("NumberOfWaveformChannels", 0), group.get("NumberOfWaveformSamples", 0)


def _read_group(path: Path, group: Any, byte_order: str, index: int, groups: int) -> RawEcg:
    samples, channels = int(group.NumberOfWaveformSamples), int(group.NumberOfWaveformChannels)
    kind, bits = group.WaveformSampleInterpretation, group.WaveformBitsAllocated
    if kind not in _DTYPES or bits != 8 * int(_DTYPES[kind][1]):
        raise EcgReadError(f"{path}: cannot decode {bits}-bit samples of kind {kind}")
    dtype = np.dtype(byte_order + _DTYPES[kind])
    if len(group.WaveformData) < samples * channels * dtype.itemsize:
        raise EcgReadError(
            f"{path}: holds {len(group.WaveformData)} bytes of waveform; {channels} channels x {samples} samples need "
            f"{samples * channels * dtype.itemsize}"
        )
    definitions = list(group.ChannelDefinitionSequence)
    if len(definitions) != channels:
        raise EcgReadError(f"{path}: defines {len(definitions)} channels, stores {channels}")

    stored = np.frombuffer(group.WaveformData, dtype, samples * channels).reshape(samples, channels)
    names, units, rows = [], [], []
    for channel, values in zip(definitions, stored.T, strict=True):
        name = _lead_name(channel)
        if "ChannelSensitivity" not in channel or not channel.get("ChannelSensitivityUnitsSequence"):
            raise EcgReadError(f"{path}: lead {name} has no channel sensitivity, so its values have no unit")
        if abs(float(channel.get("ChannelSampleSkew") or 0)) >= 1:
            raise EcgReadError(
                f"{path}: lead {name} is skewed by {channel.ChannelSampleSkew:g} samples; align it first"
            )
        scale = float(channel.ChannelSensitivity) * float(channel.get("ChannelSensitivityCorrectionFactor") or 1)
        row = values * scale + float(channel.get("ChannelBaseline") or 0)
        if "WaveformPaddingValue" in group:  # marks samples that were not measured
            row[values == np.frombuffer(group.WaveformPaddingValue, dtype, 1)] = np.nan
        names.append(name)
        units.append(channel.ChannelSensitivityUnitsSequence[0].CodeValue)
        rows.append(row)
    metadata = {"group": index, "groups": groups, "group_label": group.get("MultiplexGroupLabel", "")}
    return RawEcg(np.stack(rows), names, float(group.SamplingFrequency), units, metadata)


def _lead_name(channel: Any) -> str | None:
    """The standard name if the code, its meaning or the label gives one, else the label or meaning as it is."""
    source = (channel.get("ChannelSourceSequence") or [{}])[0]
    texts = [source.get("CodeValue"), source.get("CodeMeaning"), channel.get("ChannelLabel")]
    texts = [text for text in texts if text]
    for text in texts:
        try:
            return canonical_lead_name(text)
        except ValueError:
            continue
    return texts[-1] if texts else None
