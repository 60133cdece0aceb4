"""Recordings as their files store them: WFDB records as integers with gain and baseline, nothing rounded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ecgformers.modeling.channels_ecg import describe
from ecgformers.modeling.record_ecg import RawEcg
from ecgformers.modeling.units_ecg import millivolts, unit_scales
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


def read_wfdb(
    path: Path,
    *,
    lead_names: Sequence[str] | None = None,
    sampling_rate: float | None = None,
    units: str | Sequence[str] | None = None,
    leads: Sequence[str] | None = None,
    verify_checksum: bool = True,
) -> DigitalEcg:
    """The ECG in the WFDB record `path`, with or without `.hea`; options as of `reading_ecg.read_ecg`.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: the header makes no sense, the file is too short, a sample is marked as invalid, a checksum is
            wrong, or the record has what one table of integers cannot hold: segments, skewed leads, several rates.
    """
    header = header_path(path)
    digital = read_digital_wfdb(header, verify_checksum)
    names = [name or f"lead {number}" for number, name in enumerate(digital.lead_names, 1)]
    said = describe(
        RawEcg(digital.signals, names, digital.sampling_rates, digital.units),
        str(path),
        lead_names=lead_names,
        sampling_rate=sampling_rate,
        units=units,
        leads=leads,
    )
    unit_scales(said.lead_names, said.units, str(path))
    for name, channel in zip(said.lead_names, said.channels, strict=True):
        if digital.skew[channel]:
            raise ValueError(f"{header}: lead {name} is skewed")
        mark = digital.invalid[channel]
        invalid = mark is not None and np.count_nonzero(digital.signals[channel] == mark)
        if invalid:
            raise ValueError(f"{header}: {invalid} samples of lead {name} are NaN (marked as invalid)")
    return DigitalEcg(
        signal=np.stack([digital.signals[channel] for channel in said.channels], axis=1),  # (samples, leads)
        gain=[digital.gain[channel] for channel in said.channels],
        baseline=[digital.baseline[channel] for channel in said.channels],
        units=[unit or "" for unit in said.units],  # none is missing, or `unit_scales` would have said so
        lead_names=said.lead_names,
        sampling_rate=said.sampling_rate,
    )
