"""Reading DICOM waveforms: 12-lead, general and ambulatory ECG objects (DICOM PS3.3 A.34, C.10.9)."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .leads_ecg import STANDARD_LEADS, canonical_lead_name
from .record_ecg import RawEcg
from .units_ecg import EcgReadError

MIN_PADDING = 0.5  # seconds at an end that one lead alone must show the padding value where that may be a voltage too

_DTYPES = {"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}
_DEFLATED = re.compile(rb"1\.2\.840\.10008\.1\.2\.1\.99(?![\d.])")  # a transfer syntax
_SCHEMES = {"SCPECG": "5.6.3-9-", "MDC": "2:"}  # what goes before the bare number of a lead
_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "AcquisitionDateTime")


def read_dicom(
    source: Path | BinaryIO | Any, label: str, group: int | str | None = None, patient: bool = False
) -> RawEcg:
    """The recording in a DICOM file, or in a data set of pydicom.

    Of several multiplex groups it is the original one with the most standard leads, and the leads that others add to
    it; or the one that `group` names by number or label.

    `metadata` says which groups were taken of how many.  Of the patient's data nothing is kept unless `patient`.
    """
    try:  # transformers takes an import outside a try block for a requirement of every model on the Hub
        import pydicom

        if isinstance(source, pydicom.Dataset):
            return _read_dataset(source, label, group, patient)
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            head = file.read(1 << 16)
            if head[128:132] != b"DICM" and not starts_data_set(head):
                raise EcgReadError(f"{label}: is not a readable DICOM file: it starts neither with DICM nor with data")
            if _DEFLATED.search(head):
                raise EcgReadError(f"{label}: is compressed as a whole (deflate); convert it with dcmconv first")
            file.seek(0)
            tags = ["WaveformSequence", *(_PATIENT if patient else ())]
            dataset = pydicom.dcmread(file, force=True, specific_tags=tags)
            return _read_dataset(dataset, label, group, patient)
    except (EcgReadError, ImportError):
        raise
    except AttributeError as error:  # an attribute that the standard asks for
        raise EcgReadError(f"{label}: is not a readable DICOM waveform: {error}") from error
    except Exception as error:  # pydicom meets damaged files with errors of many classes
        raise EcgReadError(f"{label}: is not a readable DICOM waveform: {error!r}") from error


def starts_data_set(head: bytes) -> bool:
    """Whether a file starts with the first elements of a DICOM data set, as those without preamble do."""
    return head[:2] in (b"\2\0", b"\x08\0") and head[3:4] == b"\0" and len(head) > 132


class _Group(NamedTuple):
    """A multiplex group: its number, and what its channels are called."""

    number: int
    group: Any
    names: list[str | None]

    @property
    def standard(self) -> set[str]:
        return {name for name in self.names if name in STANDARD_LEADS}

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Recordings before derived groups (median beats), then by standard leads, then by samples."""
        original = self.group.get("WaveformOriginality") != "DERIVED"
        return original, len(self.standard) or len(self.names), self.group.get("NumberOfWaveformSamples") or 0


