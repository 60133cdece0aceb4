"""What can be wrong with a recording at first sight: what the feature extractor has policies for.

For research use; not a medical device.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .filtering_ecg import median, resample
from .leads_ecg import LIMB_LEADS, STANDARD_LEADS
from .mains_ecg import mains_noise

PLAUSIBLE_SCALE = (0.02, 20.0)
"""Bounds in mV of a lead's 99th percentile of |x - median|: about 1 in an ECG, 1000 or 0.001 when it is in uV or V."""

MAX_VOLTAGE = 500.0
"""In mV: electrodes' offsets reach 300 (IEC 60601-2-25) and amplifiers are built for little more."""

DEFLECTION_SECONDS, PLAUSIBLE_DEFLECTION = 2.0, (0.4, 8.0)
"""A deflection is a lead's median range in windows so long, which hold a beat; bounds in mV of the largest lead's."""

MAX_FLAT_RANGE = 0.005
"""A lead that spans no more, in mV, is flat: one step of a coarse recorder, a tenth of the smallest QRS complex."""

MIN_RAIL_LEVEL, MIN_RAIL_SECONDS, MIN_RAIL_SAMPLES = 1.0, 0.02, 4
"""A lead is saturated when it rests on its own extreme, so many mV from its median, for so long (and samples)."""

IDENTITY_TOLERANCE, IDENTITY_TOLERANCE_RATIO = 0.01, 0.1
"""An identity fails above this RMS error in mV and this share of the limb leads' RMS; rounding makes some 0.003 mV."""

LIMB_IDENTITIES = {
    "I + III = II": {"I": 1.0, "III": 1.0, "II": -1.0},
    "aVR = -(I + II) / 2": {"aVR": 1.0, "I": 0.5, "II": 0.5},
    "aVL = I - II / 2": {"aVL": 1.0, "I": -1.0, "II": 0.5},
    "aVF = II - I / 2": {"aVF": 1.0, "II": -1.0, "I": 0.5},
    "aVR + aVL + aVF = 0": {"aVR": 1.0, "aVL": 1.0, "aVF": 1.0},
}
"""Sums that are zero in every correctly labelled recording (Einthoven 1912, Goldberger 1942)."""


LEFT_OUT_SECONDS = 0.5
"""Less than a beat may be left out of a recording without a word."""

BELOW_MAINS = 80.0
"""A sampling rate in Hz that no mains noise passes."""


class EcgQualityError(ValueError):
    """A recording that a policy of the feature extractor refuses."""


class EcgQualityWarning(UserWarning):
    """A recording that was repaired, or is used in spite of a doubt."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a recording, or worth knowing; prints as its message.

    Attributes:
        kind: what it is, in a word that programs can rely on; `docs/quality.md` lists them.
        leads: the leads it is about, under their standard names; empty when it is about the recording as a whole.
        severity: `"error"` (no model should see it so), `"warning"` (doubtful) or `"note"`.
        message: one sentence for people.
        remedy: what to do about it.
    """

    kind: str
    leads: tuple[str, ...]
    severity: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, eq=False)
class Leads:
    """Leads of one recording as the checks want them."""

    names: tuple[str, ...]  # canonical
    signal: np.ndarray  # (leads, samples), in mV, finite
    low: np.ndarray  # (leads, windows of `DEFLECTION_SECONDS`): least values, see `extremes`
    high: np.ndarray  # greatest values
    sampling_rate: float

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and signal (samples,) of each lead."""
        return zip(self.names, self.signal, strict=True)

    @cached_property
    def spans(self) -> list[float]:
        """Range of each lead, in mV."""
        return (self.high.max(axis=1) - self.low.min(axis=1)).tolist()

    @cached_property
    def deflections(self) -> np.ndarray:
        """Median range in windows of `DEFLECTION_SECONDS`: (leads,), in mV."""
        return median(self.high - self.low)[:, 0]


def extremes(signal: np.ndarray, sampling_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest values of `signal` (leads, samples) in windows of 2 s: (leads, windows) each.

    They decide whether the other checks need to look at the samples at all; NaN and infinity show in them.
    """
    leads, samples = signal.shape
    size = min(samples, max(1, round(DEFLECTION_SECONDS * sampling_rate)))
    whole = samples // size * size
    windows = signal[:, :whole].reshape(leads, -1, size)
    with np.errstate(invalid="ignore"):
        low, high = windows.min(axis=2), windows.max(axis=2)
        if whole < samples:
            rest = signal[:, whole:]
            low = np.column_stack([low, rest.min(axis=1)])
            high = np.column_stack([high, rest.max(axis=1)])
    return low, high


