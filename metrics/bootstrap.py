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


def bootstrap(statistic: Weighted, patients: Sequence[Any], resamples: int = 1000, seed: int = 0) -> Estimate:
    """The value of a metric with its percentile interval over resamples of the patients.

    Resamples in which the metric has no value (a rare class was not drawn) are left out of the interval.
    """
    counts = resample_counts(patients, resamples, seed)
    return Estimate(float(statistic(np.ones(counts.shape[1]))), *interval(statistic(counts)))


def paired_bootstrap(
    first: Weighted, second: Weighted, patients: Sequence[Any], resamples: int = 1000, seed: int = 0
) -> Difference:
    """`first` - `second`, two models on the same records, over the same resamples of the patients."""
    counts = resample_counts(patients, resamples, seed)
    ones = np.ones(counts.shape[1])
    differences = np.asarray(first(counts)) - np.asarray(second(counts))
    differences = differences[~np.isnan(differences)]
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * (beyond + 1) / (len(differences) + 1)) if len(differences) else np.nan
    return Difference(float(first(ones)) - float(second(ones)), *interval(differences), p_value)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of resampled values (resamples,), those that are NaN left out; NaN where all are."""
    values = np.asarray(values)
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