def _read_dataset(dataset: Any, label: str, choice: int | str | None, patient: bool) -> RawEcg:
    sequence = list(dataset.get("WaveformSequence") or [])
    if not sequence:
        raise EcgReadError(f"{label}: is a DICOM file without a waveform")
    byte_order = ">" if dataset.original_encoding[1] is False else "<"
    groups = []
    for index, item in enumerate(sequence):
        definitions = list(item.get("ChannelDefinitionSequence") or [])
        groups.append(_Group(index, item, [_lead_name(channel) for channel in definitions]))
    if choice is not None:
        titles = [str(group.group.get("MultiplexGroupLabel", "")) for group in groups]
        chosen = [group for group, title in zip(groups, titles, strict=True) if choice in (group.number, title)]
        if len(chosen) != 1:
            raise EcgReadError(f"{label}: has no one group {choice!r}; its groups are {dict(enumerate(titles))}")
        taken, others = chosen, []
    else:
        ranked = sorted(groups, key=lambda group: group.rank, reverse=True)
        taken, known = ranked[:1], ranked[0].standard
        others = [group for group in ranked[1:] if group.rank[0] == ranked[0].rank[0]]
        for group in others:  # limb leads in one group, chest leads in another; or three leads in each of four
            if group.standard and group.standard.isdisjoint(known):
                taken.append(group)
                known = known | group.standard
        taken.sort(key=lambda group: group.number)
        others = [group for group in others if group not in taken]
    parts = [_read_group(label, group, byte_order) for group in taken]
    here = {name for part in parts for name in part.lead_names}
    metadata: dict[str, Any] = {
        "group": taken[0].number if len(taken) == 1 else tuple(group.number for group in taken),
        "groups": len(groups),
        "group_label": ", ".join(str(group.group.get("MultiplexGroupLabel", "")) for group in taken),
    }
    left_out = {name: "in another group" for group in others for name in group.names if name and name not in here}
    metadata |= {"left_out": left_out} if left_out else {}
    metadata |= parts[0].metadata if len(parts) == 1 else {}
    if patient:
        metadata["patient"] = {name: str(dataset.get(name, "")) for name in _PATIENT}
    return _join(parts, [float(group.group.get("MultiplexGroupTimeOffset") or 0) for group in taken], metadata)


def _join(parts: Sequence[RawEcg], offsets: Sequence[float], metadata: dict[str, Any]) -> RawEcg:
    """The channels of several groups that start so many milliseconds after the recording: gaps are NaN."""
    if len(parts) == 1:
        return parts[0]._replace(metadata=metadata)
    rates: list[Any] = [part.sampling_rate for part in parts for _ in part.lead_names]
    if len(set(rates)) == 1:
        starts = [round((offset - min(offsets)) / 1000 * (rates[0] or 0)) for offset in offsets]
        ends = [start + len(part.signal[0]) for start, part in zip(starts, parts, strict=True)]
        signal: Any = np.full((len(rates), max(ends)), np.nan)
        row = 0
        for start, end, part in zip(starts, ends, parts, strict=True):
            signal[row : row + len(part.lead_names), start:end] = part.signal
            row += len(part.lead_names)
    else:
        signal = [channel for part in parts for channel in part.signal]
    return RawEcg(
        signal,
        [name for part in parts for name in part.lead_names],
        rates[0] if len(set(rates)) == 1 else rates,
        [unit for part in parts for unit in part.units],
        metadata,
        [gain for part in parts for gain in part.gain],
        [baseline for part in parts for baseline in part.baseline],
    )


