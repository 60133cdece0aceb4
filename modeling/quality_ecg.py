"""What can be wrong with a recording: limb leads that contradict each other, flat, saturated or wrongly scaled leads.

All functions take the leads as a mapping from canonical name to signal (samples,) in mV, without NaN.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from .leads_ecg import LIMB_LEADS

PLAUSIBLE_SCALE = (0.02, 20.0)
"""Bounds in mV of a lead's 99th percentile of |x - median|: about 1 in an ECG, 1000 or 0.001 when it is in uV or V."""

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


class EcgQualityError(ValueError):
    """A recording that a policy of the feature extractor refuses."""


class EcgQualityWarning(UserWarning):
    """A recording that was repaired, or is used in spite of a doubt."""


def limb_lead_conflict(leads: Mapping[str, np.ndarray]) -> str:
    """What the limb identities say against the labels of `leads`; empty when nothing.

    The answer names each identity that fails, its RMS error (offsets do not count), and every exchange of two labels
    or inversion of one lead that would make all of them hold.  Swapped *electrodes* keep the identities: not seen.
    """
    names = [name for name in LIMB_LEADS if name in leads]
    identities = {
        text: np.array([terms.get(name, 0.0) for name in names])
        for text, terms in LIMB_IDENTITIES.items()
        if terms.keys() <= set(names)
    }
    if not identities:
        return ""
    covariance = np.cov(np.stack([leads[name] for name in names]), bias=True)  # (leads, leads)
    tolerance = max(IDENTITY_TOLERANCE, IDENTITY_TOLERANCE_RATIO * np.sqrt(np.trace(covariance) / len(names)))

    def failing(relabelling: np.ndarray) -> list[str]:
        sums = {text: row @ relabelling for text, row in identities.items()}
        errors = {text: np.sqrt(max(0.0, weights @ covariance @ weights)) for text, weights in sums.items()}
        return [f"{text} fails by {error:.3f} mV RMS" for text, error in errors.items() if error > tolerance]

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


def implausible_scale(leads: Mapping[str, np.ndarray]) -> str:
    """Which leads are too large to be in mV, or that all are too small; empty when none."""
    signals = np.stack(list(leads.values()))  # (leads, samples)
    deviations = np.abs(signals - np.median(signals, axis=1, keepdims=True))
    scales = dict(zip(leads, np.percentile(deviations, 99, axis=1), strict=True))
    low, high = PLAUSIBLE_SCALE
    suspects = [name for name, scale in scales.items() if scale > high]
    if 0 < max(scales.values()) < low:
        suspects = list(leads)
    if not suspects:
        return ""
    largest = max(scales[name] for name in suspects)
    return f"{list_leads(suspects)} implausibly scaled: the 99th percentile of the deflections is {largest:.3g} mV"


def flat_leads(leads: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the leads that carry no signal."""
    return [name for name, signal in leads.items() if np.ptp(signal) <= MAX_FLAT_RANGE]


def saturated_leads(leads: Mapping[str, np.ndarray], sampling_rate: float) -> list[str]:
    """One sentence for each lead that is cut off at a rail for a stretch."""
    shortest = max(MIN_RAIL_SAMPLES, round(MIN_RAIL_SECONDS * sampling_rate))
    sentences = []
    for name, signal in leads.items():
        median = np.median(signal)
        for rail in (signal.min(), signal.max()):
            if abs(rail - median) >= MIN_RAIL_LEVEL and (run := longest_run(signal == rail)) >= shortest:
                sentences.append(
                    f"lead {name} is saturated: it stays at {rail:.2f} mV for {run / sampling_rate:.3f} s"
                )
    return sentences


def longest_run(mask: np.ndarray) -> int:
    """Length of the longest stretch of True in `mask` (samples,)."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def list_leads(names: list[str]) -> str:
    """ "lead V1 is" or "leads V1, V2 are"."""
    return f"lead {names[0]} is" if len(names) == 1 else f"leads {', '.join(names)} are"
