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

# Of a row of a data set that `datasets_scripts` built; the signal in them is (samples, leads), as stored.
SIGNAL_COLUMNS = ("signal", "gain", "baseline", "units", "lead_names", "sampling_rate")

_MILLIVOLTS = {"nv": 1e-6, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "mv": 1.0, "v": 1e3}  # micro sign and Greek mu


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
        check_shape(self.signal, self.lead_names, self.source)
        if self.signal.dtype not in (np.float32, np.float64):
            raise EcgReadError(f"{self.source}: the signal must be float32 or float64, not {self.signal.dtype}")
        for i, name in enumerate(self.lead_names):
            if name in self.lead_names[:i]:
                raise EcgReadError(f"{self.source}: lead {name} occurs twice; leads are told apart by name")
        check_sampling_rate(self.sampling_rate, self.source)
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


def check_shape(signal: np.ndarray, lead_names: Sequence[str], source: str) -> None:
    """Raise `EcgReadError` where `signal` is not (leads, samples) of these leads."""
    shape = np.shape(signal)
    if len(shape) != 2 or 0 in shape:
        raise EcgReadError(f"{source}: an ECG has shape (leads, samples), neither of them 0, not {shape}")
    if len(lead_names) != shape[0]:
        hint = "; is it transposed?  Pass signal.T" if len(lead_names) == shape[1] else ""
        raise EcgReadError(f"{source}: {len(lead_names)} lead names for {shape[0]} leads{hint}")


def check_sampling_rate(rate: Any, source: str) -> None:
    """Raise `EcgReadError` where `rate` is no positive number."""
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < float(rate) < math.inf:
        raise EcgReadError(f"{source}: the sampling rate must be a positive number of Hz, not {rate!r}")


def millivolts(unit: str) -> float:
    """How many millivolts one nV, uV (µV), mV or V is, whatever its case; `ValueError` for any other unit."""
    try:
        return _MILLIVOLTS[str(unit).strip().lower()]
    except KeyError:
        raise ValueError(f"{unit!r}, is not nV, uV, mV or V") from None


def to_millivolts(
    signal: np.ndarray, lead_names: Sequence[str], units: str | Sequence[str] | None, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """`signal` (leads, samples) in millivolts, float64 or, where it was that, float32; and the unit of each lead.

    Args:
        units: one for all leads or one a lead; none given, floating point numbers are taken as mV.

    Raises:
        EcgReadError: no such signal, integers without units, or other units than nV, uV, mV and V.
    """
    check_shape(signal, lead_names, source)
    if signal.dtype.kind not in "fiu":
        raise EcgReadError(f"{source}: a signal of type {signal.dtype} is not an ECG; it must hold real numbers")
    units = (units,) * len(lead_names) if isinstance(units, str) else tuple(() if units is None else units)
    if signal.dtype.kind in "iu":
        if not units:
            raise EcgReadError(
                f"{source}: holds integers ({signal.dtype}), most likely ADC counts: divide them by the gain, or pass "
                "units='uV' (or 'mV', 'V') if they are voltages"
            )
        if max(abs(int(signal.min())), abs(int(signal.max()))) > 1 << 53:
            raise EcgReadError(f"{source}: holds integers too large for a voltage, overflown perhaps")
    units = units or ("mV",) * len(lead_names)
    if len(units) != len(lead_names):
        raise EcgReadError(f"{source}: {len(units)} units for {len(lead_names)} leads")
    scale = np.ones((len(lead_names), 1), np.float32 if signal.dtype == np.float32 else np.float64)
    for row, (name, unit) in enumerate(zip(lead_names, units, strict=True)):
        try:
            scale[row] = millivolts(unit)
        except ValueError as error:
            raise EcgReadError(f"{source}: the unit of lead {name}, {error}; pass units=") from None
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        return np.multiply(signal, scale, dtype=scale.dtype), units


def row_to_record(row: Mapping[str, Any]) -> EcgRecord:
    """The ECG of a row in millivolts, exactly what wfdb reads of its source, as `EcgFeatureExtractor` takes it.

    Args:
        row: of a data set that `datasets_scripts` built, its columns Python lists or numpy arrays
            (`dataset.with_format("numpy")` is the fast way); columns beside `SIGNAL_COLUMNS` become the record's
            metadata.
    """
    stored = np.asarray(row["signal"])  # (samples, leads)
    scale = np.array([millivolts(unit) for unit in row["units"]])
    signal = (stored - np.asarray(row["baseline"], np.float64)) / np.asarray(row["gain"], np.float64) * scale
    if stored.dtype == np.float32:
        signal = signal.astype(np.float32)
    metadata = {name: value for name, value in row.items() if name not in SIGNAL_COLUMNS}
    return EcgRecord(
        signal=np.ascontiguousarray(signal.T),  # (leads, samples)
        lead_names=tuple(str(name) for name in row["lead_names"]),
        sampling_rate=float(row["sampling_rate"]),
        units=tuple(str(unit) for unit in row["units"]),
        source=f"{row.get('source')} (record {row.get('record_id')})",
        metadata=metadata,
    )


def refuse_bomb(unfolded: int, stored: int, path: Path) -> None:
    """Raise `EcgReadError` for a small file that claims to hold very much."""
    if unfolded > max(MAX_UNFOLDED_BYTES, MAX_UNFOLDING * stored):
        raise EcgReadError(f"{path}: claims to hold {unfolded} bytes of signal, but has only {stored} bytes of data")