def _read_group(label: str, numbered: _Group, byte_order: str) -> RawEcg:
    group, channels = numbered.group, int(numbered.group.NumberOfWaveformChannels)
    kind, bits = group.WaveformSampleInterpretation, group.WaveformBitsAllocated
    if kind not in _DTYPES or bits != 8 * int(_DTYPES[kind][1]):
        raise EcgReadError(f"{label}: cannot decode {bits}-bit samples of kind {kind}")
    dtype = np.dtype(byte_order + _DTYPES[kind])
    data = group.WaveformData
    if len(numbered.names) != channels or not channels:
        raise EcgReadError(f"{label}: defines {len(numbered.names)} channels, stores {channels}")
    samples = int(group.get("NumberOfWaveformSamples") or len(data) // (channels * dtype.itemsize))
    if len(data) < samples * channels * dtype.itemsize:
        raise EcgReadError(
            f"{label}: holds {len(data)} bytes of waveform; {channels} channels x {samples} samples need "
            f"{samples * channels * dtype.itemsize}"
        )
    rate = group.get("SamplingFrequency")
    rate = None if rate is None else float(rate)
    stored = np.frombuffer(data, dtype, samples * channels).reshape(samples, channels).T  # (channels, samples)
    stored, missing, trimmed = _without_padding(stored, group, rate)
    if not stored.shape[1]:
        raise EcgReadError(f"{label}: holds nothing but the padding value")

    signal = np.empty(stored.shape)  # (channels, samples)
    units: list[str | None] = []
    gain, baseline = [], []
    for row, (name, channel) in enumerate(zip(numbered.names, group.ChannelDefinitionSequence, strict=True)):
        if name in STANDARD_LEADS and abs(float(channel.get("ChannelSampleSkew") or 0)) >= 1:
            raise EcgReadError(
                f"{label}: lead {name} is skewed by {channel.ChannelSampleSkew:g} samples; align it first"
            )
        sensitivity = channel.get("ChannelSensitivity")
        unit = (channel.get("ChannelSensitivityUnitsSequence") or [{}])[0].get("CodeValue")
        units.append(None if sensitivity is None else unit or None)
        scale = float(1 if sensitivity is None else sensitivity)
        scale *= float(channel.get("ChannelSensitivityCorrectionFactor") or 1)
        offset = float(channel.get("ChannelBaseline") or 0)
        np.multiply(stored[row], scale, out=signal[row])
        if offset:
            signal[row] += offset
        gain.append(1 / scale if scale else 0.0)
        baseline.append(-offset / scale if scale else 0.0)
    if missing is not None:
        signal[missing] = np.nan
    metadata = {"trimmed": trimmed} if any(trimmed) else {}
    return RawEcg(signal, list(numbered.names), rate, units, metadata, gain, baseline)


def _without_padding(
    stored: np.ndarray, group: Any, rate: float | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
    """`stored` (channels, samples) without the ends that are padding in every channel, which samples of it were not
    measured, and how many samples were trimmed at either end.

    Some devices declare a padding value that is an ordinary voltage, such as 0.  Amid a recording the value marks a
    gap only where it lies apart from all that a channel measured, or where a channel holds nothing else.
    """
    padding = _padding_value(group, stored.dtype)
    if padding is None:
        return stored, None, (0, 0)
    marked = stored == padding  # (channels, samples)
    if not marked.any():
        return stored, None, (0, 0)
    measured = np.flatnonzero(~marked.all(axis=0))
    first, last = (measured[0], measured[-1] + 1) if measured.size else (0, 0)
    trimmed = int(first), int(stored.shape[1] - last)
    stored, marked = stored[:, first:last], marked[:, first:last]
    limits = np.iinfo(stored.dtype)
    for values, marks in zip(stored, marked, strict=True):
        rest = values[~marks].astype(np.int64)
        if not rest.size or not marks.any() or padding in (limits.min, limits.max):
            continue
        low, high = int(rest.min()), int(rest.max())
        if max(low - padding, padding - high) <= high - low:  # it may be a voltage
            ends = np.flatnonzero(~marks)
            shortest = MIN_PADDING * (rate or np.inf)
            begin = ends[0] if ends[0] >= shortest else 0
            end = ends[-1] + 1 if marks.size - ends[-1] - 1 >= shortest else marks.size
            marks[begin:end] = False
    return stored, marked if marked.any() else None, trimmed


def _padding_value(group: Any, dtype: np.dtype) -> int | None:
    """The declared padding value; None where there is none, an empty one, or one that no sample can have."""
    value = group.get("WaveformPaddingValue")
    if isinstance(value, bytes):
        return int(np.frombuffer(value, dtype, 1)[0]) if len(value) >= dtype.itemsize else None
    limits = np.iinfo(dtype)
    return int(value) if isinstance(value, int) and limits.min <= value <= limits.max else None


def _lead_name(channel: Any) -> str | None:
    """The standard name if the code, its meaning or the label gives one, else the label or meaning as it is."""
    source = (channel.get("ChannelSourceSequence") or [{}])[0]
    code = source.get("CodeValue")
    if code and str(code).isdigit() and len(str(code)) < 4:
        code = _SCHEMES.get(source.get("CodingSchemeDesignator"), "") + str(code)
    texts = [str(text) for text in (code, source.get("CodeMeaning"), channel.get("ChannelLabel")) if text]
    for text in texts:
        try:
            return canonical_lead_name(text)
        except ValueError:
            continue
    return texts[-1] if texts else None
