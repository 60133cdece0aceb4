"""Split-conformal prediction: sets of labels, or intervals of a measurement, that cover the truth as often as stated.

    sets = label_sets(calibration_targets, calibration_scores, scores, coverage=0.9)      # (n, classes) bool
    intervals = value_intervals(calibration_values, calibration_predictions, predictions, coverage=0.9)  # (n, 2)

Whatever the model, the truth is covered with at least the stated probability, on average over calibration sets, for
records exchangeable with those of the calibration: other patients of the same kind, none of them trained on
(Angelopoulos and Bates, arXiv 2107.07511).  A better model gives smaller sets, not better coverage.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from .ranking import check_scores


def conformal_quantile(nonconformity: ArrayLike, coverage: float) -> float:
    """The bound that a new record's nonconformity keeps with probability `coverage` at least.

    The ceil((n + 1) coverage)-th smallest; infinite where n is too small to promise so much.

    Args:
        nonconformity: (n,), of calibration records: how badly the truth fits the prediction.
        coverage: between 0 and 1.
    """
    values = np.sort(np.asarray(nonconformity, np.float64))
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError(f"nonconformity must be (n,) with n > 0 and without NaN, it has the shape {values.shape}")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, not {coverage:g}")
    rank = math.ceil((len(values) + 1) * coverage - 1e-9)  # 1e-9: (9 + 1) * 0.7 is 7.000000000000001
    return float(values[rank - 1]) if rank <= len(values) else math.inf


def label_sets(
    calibration_targets: ArrayLike, calibration_scores: ArrayLike, scores: ArrayLike, coverage: float
) -> np.ndarray:
    """Sets of classes (m, classes) bool that hold *all* labels of a record with probability `coverage` at least.

    One threshold for all classes: scores of different classes must be comparable, such as calibrated probabilities.
    A record without any label is covered by any set.

    Args:
        calibration_targets: (n, classes) of 0 and 1.
        calibration_scores: (n, classes).
        scores: (m, classes), of the records to give sets to.
    """
    targets, known_scores = check_scores(calibration_targets, calibration_scores)
    lowest = np.where(targets > 0, known_scores, np.inf).min(1)  # (n,), of a record's labels
    return np.asarray(scores) >= -conformal_quantile(-lowest, coverage)


def covers_labels(sets: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n,) bool: which sets of classes hold all labels of their record."""
    return ~((targets > 0) & ~sets).any(1)


def value_intervals(
    calibration_values: ArrayLike,
    calibration_predictions: ArrayLike,
    predictions: ArrayLike,
    coverage: float,
    calibration_spreads: ArrayLike = 1.0,
    spreads: ArrayLike = 1.0,
) -> np.ndarray:
    """Intervals (m, 2), prediction -+ bound x spread, that hold the value with probability `coverage` at least.

    Args:
        calibration_values, calibration_predictions: (n,).
        predictions: (m,), of the records to give intervals to.
        calibration_spreads, spreads: (n,) and (m,), above 0: how unsure the model is of each; by default all alike.
    """
    residuals = np.abs(np.subtract(calibration_values, calibration_predictions)) / calibration_spreads
    centres = np.asarray(predictions, dtype=float)
    half_widths = conformal_quantile(residuals, coverage) * np.broadcast_to(spreads, centres.shape)
    return np.stack([centres - half_widths, centres + half_widths], axis=-1)
