"""A signal's shape, rate and units: what every way into the package checks first."""

import math
import unicodedata
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

MIN_RATE, MAX_RATE = 1.0, 1e6  # Hz; what lies outside is a rate in another unit, or damage

_MILLIVOLTS = {"nv": 1e-6, "uv": 1e-3, "μv": 1e-3, "mcv": 1e-3, "mv": 1.0, "v": 1e3}  # NFKC: micro sign -> Greek mu
_MILLIVOLTS |= {"nanovolt": 1e-6, "microvolt": 1e-3, "millivolt": 1.0, "volt": 1e3}


class EcgReadError(ValueError):
    """The content of a source is damaged, ambiguous or not an ECG; the message names the source and the remedy."""


def check_shape(signal: np.ndarray, lead_names: Sequence[str], source: str) -> None:
    """Raise `EcgReadError` where `signal` is not (leads, samples) of these leads."""
    shape = np.shape(signal)
    if len(shape) != 2 or 0 in shape:
        raise EcgReadError(f"{source}: an ECG has shape (leads, samples), neither of them 0, not {shape}")
    if len(lead_names) != shape[0]:
        hint = "; is it transposed?  Pass signal.T" if len(lead_names) == shape[1] else ""
        raise EcgReadError(f"{source}: {len(lead_names)} lead names for {shape[0]} leads{hint}")


def check_sampling_rate(rate: Any, source: str) -> None:
    """Raise `EcgReadError` where `rate` is no positive number, or none that an ECG can have."""
    try:
        positive = not isinstance(rate, bool) and isinstance(rate, Real) and 0 < float(rate) < math.inf
    except OverflowError:
        rate, positive = math.inf, False
    if not positive:
        raise EcgReadError(f"{source}: the sampling rate must be a positive number of Hz, not {rate!r:.40}")
    if not MIN_RATE <= float(rate) <= MAX_RATE:
        raise EcgReadError(
            f"{source}: a sampling rate of {rate:g} Hz is not that of an ECG: pass sampling_rate= in Hz"
        )


def millivolts(unit: str) -> float:
    """How many millivolts one nV, uV (µV), mV or V is, whatever its case; `ValueError` for any other unit."""
    plain = unicodedata.normalize("NFKC", str(unit)).strip().lower()
    try:
        return _MILLIVOLTS.get(plain) or _MILLIVOLTS[plain.removesuffix("s")]
    except KeyError:
        raise ValueError(f"{unit!r}, is not nV, uV, mV or V") from None


def to_millivolts(
    signal: np.ndarray, lead_names: Sequence[str], units: str | Sequence[str | None] | None, source: str
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
    dtype = np.float32 if signal.dtype == np.float32 else np.float64
    scale = np.array(unit_scales(lead_names, units, source), dtype)[:, None]  # (leads, 1)
    known = tuple(unit for unit in units if unit is not None)  # all of them, or there were no scales
    if (scale == 1).all() and signal.dtype == scale.dtype:
        return signal, known
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        return np.multiply(signal, scale, dtype=scale.dtype), known


def unit_scales(lead_names: Sequence[str], units: Sequence[str | None], source: str) -> list[float]:
    """How many millivolts the unit of each lead is; `EcgReadError` where one is not known, or not a voltage."""
    scales = []
    for name, unit in zip(lead_names, units, strict=True):
        if unit is None:
            raise EcgReadError(
                f"{source}: lead {name} is uncalibrated (gain 0, no gain, sensitivity or unit), it holds counts: "
                "pass units='uV' (or 'mV', 'V', 'nV') if you know what one is"
            )
        try:
            scales.append(millivolts(unit))
        except ValueError as error:
            raise EcgReadError(f"{source}: the unit of lead {name}, {error}; pass units=") from None
    return scales
