"""Reading WFDB records (PhysioNet's format): header(5) and signal(5) of the WFDB Applications Guide.

Written on NumPy alone, for three reasons: a header can never reach the network or a file outside its own folder,
nothing in it is replaced by a silent default (an absent gain, a unit with a letter outside ASCII), and a ten-second
record takes half a millisecond.  Only FLAC signal files (formats 508, 516, 524) need another library, soundfile.
"""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .record_ecg import (
    MAX_UNFOLDED_BYTES,
    MAX_UNFOLDING,
    RawEcg,
    decode_text,
    refuse_bomb,
    stored_bytes,
    without_patient,
)
from .units_ecg import EcgReadError

MAX_HEADER_BYTES = 1 << 20
MAX_CHANNELS = 1024
MAX_FLAC_BYTES = 1 << 28  # of signal, however small the file: FLAC folds a constant lead to next to nothing

_ALIGNED = {"8": "i1", "16": "<i2", "32": "<i4", "61": ">i2", "80": "u1", "160": "<u2"}
_FLAC = ("508", "516", "524")
_BITS = {"16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10}
_BITS |= {"508": 8, "516": 16, "524": 24}
_BLOCKS = {"24": (1, 3), "212": (2, 3), "310": (3, 4), "311": (3, 4)}  # samples and bytes in a block
_BLOCKS |= {name: (1, np.dtype(dtype).itemsize) for name, dtype in _ALIGNED.items()}

_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?", re.ASCII)
_GAIN = re.compile(r"([-+.\deE]+)(?:\((-?[\d.]+)\))?(?:/(\S+))?", re.ASCII)
_COPY = re.compile(r"\S+ \(\d+\)\S*")  # what a browser calls a second download: the one name with a blank


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
    comments: tuple[str, ...]  # those that may name the patient too


class DigitalWfdb(NamedTuple):
    """A record of one segment as it is stored: (signal - baseline) / gain is in `units`, channel by channel."""

    signals: list[np.ndarray]  # (samples,) each, int16 where the formats have 16 bits or fewer, else int32
    gain: list[float]  # neither 0 nor infinite
    baseline: list[int]
    units: list[str | None]  # None = the header gives no gain
    lead_names: list[str | None]
    sampling_rates: list[float | None]
    invalid: list[int | None]  # the value that marks an invalid sample
    skew: list[int]  # samples by which a channel is stored too late
    comments: tuple[str, ...]


def header_path(path: Path) -> Path:
    """The header of the record that `path` names: with or without `.hea`, or by its `.dat` or `.mat` file."""
    return path.with_suffix(".hea") if path.suffix in (".hea", ".dat", ".mat") else Path(f"{path}.hea")


def read_wfdb(path: Path, verify_checksum: bool = True, max_bytes: int | None = None, patient: bool = False) -> RawEcg:
    """The record whose header is `path`, in the units of its header; see `reading_ecg.read_ecg`."""
    header = read_wfdb_header(path)
    if not patient:
        header = header._replace(comments=without_patient(header.comments))
    if header.segments is not None:
        return _read_segments(header, verify_checksum, max_bytes)
    return _to_physical(_read_digital(header, verify_checksum, max_bytes))


def read_annotations(path: Path, extension: str) -> tuple[tuple[float, str], ...]:
    """The annotations beside the header `path` ("atr" are those of the beats): seconds and symbols, through wfdb.

    Raises:
        EcgReadError: the file is damaged, or the header gives no rate.
        OSError: it is missing.
    """
    rate = read_wfdb_header(path).frame_rate
    _sibling(path, f"{path.stem}.{extension}")
    if not rate:
        raise EcgReadError(f"{path}: does not say the sampling rate, by which annotations are placed in time")
    try:  # transformers takes an import outside a try block for a requirement of every model on the Hub
        import wfdb

        found = wfdb.rdann(str(path.with_suffix("")), extension)
    except ImportError:
        raise
    except Exception as error:  # wfdb meets damaged files with errors of many classes
        raise EcgReadError(
            f"{path.with_suffix(f'.{extension}')}: is not a readable annotation file: {error}"
        ) from error
    return tuple(
        (sample / (found.fs or rate), symbol)
        for sample, symbol in zip(found.sample.tolist(), found.symbol, strict=True)
    )


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
    lines = [line.strip() for line in re.split("\r\n|\r|\n", decode_text(path.read_bytes()))]
    fields = [line for line in lines if line and not line.startswith("#")]
    first = fields[0] if fields else ""
    copy = _COPY.match(first)
    name, *numbers = [copy[0], *first[copy.end() :].split()] if copy else first.split() or [""]
    if not numbers or not re.match(r"\d", numbers[0], re.ASCII):
        raise EcgReadError(f"{path}: is not a WFDB header: its first line is {first[:100]!r}")
    signals = _integer(path, numbers[0])
    segments = re.search(r"/(\d{1,15})$", name, re.ASCII)
    if segments and int(segments[1]) != len(fields) - 1 == signals:  # record 100 of a folder, and no segments
        segments = None
    return WfdbHeader(
        path,
        int(segments[1]) if segments else None,
        signals,
        _number(path, re.split("[/(]", numbers[1])[0]) if len(numbers) > 1 else None,
        _integer(path, numbers[2]) if len(numbers) > 2 else 0,
        fields[1:],
        tuple(line.lstrip("# \t") for line in lines if line.startswith("#")),
    )


def _number(path: Path, text: str) -> float:
    try:
        return float(text[:40])
    except ValueError:
        raise EcgReadError(f"{path}: {text[:40]!r} is not a number") from None


def _integer(path: Path, text: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,15}(\.0*)?", text[:40], re.ASCII):
        raise EcgReadError(f"{path}: {text[:40]!r} is not a whole number")
    return int(text.partition(".")[0])


def _parse_signal(path: Path, line: str) -> _Signal:
    copy = _COPY.match(line)
    file, *rest = [copy[0], *line[copy.end() :].split(None, 7)] if copy else line.split(None, 8)
    form, gain, _, zero, initial, checksum, _, name = rest + [None] * (8 - len(rest))
    match = _FORMAT.fullmatch(form or "")
    if match is None or match[1] not in {*_BITS, "8", "0"}:
        raise EcgReadError(f"{path}: unknown signal format {form!r} of lead {name or line[:100]}")
    calibration = _GAIN.fullmatch(gain or "0")
    if calibration is None:
        raise EcgReadError(f"{path}: cannot read the gain {gain!r} of lead {name or line[:100]}")
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
    if not 0 < header.signals <= MAX_CHANNELS:
        few = "has no leads" if not header.signals else f"has {header.signals} leads, more than {MAX_CHANNELS}"
        raise EcgReadError(f"{header.path}: the record {few}")
    return [_parse_signal(header.path, line) for line in header.lines]


def _sibling(header: Path, name: str) -> Path:
    """The file `name` that a header mentions, which must lie beside it (also when both are links into one store).

    A folder before the name is that of the machine which wrote the header; it is looked for in no case.
    """
    parts = re.split(r"[/\\]", name)
    path = header.parent / parts[-1]
    homes = (header.parent.resolve(), header.resolve().parent)
    strange = parts[-1] in ("", "~", ".") or ".." in parts or "://" in name or not name.isprintable()
    absolute = name[:1] in "/\\" or name[1:2] == ":"
    if strange or path.resolve().parent not in homes or (absolute and not path.is_file()):
        raise EcgReadError(f"{header}: names the file {name!r}, which does not lie in the record's own folder")
    if not path.is_file():
        raise FileNotFoundError(f"{header}: its file {parts[-1]} is missing from {header.parent}")
    return path


def _read_digital(header: WfdbHeader, verify_checksum: bool, max_bytes: int | None = None) -> DigitalWfdb:
    path = header.path
    signals = _parse_signals(header)
    if {signal.file for signal in signals} == {"~"} and header.frames == 0:
        raise EcgReadError(f"{path}: is the layout of a record of several segments, without samples; read that record")
    if not all(signal.samples_per_frame for signal in signals):
        raise EcgReadError(f"{path}: the leads differ in sampling rate, one has no samples at all")
    frames = header.frames
    dtype = np.int16 if all(_BITS.get(signal.format, 32) <= 16 for signal in signals) else np.int32
    stored: list[np.ndarray] = []  # (samples,) a channel
    groups = [list(group) for _, group in groupby(signals, lambda signal: signal.file)]
    for group in groups:
        file = group[0].file
        if len({(s.format, s.offset) for s in group}) > 1 or sum(other[0].file == file for other in groups) > 1:
            raise EcgReadError(f"{path}: the leads stored in {file} are not side by side in one format")
        part = _read_samples(path, _sibling(path, file), group, frames, max_bytes)
        if verify_checksum:
            _verify(path, group, part)
        frames = part[0].size // group[0].samples_per_frame  # a header may leave the length to the first file
        stored += [channel.astype(dtype, copy=False) for channel in part]
    calibrated = [signal.gain != 0 and math.isfinite(signal.gain) for signal in signals]
    rate = header.frame_rate
    return DigitalWfdb(
        signals=stored,
        gain=[signal.gain if known else 1.0 for signal, known in zip(signals, calibrated, strict=True)],
        baseline=[signal.baseline for signal in signals],
        units=[signal.units if known else None for signal, known in zip(signals, calibrated, strict=True)],
        lead_names=[signal.name for signal in signals],
        sampling_rates=[None if rate is None else rate * signal.samples_per_frame for signal in signals],
        invalid=[None if signal.format == "8" else -(1 << _BITS[signal.format] - 1) for signal in signals],
        skew=[signal.skew * signal.samples_per_frame for signal in signals],
        comments=header.comments,
    )


def _to_physical(digital: DigitalWfdb) -> RawEcg:
    """The record in its units, its leads in step; invalid samples, and those a skewed lead lacks, are NaN."""
    sizes = {stored.size for stored in digital.signals}
    one_rate = len(sizes) == 1
    if one_rate:
        signal: Any = np.empty((len(digital.signals), sizes.pop()))
    else:
        signal = [np.empty(stored.size) for stored in digital.signals]
    for row, stored, gain, baseline, invalid, skew in zip(
        signal, digital.signals, digital.gain, digital.baseline, digital.invalid, digital.skew, strict=True
    ):
        np.subtract(stored, float(baseline), out=row)
        row /= gain
        if invalid is not None and stored.min() == invalid:
            row[stored == invalid] = np.nan
        if skew:
            row[:-skew], row[-skew:] = row[skew:].copy(), np.nan
    rates = digital.sampling_rates
    return RawEcg(
        signal,
        digital.lead_names,
        rates[0] if one_rate else rates,
        digital.units,
        {"comments": digital.comments},
        digital.gain,
        digital.baseline,
    )


def _verify(path: Path, group: list[_Signal], channels: Iterable[np.ndarray]) -> None:
    """Compare the 16-bit sum of each lead's samples with its header's; WFDB leaves it open what a skewed lead sums."""
    for signal, channel in zip(group, channels, strict=True):
        if signal.checksum is None or signal.skew:
            continue
        if (int(channel.sum(dtype=np.int64)) - signal.checksum) % 65536:
            raise EcgReadError(
                f"{path}: lead {signal.name} in {signal.file} does not have the checksum of the header, the file was "
                "damaged or exchanged; read it all the same with verify_checksum=False"
            )


def _read_samples(
    header: Path, path: Path, group: list[_Signal], frames: int, max_bytes: int | None
) -> Sequence[np.ndarray] | np.ndarray:
    """The ADC values of the channels in one signal file, (samples,) each; all there are if `frames` is 0."""
    form, offset = group[0].format, group[0].offset
    widths = [signal.samples_per_frame for signal in group]
    if form in _FLAC:
        if len(set(widths)) > 1:
            raise EcgReadError(f"{header}: the leads in {path.name} differ in sampling rate, as FLAC files cannot")
        return _read_flac(path, form, offset, len(group), frames * widths[0], max_bytes)
    if form not in _BLOCKS:
        raise EcgReadError(f"{header}: signal format {form} holds no samples")
    in_block, block_bytes = _BLOCKS[form]
    frame = sum(widths)
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
    if count * 8 > MAX_UNFOLDED_BYTES:
        refuse_bomb(count * 8, stored_bytes(path), path, max_bytes)
    values = _decode(form, np.fromfile(path, np.uint8, size, offset=offset), count).reshape(frames, frame)
    if len(set(widths)) == 1:  # (frames, leads, samples in a frame) -> (leads, samples)
        channels: Sequence[np.ndarray] = values.reshape(frames, len(group), -1).swapaxes(0, 1).reshape(len(group), -1)
    else:
        ends = np.cumsum(widths)
        channels = [values[:, end - width : end].reshape(-1) for end, width in zip(ends, widths, strict=True)]
    if form == "8":
        channels = [
            channel.cumsum(dtype=np.int64) + signal.initial for channel, signal in zip(channels, group, strict=True)
        ]
        if any(np.abs(channel).max() >> 31 for channel in channels):
            raise EcgReadError(f"{header}: the differences in {path.name} add up to more than 32 bits hold")
    return channels


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


def _read_flac(path: Path, form: str, offset: int, leads: int, samples: int, max_bytes: int | None) -> np.ndarray:
    try:  # transformers takes an import outside a try block for a requirement of every model on the Hub
        import soundfile

        with soundfile.SoundFile(path) as file:
            bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}[file.subtype]
            samples = samples or file.frames - offset
            if file.format != "FLAC" or file.channels != leads or bits > _BITS[form]:
                raise EcgReadError(f"{path}: is {bits}-bit {file.format} of {file.channels} leads, not format {form}")
            if not 0 < samples <= file.frames - offset:
                raise EcgReadError(f"{path}: holds {file.frames - offset} samples, not {samples}")
            stored = path.stat().st_size
            refuse_bomb(samples * leads * 8, stored, path, max_bytes or max(MAX_FLAC_BYTES, MAX_UNFOLDING * stored))
            file.seek(offset)
            values = file.read(samples, dtype="int32", always_2d=True).T >> (32 - bits)
    except (KeyError, RuntimeError) as error:
        raise EcgReadError(f"{path}: is not a readable FLAC file: {error}") from error
    if values.shape[1] != samples:
        raise EcgReadError(f"{path}: ends after {values.shape[1]} of {samples} samples")
    return values


