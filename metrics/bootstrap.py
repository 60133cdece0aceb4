"""Confidence intervals by resampling patients, for any metric that takes weights.

statistic = lambda weights: macro(auroc(targets, scores, weights))
estimate = bootstrap(statistic, patients)        # .value .low .high
difference = paired_bootstrap(lambda w: macro(auroc(targets, scores_a, w)),
                              lambda w: macro(auroc(targets, scores_b, w)), patients)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Weighted = Callable[[np.ndarray], Any]  # weights (n,) or (resamples, n) -> a value, or (resamples,)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; NaN throughout where the metric has no value."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """A difference of two models, with the two-sided p value of its being 0."""

    p_value: float


def resample_counts(patients: Sequence[Any] | np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """How often each record is drawn when patients are drawn with replacement, with all their records.

    Args:
        patients: (n,), the patient of every record.

    Returns:
        (resamples, n).

    Raises:
        ValueError: fewer than two patients.
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    count = len(names)
    if count < 2:
        raise ValueError(f"an interval by patient needs at least 2 patients, there is {count}")
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    draws += count * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * count).reshape(resamples, count)[:, index]


def counts_for_intervals(patients: Sequence[Any] | np.ndarray, resamples: int, seed: int) -> np.ndarray | None:
    """`resample_counts`, or None where there can be no intervals: for 0 resamples, or of a single patient."""
    return resample_counts(patients, resamples, seed) if resamples and len(np.unique(patients)) > 1 else None


def bootstrap(statistic: Weighted, patients: Sequence[Any], resamples: int = 1000, seed: int = 0) -> Estimate:
    """The value of a metric with its interval over resamples of the patients, see `interval`."""
    counts = resample_counts(patients, resamples, seed)
    value = float(statistic(np.ones(counts.shape[1])))
    return Estimate(value, *interval(statistic(counts), value))


def paired_bootstrap(
    first: Weighted, second: Weighted, patients: Sequence[Any], resamples: int = 1000, seed: int = 0
) -> Difference:
    """`first` - `second`, two models on the same records, over the same resamples of the patients."""
    counts = resample_counts(patients, resamples, seed)
    ones = np.ones(counts.shape[1])
    value = float(first(ones)) - float(second(ones))
    resampled = centred(np.asarray(first(counts)) - np.asarray(second(counts)), value)
    p_value = np.nan
    if len(resampled):
        beyond = min((resampled <= 0).sum(), (resampled >= 0).sum())
        p_value = min(1.0, 2 * (beyond + 1) / (len(resampled) + 1))
    return Difference(value, *interval(resampled, value), p_value)


def interval(resampled: np.ndarray, value: float, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of the resampled values (resamples,), moved so that their mean is `value`.

    Moved, because resampling repeats records and loses others, which raises average precision and best F1 of rare
    classes: their plain percentiles can lie beyond the value itself.  NaN where no resample has a value.
    """
    values = centred(resampled, value)
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def centred(resampled: np.ndarray, value: float) -> np.ndarray:
    """Resampled values moved so that their mean is `value`; those that are NaN (no positives drawn) are left out."""
    values = np.asarray(resampled)
    values = values[~np.isnan(values)]
    return values + (value - values.mean()) if len(values) else values