def implausible_scale(leads: Leads) -> Finding | None:
    """Which leads are too large to be in mV, or that all are too small."""
    low, high = PLAUSIBLE_SCALE
    rows = [row for row, span in enumerate(leads.spans) if span > high]  # a scale is at most the span
    scales = {row: _scale(leads.signal[row]) for row in rows}
    suspects = [row for row in rows if scales[row] > high]
    if not suspects and leads.deflections.max() < PLAUSIBLE_DEFLECTION[0]:  # else it is large enough
        scales = {row: _scale(signal) for row, signal in enumerate(leads.signal)}
        suspects = list(scales) if 0 < max(scales.values()) < low else []
    if not suspects:
        return None
    names, largest = [leads.names[row] for row in suspects], max(scales[row] for row in suspects)
    message = f"{list_leads(names)} implausibly scaled: the 99th percentile of the deflections is {largest:.3g} mV"
    return Finding("implausible_scale", tuple(names), "error", message, "Give the right units, or correct the gain")


def beyond_amplifier(signal: np.ndarray) -> np.ndarray:
    """Which samples of one lead no amplifier gives (`MAX_VOLTAGE`): (samples,) bool.

    None where a tenth of the lead is out of scale: that is a matter of units, see `implausible_scale`.
    """
    return (np.abs(signal) > MAX_VOLTAGE) & (_scale(signal, 90) <= PLAUSIBLE_SCALE[1])


def _scale(signal: np.ndarray, percentile: float = 99) -> float:
    return float(np.percentile(np.abs(signal - median(signal)), percentile))


def unusual_gain(leads: Leads) -> Finding | None:
    """That deflections are so small or large as if the gain were wrong by a factor of 10."""
    row = int(leads.deflections.argmax())
    largest = float(leads.deflections[row])
    smallest, greatest = PLAUSIBLE_DEFLECTION
    if largest <= MAX_FLAT_RANGE or smallest <= largest <= greatest:
        return None
    what = "no lead swings by more than" if largest < smallest else f"lead {leads.names[row]} swings by"
    message = f"{what} {largest:.2g} mV in {DEFLECTION_SECONDS:g} s: the gain may be wrong by a factor of 10"
    remedy = "Compare with the calibration pulse, and correct the gain"
    return Finding("unusual_gain", leads.names, "warning", message, remedy)


def flat_leads(leads: Leads) -> Finding | None:
    """Which leads carry no signal."""
    flat = tuple(name for name, span in zip(leads.names, leads.spans, strict=True) if span <= MAX_FLAT_RANGE)
    message = f"{list_leads(flat)} flat, within {MAX_FLAT_RANGE} mV"
    return Finding("flat_leads", flat, "warning", message, "Leave the recording out") if flat else None


def saturated_leads(leads: Leads) -> Finding | None:
    """Which leads are cut off at a rail for a stretch."""
    shortest = max(MIN_RAIL_SAMPLES, round(MIN_RAIL_SECONDS * leads.sampling_rate))
    stretches: dict[str, tuple[int, float]] = {}  # samples at a rail, and the rail in mV
    some = np.ascontiguousarray(leads.signal[:, ::shortest])  # no long enough stretch lies between them
    for extreme in (leads.low.min(axis=1), leads.high.max(axis=1)):
        touched = (some == extreme[:, None]).any(axis=1)
        for row in np.flatnonzero(touched).tolist():
            signal, rail, name = leads.signal[row], float(extreme[row]), leads.names[row]
            resting = signal == rail
            run = longest_run(resting) if np.count_nonzero(resting) >= shortest else 0
            if run >= shortest and abs(rail - median(signal)[0]) >= MIN_RAIL_LEVEL:
                stretches[name] = max(stretches.get(name, (0, 0.0)), (run, rail))
    if not stretches:
        return None
    names = tuple(name for name in leads.names if name in stretches)
    worst = max(names, key=lambda name: stretches[name])
    run, rail = stretches[worst]
    subject, seconds = "it" if len(names) == 1 else worst, run / leads.sampling_rate
    message = f"{list_leads(names)} saturated: {subject} stays at {rail:.2f} mV for {seconds:.3f} s"
    return Finding("saturated_leads", names, "warning", message, "Leave the recording out")


