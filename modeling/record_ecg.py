"""What an ECG is in this package: signal in millivolts, lead names, sampling rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

# A compressed or sparse file may unfold to this many bytes, or to this many times its size, whichever is more.
MAX_UNFOLDED_BYTES = 1 << 26
MAX_UNFOLDING = 100


class EcgReadError(ValueError):
    """The content of a source is damaged, ambiguous or not an ECG; the message names the source and the remedy."""


@dataclass(frozen=True, eq=False)
class EcgRecord:
    """One ECG recording.

    Attributes:
        signal: (leads, samples) float64 (float32 where the source is float32), in millivolts; NaN = not measured.
        lead_names: one name a lead; standard leads under their standard names (`leads_ecg.STANDARD_LEADS`).
        sampling_rate: samples per second and lead, in Hz.
        units: the unit each lead had in the source, before the conversion to millivolts.
        source: where the record came from; names it in messages.
        metadata: what else the source says, e.g. the comment lines of a WFDB header.

    Raises:
        EcgReadError: when the fields do not make an ECG.
    """

    signal: np.ndarray
    lead_names: tuple[str, ...]
    sampling_rate: float
    units: tuple[str, ...] = ()
    source: str = "array"
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = np.shape(self.signal)
        if len(shape) != 2 or 0 in shape:
            raise EcgReadError(f"{self.source}: an ECG has shape (leads, samples), neither of them 0, not {shape}")
        if self.signal.dtype not in (np.float32, np.float64):
            raise EcgReadError(f"{self.source}: the signal must be float32 or float64, not {self.signal.dtype}")
        if len(self.lead_names) != shape[0]:
            hint = "; is it transposed?  Pass signal.T" if len(self.lead_names) == shape[1] else ""
            raise EcgReadError(f"{self.source}: {len(self.lead_names)} lead names for {shape[0]} leads{hint}")
        for i, name in enumerate(self.lead_names):
            if name in self.lead_names[:i]:
                raise EcgReadError(f"{self.source}: lead {name} occurs twice; leads are told apart by name")
        rate = self.sampling_rate
        if isinstance(rate, bool) or not isinstance(rate, Real) or not (math.isfinite(rate) and rate > 0):
            raise EcgReadError(f"{self.source}: the sampling rate must be a positive number of Hz, not {rate!r}")
        infinite = np.isinf(self.signal).any(axis=1)
        if infinite.any():
            raise EcgReadError(f"{self.source}: lead {self.lead_names[infinite.argmax()]} holds infinite values")

    @property
    def duration(self) -> float:
        """Length of the recording in seconds."""
        return self.signal.shape[1] / self.sampling_rate


class RawEcg(NamedTuple):
    """An ECG as its source has it; empty or None = the source does not say."""

    signal: np.ndarray  # (leads, samples), in `units`
    lead_names: Sequence[str | None] = ()
    sampling_rate: float | None = None
    units: Sequence[str] = ()
    metadata: Mapping[str, Any] = MappingProxyType({})


def refuse_bomb(unfolded: int, stored: int, path: Path) -> None:
    """Raise `EcgReadError` for a small file that claims to hold very much."""
    if unfolded > max(MAX_UNFOLDED_BYTES, MAX_UNFOLDING * stored):
        raise EcgReadError(f"{path}: claims to hold {unfolded} bytes of signal, but has only {stored} bytes of data")
