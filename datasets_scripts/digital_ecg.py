"""Recordings as their files store them: WFDB records as integers with gain and baseline, nothing rounded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ecgformers.modeling.reading_ecg import MILLIVOLTS
from ecgformers.modeling.wfdb_ecg import _BITS, _parse_signals, _read_header, _read_samples, _sibling, _verify


@dataclass(frozen=True)
class DigitalEcg:
    """One recording: `signal` (samples, leads) as stored, where (signal - baseline) / gain is in `units`, per lead."""

    signal: np.ndarray
    gain: Sequence[float]
    baseline: Sequence[int]
    units: Sequence[str]
    lead_names: Sequence[str]
    sampling_rate: float

    def astype(self, dtype: str) -> "DigitalEcg":
        """The same recording with its signal as `dtype`; `ValueError` where that could change a sample."""
        if not np.can_cast(self.signal.dtype, dtype, "safe"):
            raise ValueError(f"its samples are {self.signal.dtype}, those of the data set {dtype}")
        return replace(self, signal=self.signal.astype(dtype, copy=False))

    def check(self, leads: int) -> None:
        """Raise `ValueError` where this is no usable recording of `leads` leads."""
        if self.signal.ndim != 2 or self.signal.shape[1] != leads or not len(self.signal):
            raise ValueError(f"its shape (samples, leads) is {self.signal.shape}, expected {leads} leads")
        if not 0 < self.sampling_rate < np.inf:
            raise ValueError(f"its sampling rate is {self.sampling_rate} Hz")
        if self.signal.dtype.kind == "f" and not np.isfinite(self.signal).all():
            raise ValueError(f"{np.count_nonzero(~np.isfinite(self.signal))} samples are NaN or infinite")
        if not self.signal.any():
            raise ValueError("every sample is zero")
        for lead, gain, unit in zip(self.lead_names, self.gain, self.units, strict=True):
            if unit.strip().lower() not in MILLIVOLTS:
                raise ValueError(f"lead {lead} is in {unit!r}, which is not nV, uV, mV or V")
            if not np.isfinite(gain) or gain == 0:
                raise ValueError(f"lead {lead} has gain {gain}: its millivolts are unknown")


def wfdb_comments(path: Path) -> dict[str, str]:
    """The "# Key: value" comments of a WFDB header (`path` without `.hea`)."""
    pairs = (comment.partition(":") for comment in _read_header(path.with_name(f"{path.name}.hea")).comments)
    return {key.strip(): value.strip() for key, _, value in pairs}


def read_wfdb(path: Path) -> DigitalEcg:
    """The WFDB record `path` (without `.hea`), its checksums verified.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: the header makes no sense, the file is too short, a sample is marked as missing, a checksum is
            wrong, or the record has what one table of integers cannot hold: segments, skewed leads, several rates.
    """
    header = _read_header(path.with_name(f"{path.name}.hea"))
    if header.segments is not None:
        raise ValueError(f"{header.path}: it has several segments")
    signals = _parse_signals(header)
    if any(signal.skew or signal.samples_per_frame != 1 for signal in signals):
        raise ValueError(f"{header.path}: its leads are skewed or have several samples a frame")
    parts = []
    for file, group in ((name, list(leads)) for name, leads in groupby(signals, lambda signal: signal.file)):
        part = _read_samples(header.path, _sibling(header.path, file), group, header.frames)  # (leads, samples)
        _verify(header.path, group, part)
        parts.append(part)
    digital = parts[0] if len(parts) == 1 else np.concatenate(parts)
    for signal, samples in zip(signals, digital, strict=True):
        missing = signal.format != "8" and np.count_nonzero(samples == -(1 << _BITS[signal.format] - 1))
        if missing:
            raise ValueError(f"{header.path}: {missing} samples of lead {signal.name} are NaN (marked as missing)")
    dtype = np.int16 if all(_BITS.get(signal.format, 32) <= 16 for signal in signals) else np.int32
    return DigitalEcg(
        signal=np.ascontiguousarray(digital.T, dtype),  # (samples, leads)
        gain=[signal.gain for signal in signals],
        baseline=[signal.baseline for signal in signals],
        units=[signal.units for signal in signals],
        lead_names=[signal.name or f"lead {number}" for number, signal in enumerate(signals, 1)],
        sampling_rate=header.frame_rate or 0.0,
    )