def inconsistent_leads(leads: Mapping[str, np.ndarray], sampling_rate: float) -> Finding | None:
    """That the limb leads among `leads` contradict each other (`limb_lead_conflict`) by more than mains noise."""
    names = tuple(name for name in LIMB_LEADS if name in leads)
    conflict = limb_lead_conflict(leads)
    if conflict and mains_noise(signal := np.stack([leads[name] for name in names]), sampling_rate)[1].any():
        conflict = limb_lead_conflict(dict(zip(names, resample(signal, sampling_rate, BELOW_MAINS), strict=True)))
    return Finding("inconsistent_leads", names, "warning", conflict, "Correct lead_names") if conflict else None


def limb_lead_conflict(leads: Mapping[str, np.ndarray]) -> str:
    """What the limb identities say against the labels of `leads`; empty when nothing.

    The answer names each identity that fails, its RMS error (offsets do not count), and every exchange of two labels
    or inversion of one lead that would make all of them hold.  Swapped *electrodes* keep the identities: not seen.
    """
    names = [name for name in LIMB_LEADS if name in leads]
    texts = [text for text, terms in LIMB_IDENTITIES.items() if terms.keys() <= set(names)]
    if not texts:
        return ""
    identities = np.array([[LIMB_IDENTITIES[text].get(name, 0.0) for name in names] for text in texts])
    signal = np.stack([leads[name] for name in names])  # (leads, samples)
    sums = identities @ signal  # (identities, samples)
    if np.ptp(sums, axis=1).max() <= 2 * IDENTITY_TOLERANCE:  # no RMS error is more than half the range
        return ""
    means = signal.mean(axis=1)
    covariance = signal @ signal.T / signal.shape[1] - np.outer(means, means)  # (leads, leads)
    tolerance = max(IDENTITY_TOLERANCE, IDENTITY_TOLERANCE_RATIO * np.sqrt(np.trace(covariance) / len(names)))

    def failing(relabelling: np.ndarray) -> list[str]:
        sums = identities @ relabelling  # (identities, leads)
        errors = np.sqrt(np.maximum(0.0, (sums @ covariance * sums).sum(axis=1))).tolist()
        errors_of = zip(texts, errors, strict=True)
        return [f"{text} fails by {error:.3f} mV RMS" for text, error in errors_of if error > tolerance]

    labels = np.eye(len(names))
    failures = failing(labels)
    if not failures:
        return ""
    explanations = []
    for i, j in itertools.combinations(range(len(names)), 2):
        exchanged = labels.copy()
        exchanged[[i, j]] = labels[[j, i]]
        if not failing(exchanged):
            explanations.append(f"{names[i]} and {names[j]} exchanged")
    explanations += [f"{names[i]} inverted" for i in range(len(names)) if not failing(labels - 2 * np.diag(labels[i]))]
    conflict = f"the limb leads contradict each other: {', '.join(failures)}"
    return conflict + (f"; all identities hold with {' or with '.join(explanations)}" if explanations else "")


def longest_run(mask: np.ndarray) -> int:
    """Length of the longest stretch of True in `mask` (samples,)."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def list_leads(names: Sequence[str], verbs: tuple[str, str] = ("is", "are")) -> str:
    """ "lead V1 is", "leads V1, V2 are" or "all twelve leads are"."""
    if set(names) == set(STANDARD_LEADS):
        return f"all twelve leads {verbs[1]}"
    return f"lead {names[0]} {verbs[0]}" if len(names) == 1 else f"leads {', '.join(names)} {verbs[1]}"
