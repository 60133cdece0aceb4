"""Recordings as their files store them: WFDB records as integers with gain and baseline, nothing rounded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ecgformers.modeling.record_ecg import millivolts
from ecgformers.modeling.wfdb_ecg import header_path, read_digital_wfdb, read_wfdb_header


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
            try:
                millivolts(unit)
            except ValueError as error:
                raise ValueError(f"the unit of lead {lead}, {error}") from None
            if not np.isfinite(gain) or gain == 0:
                raise ValueError(f"lead {lead} has gain {gain}: its millivolts are unknown")
        for lead, baseline in zip(self.lead_names, self.baseline, strict=True):
            if abs(baseline) >> 31:
                raise ValueError(f"lead {lead} has the baseline {baseline}, which takes more than 32 bits")


def wfdb_comments(path: Path) -> dict[str, str]:
    """The "# Key: value" comments in the header of a WFDB record."""
    pairs = (comment.partition(":") for comment in read_wfdb_header(header_path(path)).comments)
    return {key.strip(): value.strip() for key, _, value in pairs}


def read_wfdb(path: Path) -> DigitalEcg:
    """The WFDB record `path`, with or without `.hea`, its checksums verified.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: the header makes no sense, the file is too short, a sample is marked as invalid, a checksum is
            wrong, or the record has what one table of integers cannot hold: segments, skewed leads, several rates.
    """
    header = header_path(path)
    digital = read_digital_wfdb(header)
    if any(digital.skew):
        raise ValueError(f"{header}: its leads are skewed")
    for name, samples, mark in zip(digital.lead_names, digital.signal, digital.invalid, strict=True):
        invalid = mark is not None and np.count_nonzero(samples == mark)
        if invalid:
            raise ValueError(f"{header}: {invalid} samples of lead {name} are NaN (marked as invalid)")
    return DigitalEcg(
        signal=np.ascontiguousarray(digital.signal.T),  # (samples, leads)
        gain=digital.gain,
        baseline=digital.baseline,
        units=digital.units,
        lead_names=[name or f"lead {number}" for number, name in enumerate(digital.lead_names, 1)],
        sampling_rate=digital.sampling_rate or 0.0,
    )