def _read_segments(header: WfdbHeader, verify_checksum: bool, max_bytes: int | None) -> RawEcg:
    """A record of several segments, put together by lead name; gaps, and leads a segment lacks, are NaN."""
    path = header.path
    if header.segments != len(header.lines):
        raise EcgReadError(f"{path}: announces {header.segments} segments, lists {len(header.lines)}")
    layout: list[_Signal] = []
    places: dict[str, tuple[int, int]] = {}  # first frame and frames of each segment
    headers: dict[str, WfdbHeader] = {}
    total = stored = 0
    for line in header.lines:
        name, length = line.split()[0], _integer(path, " ".join(line.split()[1:]))
        if name != "~":  # "~" is a gap
            if name in headers:
                raise EcgReadError(f"{path}: segment {name} is listed twice")
            headers[name] = segment = read_wfdb_header(_sibling(path, f"{name}.hea"))
            if segment.segments is not None:
                raise EcgReadError(f"{path}: segment {name} is itself divided into segments")
            signals = _parse_signals(segment)
            if length == 0:  # this one names all leads and holds no samples
                layout = signals
            else:
                places[name] = total, length
                stored += sum(stored_bytes(_sibling(path, file)) for file in {signal.file for signal in signals})
        total += length
    if not places:
        raise EcgReadError(f"{path}: every segment is empty")
    widths = {s.name: s.samples_per_frame for s in layout or _parse_signals(headers[next(iter(places))])}
    refuse_bomb(sum(widths.values()) * total * 8, stored, path, max_bytes)
    rows = {lead: np.full(total * width, np.nan) for lead, width in widths.items()}  # (samples,) each
    units: dict[str | None, str | None] = {}
    for name, (start, length) in places.items():
        part = _to_physical(_read_digital(headers[name], verify_checksum, max_bytes))
        for lead, unit, row in zip(part.lead_names, part.units, part.signal, strict=True):
            if lead not in rows or units.setdefault(lead, unit) != unit or list(part.lead_names).count(lead) > 1:
                raise EcgReadError(
                    f"{path}: lead {lead} of segment {name} is not in the layout, or in two units or rows"
                )
            if (row.size, headers[name].frame_rate) != (length * widths[lead], header.frame_rate):
                raise EcgReadError(f"{path}: segment {name} differs from the length or sampling rate given here")
            rows[lead][start * widths[lead] :][: row.size] = row
    rates = [None if header.frame_rate is None else header.frame_rate * width for width in widths.values()]
    one_rate = len(set(widths.values())) == 1
    return RawEcg(
        np.stack(list(rows.values())) if one_rate else list(rows.values()),
        list(rows),
        rates[0] if one_rate else rates,
        [units.get(lead, "mV") for lead in rows],
        {"comments": header.comments},
    )
