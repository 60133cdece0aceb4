"""Reading WFDB records (PhysioNet's format): header(5) and signal(5) of the WFDB Applications Guide.

Written on NumPy alone, for three reasons: a header can never reach the network or a file outside its own folder,
nothing in it is replaced by a silent default (an absent gain, a unit with a letter outside ASCII), and a ten-second
record takes half a millisecond.  Only FLAC signal files (formats 508, 516, 524) need another library, soundfile.
"""

import math
import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .record_ecg import EcgReadError, RawEcg, refuse_bomb

MAX_HEADER_BYTES = 1 << 20

_ALIGNED = {"8": "i1", "16": "<i2", "32": "<i4", "61": ">i2", "80": "u1", "160": "<u2"}
_FLAC = ("508", "516", "524")
_BITS = {"16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10}
_BITS |= {"508": 8, "516": 16, "524": 24}
_BLOCKS = {"24": (1, 3), "212": (2, 3), "310": (3, 4), "311": (3, 4)}  # samples and bytes in a block
_BLOCKS |= {name: (1, np.dtype(dtype).itemsize) for name, dtype in _ALIGNED.items()}

_RECORD = re.compile(r"(\S+?)(?:/(\d+))?\s+(\d+)(?:\s+([^\s/]+)\S*(?:\s+(\d+)(?:\s.*)?)?)?", re.ASCII)
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?", re.ASCII)
_GAIN = re.compile(r"([-+.\deE]+)(?:\((-?\d+)\))?(?:/(\S+))?", re.ASCII)
_NAME = re.compile(r"[\w.+-]+")


class _Signal(NamedTuple):
    """One signal specification line of a header."""

    file: str
    format: str
    samples_per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    units: str
    initial: int
    checksum: int | None
    name: str | None


class WfdbHeader(NamedTuple):
    """The first line of a header; `lines` are those of the signals, or of the segments, which are not parsed yet."""

    path: Path
    segments: int | None
    signals: int
    frame_rate: float | None
    frames: int
    lines: list[str]
    comments: tuple[str, ...]


class DigitalWfdb(NamedTuple):
    """A record of one segment as it is stored: (signal - baseline) / gain is in `units`, lead by lead."""

    signal: np.ndarray  # (leads, samples), int16 where the formats have 16 bits or fewer, else int32
    gain: list[float]  # neither 0 nor infinite
    baseline: list[int]
    units: list[str]
    lead_names: list[str | None]
    sampling_rate: float | None
    invalid: list[int | None]  # the value that marks an invalid sample
    skew: list[int]  # samples by which a lead is stored too late
    comments: tuple[str, ...]


def header_path(path: Path) -> Path:
    """The header of the record that `path` names: with or without `.hea`, or by its `.dat` or `.mat` file."""
    return path.with_suffix(".hea") if path.suffix in (".hea", ".dat", ".mat") else Path(f"{path}.hea")


def read_wfdb(path: Path, verify_checksum: bool = True) -> RawEcg:
    """The record whose header is `path`, in the units of its header; see `reading_ecg.read_ecg`."""
    header = read_wfdb_header(path)
    if header.segments is not None:
        return _read_segments(header, verify_checksum)
    return _to_physical(_read_digital(header, verify_checksum))


def read_digital_wfdb(path: Path, verify_checksum: bool = True) -> DigitalWfdb:
    """The record whose header is `path`, in integers.

    Raises:
        EcgReadError: as `reading_ecg.read_ecg`, and where the record has several segments.
        OSError: a file is missing or cannot be read.
    """
    header = read_wfdb_header(path)
    if header.segments is not None:
        raise EcgReadError(f"{path}: has several segments; read_ecg joins them, in physical units")
    return _read_digital(header, verify_checksum)


def read_wfdb_header(path: Path) -> WfdbHeader:
    """The header at `path`, its signal or segment lines as they are."""
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise EcgReadError(f"{path}: more than {MAX_HEADER_BYTES} bytes, too long for a WFDB header")
    lines = [line.strip() for line in path.read_bytes().decode("utf-8", "replace").splitlines()]
    fields = [line for line in lines if line and not line.startswith("#")]
    match = _RECORD.fullmatch(fields[0]) if fields else None
    if match is None:
        raise EcgReadError(f"{path}: is not a WFDB header: its first line is {fields[:1]}")
    _, segments, signals, rate, frames = match.groups()
    return WfdbHeader(
        path,
        _integer(path, segments) if segments else None,
        _integer(path, signals),
        _number(path, rate) if rate else None,
        _integer(path, frames or "0"),
        fields[1:],
        tuple(line.lstrip("# \t") for line in lines if line.startswith("#")),
    )


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EcgReadError(f"{path}: {text[:40]!r} is not a number") from None


def _integer(path: Path, text: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,15}", text, re.ASCII):
        raise EcgReadError(f"{path}: {text[:40]!r} is not a whole number")
    return int(text)


def _parse_signal(path: Path, line: str) -> _Signal:
    file, *rest = line.split(None, 8)
    form, gain, _, zero, initial, checksum, _, name = rest + [None] * (8 - len(rest))
    match = _FORMAT.fullmatch(form or "")
    if match is None or match[1] not in {*_BITS, "8", "0"}:
        raise EcgReadError(f"{path}: unknown signal format {form!r} of lead {name or line}")
    calibration = _GAIN.fullmatch(gain or "0")
    if calibration is None:
        raise EcgReadError(f"{path}: cannot read the gain {gain!r} of lead {name or line}")
    adc_zero = _integer(path, zero or "0")
    return _Signal(
        file=file,
        format=match[1],
        samples_per_frame=_integer(path, match[2] or "1"),
        skew=_integer(path, match[3] or "0"),
        offset=_integer(path, match[4] or "0"),
        gain=_number(path, calibration[1]),
        baseline=_integer(path, calibration[2]) if calibration[2] else adc_zero,
        units=calibration[3] or "mV",
        initial=_integer(path, initial or "0"),
        checksum=_integer(path, checksum) if checksum else None,
        name=name,
    )


def _parse_signals(header: WfdbHeader) -> list[_Signal]:
    if header.signals != len(header.lines):
        raise EcgReadError(f"{header.path}: announces {header.signals} leads, describes {len(header.lines)}")
    if not header.lines:
        raise EcgReadError(f"{header.path}: the record has no leads")
    return [_parse_signal(header.path, line) for line in header.lines]


def _sibling(header: Path, name: str) -> Path:
    """The file `name` that a header mentions, which must lie beside it (also when both are links into one store)."""
    path = header.parent / name
    homes = (header.parent.resolve(), header.resolve().parent)
    if not _NAME.fullmatch(name) or path.resolve().parent not in homes:
        raise EcgReadError(f"{header}: names the file {name!r}, which does not lie in the record's own folder")
    if not path.is_file():
        raise FileNotFoundError(f"{header}: its file {name} is missing from {header.parent}")
    return path


def _read_digital(header: WfdbHeader, verify_checksum: bool) -> DigitalWfdb:
    path = header.path
    signals = _parse_signals(header)
    for i, signal in enumerate(signals):
        if signal.gain == 0 or not math.isfinite(signal.gain):
            raise EcgReadError(
                f"{path}: lead {signal.name or i} is uncalibrated (gain 0 or absent), its values have no unit; if you "
                "know the gain, write it into the header, e.g. 200/mV"
            )
    per_frame = signals[0].samples_per_frame
    if per_frame == 0 or any(signal.samples_per_frame != per_frame for signal in signals):
        raise EcgReadError(f"{path}: the leads differ in sampling rate; read them apart and resample them to one rate")

    frames = header.frames
    parts: list[np.ndarray] = []
    groups = [list(group) for _, group in groupby(signals, lambda signal: signal.file)]
    for group in groups:
        file = group[0].file
        if len({(s.format, s.offset) for s in group}) > 1 or sum(other[0].file == file for other in groups) > 1:
            raise EcgReadError(f"{path}: the leads stored in {file} are not side by side in one format")
        part = _read_samples(path, _sibling(path, file), group, frames)  # (leads of this file, samples)
        if verify_checksum:
            _verify(path, group, part)
        frames = part.shape[1] // per_frame  # a header may leave the length to the first file
        parts.append(part)
    dtype = np.int16 if all(_BITS.get(signal.format, 32) <= 16 for signal in signals) else np.int32
    return DigitalWfdb(
        signal=(parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(dtype, copy=False),
        gain=[signal.gain for signal in signals],
        baseline=[signal.baseline for signal in signals],
        units=[signal.units for signal in signals],
        lead_names=[signal.name for signal in signals],
        sampling_rate=None if header.frame_rate is None else header.frame_rate * per_frame,
        invalid=[None if signal.format == "8" else -(1 << _BITS[signal.format] - 1) for signal in signals],
        skew=[signal.skew * per_frame for signal in signals],
        comments=header.comments,
    )


def _to_physical(digital: DigitalWfdb) -> RawEcg:
    """The record in its units, its leads in step; invalid samples, and those a skewed lead lacks, are NaN."""
    baseline = np.array(digital.baseline, np.float64)[:, None]
    signal = np.subtract(digital.signal, baseline, order="C")  # (leads, samples)
    signal /= np.array(digital.gain)[:, None]
    for row, stored, invalid, skew in zip(signal, digital.signal, digital.invalid, digital.skew, strict=True):
        if invalid is not None:
            row[stored == invalid] = np.nan
        if skew:
            row[:-skew], row[-skew:] = row[skew:].copy(), np.nan
    comments = {"comments": digital.comments}
    return RawEcg(signal, digital.lead_names, digital.sampling_rate, digital.units, comments)


def _verify(path: Path, group: list[_Signal], digital: np.ndarray) -> None:
    """Compare the 16-bit sum of each lead's samples with its header's; WFDB leaves it open what a skewed lead sums."""
    for signal, total in zip(group, digital.sum(axis=1, dtype=np.int64), strict=True):
        if signal.checksum is not None and not signal.skew and (int(total) - signal.checksum) % 65536:
            raise EcgReadError(
                f"{path}: lead {signal.name} in {signal.file} does not have the checksum of the header, the file was "
                "damaged or exchanged; read it all the same with verify_checksum=False"
            )


def _read_samples(header: Path, path: Path, group: list[_Signal], frames: int) -> np.ndarray:
    """The ADC values of the leads in one signal file, (leads, samples); all there are if `frames` is 0."""
    form, offset, per_frame = group[0].format, group[0].offset, group[0].samples_per_frame
    if form in _FLAC:
        return _read_flac(path, form, offset, len(group), frames * per_frame)
    if form not in _BLOCKS:
        raise EcgReadError(f"{header}: signal format {form} holds no samples")
    in_block, block_bytes = _BLOCKS[form]
    frame = len(group) * per_frame
    available = max(path.stat().st_size - offset, 0)
    frames = frames or available * in_block // (block_bytes * frame)
    count = frames * frame
    size = -(-count * block_bytes // in_block)
    size += size % 2 if form == "310" else 0  # made of 16-bit words
    if size > available or frames == 0:
        raise EcgReadError(
            f"{header}: {path.name} holds {available} bytes of signal, but {frames} samples of {len(group)} leads in "
            f"format {form} take {size}"
        )
    values = _decode(form, np.fromfile(path, np.uint8, size, offset=offset), count)
    # (frames, leads, samples in a frame) -> (leads, samples)
    digital = values.reshape(frames, len(group), per_frame).swapaxes(0, 1).reshape(len(group), -1)
    if form == "8":
        initial = np.array([signal.initial for signal in group])
        digital = digital.cumsum(axis=1, dtype=np.int64) + initial[:, None]
        if np.abs(digital).max() >> 31:
            raise EcgReadError(f"{header}: the differences in {path.name} add up to more than 32 bits hold")
    return digital


def _decode(form: str, data: np.ndarray, count: int) -> np.ndarray:
    """`count` samples from the bytes of a signal file."""
    if form in _ALIGNED:
        values = data.view(_ALIGNED[form])
        return values - np.int32(1 << _BITS[form] - 1) if form in ("80", "160") else values
    block_bytes = _BLOCKS[form][1]
    data = np.pad(data, (0, -data.size % block_bytes)).reshape(-1, block_bytes).astype(np.int32)
    words = (data << (8 * np.arange(block_bytes, dtype=np.int32))).sum(axis=1, dtype=np.int64)  # little-endian blocks
    if form == "24":
        parts = [words]
    elif form == "212":  # the high bits of both samples share the middle byte
        parts = [words & 0xFFF, (words >> 16) | (words >> 4 & 0xF00)]
    elif form == "310":  # the third sample is spread over the tops of two 16-bit words
        parts = [words >> 1 & 0x3FF, words >> 17 & 0x3FF, (words >> 11 & 0x1F) | (words >> 22 & 0x3E0)]
    else:  # 311
        parts = [words & 0x3FF, words >> 10 & 0x3FF, words >> 20 & 0x3FF]
    sign = 1 << _BITS[form] - 1
    return ((np.stack(parts, axis=1).reshape(-1)[:count] ^ sign) - sign).astype(np.int32)


def _read_flac(path: Path, form: str, offset: int, leads: int, samples: int) -> np.ndarray:
    try:  # transformers takes an import outside a try block for a requirement of every model on the Hub
        import soundfile

        with soundfile.SoundFile(path) as file:
            bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}[file.subtype]
            samples = samples or file.frames - offset
            if file.format != "FLAC" or file.channels != leads or bits > _BITS[form]:
                raise EcgReadError(f"{path}: is {bits}-bit {file.format} of {file.channels} leads, not format {form}")
            if not 0 < samples <= file.frames - offset:
                raise EcgReadError(f"{path}: holds {file.frames - offset} samples, not {samples}")
            refuse_bomb(samples * leads * 8, path.stat().st_size, path)
            file.seek(offset)
            values = file.read(samples, dtype="int32", always_2d=True).T >> (32 - bits)
    except (KeyError, RuntimeError) as error:
        raise EcgReadError(f"{path}: is not a readable FLAC file: {error}") from error
    if values.shape[1] != samples:
        raise EcgReadError(f"{path}: ends after {values.shape[1]} of {samples} samples")
    return values


def _read_segments(header: WfdbHeader, verify_checksum: bool) -> RawEcg:
    """A record of several segments, put together by lead name; gaps, and leads a segment lacks, are NaN."""
    path = header.path
    if header.segments != len(header.lines):
        raise EcgReadError(f"{path}: announces {header.segments} segments, lists {len(header.lines)}")
    layout: list[str | None] = []
    parts: dict[str, tuple[int, RawEcg]] = {}  # by name: first sample in the record, content
    total = 0
    for line in header.lines:
        name, length = line.split()[0], _integer(path, " ".join(line.split()[1:]))
        if name != "~":  # "~" is a gap
            segment = read_wfdb_header(_sibling(path, f"{name}.hea"))
            if segment.segments is not None or name in parts:
                raise EcgReadError(f"{path}: segment {name} is itself divided into segments, or listed twice")
            if length == 0:  # this one names all leads and holds no samples
                layout = [signal.name for signal in _parse_signals(segment)]
            else:
                parts[name] = total, _to_physical(_read_digital(segment, verify_checksum))
                _, frames = parts[name][1].signal.shape
                if (frames, segment.frame_rate) != (length, header.frame_rate):
                    raise EcgReadError(f"{path}: segment {name} differs from the length or sampling rate given here")
        total += length
    if not parts:
        raise EcgReadError(f"{path}: every segment is empty")
    names = layout or list(next(iter(parts.values()))[1].lead_names)
    refuse_bomb(len(names) * total * 8, sum(part.signal.nbytes for _, part in parts.values()), path)
    signal = np.full((len(names), total), np.nan)
    units: dict[str | None, str] = {}
    for segment_name, (start, part) in parts.items():
        for lead, unit, row in zip(part.lead_names, part.units, part.signal, strict=True):
            if lead not in names or units.setdefault(lead, unit) != unit or part.lead_names.count(lead) > 1:
                raise EcgReadError(
                    f"{path}: lead {lead} of segment {segment_name} is not in the layout, or in two units or rows"
                )
            signal[names.index(lead), start : start + row.size] = row
    return RawEcg(
        signal, names, header.frame_rate, [units.get(lead, "mV") for lead in names], {"comments": header.comments}
    )
