"""How good decisions and probabilities are: balanced accuracy, Brier score, calibration error, risk and coverage."""

import numpy as np
from numpy.typing import ArrayLike

from .ranking import check_scores, check_weights


def balanced_accuracy(targets: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Mean of sensitivity and specificity of every class.

    Args:
        targets, predictions: (n, classes) of 0 and 1, or (n,).
        weights: (n,) or (resamples, n).

    Returns:
        (classes,) or (resamples, classes), NaN where a class has no positives or no negatives.
    """
    targets, predictions = check_scores(targets, predictions)
    weights = check_weights(weights, len(targets))
    with np.errstate(invalid="ignore"):
        sensitivity = (weights @ (targets * predictions)) / (weights @ targets)
        specificity = (weights @ ((1 - targets) * (1 - predictions))) / (weights @ (1 - targets))
    return (sensitivity + specificity) / 2


def brier_score(targets: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Mean squared difference between probability and label of every class; arguments as in `calibration_error`."""
    targets, probabilities = _check_probabilities(targets, probabilities)
    weights = check_weights(weights, len(targets))
    return (weights @ (probabilities - targets) ** 2) / weights.sum(-1, keepdims=True)


def calibration_error(
    targets: ArrayLike, probabilities: ArrayLike, bins: int = 15, weights: ArrayLike | None = None
) -> np.ndarray:
    """Expected calibration error of every class: |mean probability - share of positives|, averaged over the records.

    Over bins of equal width (Guo et al., ICML 2017), of each class's own probability.

    Args:
        targets: (n, classes) of 0 and 1, or (n,).
        probabilities: like `targets`, in [0, 1].
        weights: (n,) or (resamples, n).

    Returns:
        (classes,) or (resamples, classes).
    """
    targets, probabilities = _check_probabilities(targets, probabilities)
    weights = check_weights(weights, len(targets))
    index = np.minimum((probabilities * bins).astype(int), bins - 1)  # (n, classes)
    gaps = [np.abs(weights @ ((index == i) * (probabilities - targets))) for i in range(bins)]
    return np.sum(gaps, axis=0) / weights.sum(-1, keepdims=True)


def risk_coverage(losses: ArrayLike, confidences: ArrayLike) -> np.ndarray:
    """Mean loss of the 1, 2, ... n most confident records, (n,): the risk at coverages 1/n to 1.

    Among equal confidences the order is taken as random: constant ones give the mean loss throughout.

    Args:
        losses: (n,), such as 0/1 errors.
        confidences: (n,), such as minus a model's uncertainty.
    """
    losses, confidences = np.asarray(losses, np.float64), np.asarray(confidences, np.float64)
    if losses.shape != confidences.shape or losses.ndim != 1 or not losses.size:
        raise ValueError(f"losses and confidences must both be (n,) with n > 0: {losses.shape}, {confidences.shape}")
    if not (np.isfinite(losses).all() and np.isfinite(confidences).all()):
        raise ValueError("losses and confidences must be finite")
    order = np.argsort(-confidences, kind="stable")
    _, tied, counts = np.unique(-confidences[order], return_inverse=True, return_counts=True)
    expected = (np.bincount(tied, losses[order]) / counts)[tied]
    return expected.cumsum() / np.arange(1, len(losses) + 1)


def area_under_risk_coverage(losses: ArrayLike, confidences: ArrayLike) -> float:
    """Mean loss of the most confident records, averaged over all coverages from 1/n to 1; lower is better.

    (Geifman and El-Yaniv, NeurIPS 2017.)  Arguments as in `risk_coverage`.
    """
    return float(risk_coverage(losses, confidences).mean())


def _check_probabilities(targets: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    targets, probabilities = check_scores(targets, probabilities)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(f"probabilities must be in [0, 1], not {probabilities.min():g} to {probabilities.max():g}")
    return targets, probabilities
