"""How well scores rank records: area under the ROC curve, average precision, best F1, for one class or many.

    per_class = auroc(targets, scores)            # (classes,), NaN where a class is left out: see `left_out_classes`
    overall = macro(per_class)                    # mean over the others
    together = micro(auroc, targets, scores)      # all classes in one ranking
    resampled = auroc(targets, scores, weights)   # (resamples, classes) for weights (resamples, n)

Values are those of scikit-learn.  A class without positives, or without negatives, has no value in any of them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

BLOCK = 1 << 15  # resamples x records at a time: their running sums stay in the processor's cache
MICRO_BLOCK = 1 << 23

Metric = Callable[[ArrayLike, ArrayLike, ArrayLike | None], np.ndarray]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def auroc(targets: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Area under the ROC curve of every class; ties count one half.

    Args:
        targets: (n, classes) of 0 and 1, or (n,) for a single class.
        scores: like `targets`, higher for records that rather belong to the class.
        weights: (n,), or (resamples, n) for as many results at once, such as the counts of `resample_counts`.

    Returns:
        (classes,) or (resamples, classes), NaN where all records (of weight above 0) have one label.

    Raises:
        ValueError: shapes that differ, labels other than 0 and 1, scores that are not finite.
    """
    return _over_classes(_auroc, targets, scores, weights)


def average_precision(targets: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Average precision of every class: precision at each distinct score, weighted by the recall gained there.

    Arguments, result and errors as in `auroc`.
    """
    return _over_classes(_average_precision, targets, scores, weights)


def best_f1(targets: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """F1 of every class at the threshold where it is highest on these very records, as published with MERL and MELP.

    It flatters: for decisions on new records take `best_thresholds` of a validation split.  Arguments, result and
    errors as in `auroc`.
    """
    return _over_classes(_best_f1, targets, scores, weights)


def best_thresholds(targets: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """The thresholds (classes,) of `best_f1`: a record belongs to a class when its score is at least this.

    The highest of several; NaN for a class without positives or without negatives.
    """
    targets, scores = check_scores(targets, scores)
    result = np.full(targets.shape[1], np.nan)
    for index, (target, score) in enumerate(zip(targets.T, scores.T, strict=True)):
        order, starts = _descending(score)
        chosen = np.append(starts[1:], len(order))  # how many records each threshold takes
        hits = target[order].cumsum()[chosen - 1]
        if 0 < hits[-1] < len(target):
            result[index] = score[order[starts[(hits / (chosen + hits[-1])).argmax()]]]
    return result


def macro(per_class: np.ndarray) -> np.ndarray:
    """Mean over the classes that have a value: (..., classes) -> (...); NaN where none has."""
    has_value = ~np.isnan(per_class)
    count = has_value.sum(-1)
    mean = np.where(has_value, per_class, 0).sum(-1) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)


def micro(metric: Metric, targets: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """`metric` (of this file) over the pairs of all records and classes as one class: () or (resamples,)."""
    targets, scores = check_scores(targets, scores)
    weights = check_weights(weights, len(targets))
    pairs = targets.reshape(-1, 1), scores.reshape(-1, 1)
    size = max(1, MICRO_BLOCK // targets.size)
    rows = np.atleast_2d(weights)
    blocks = (np.repeat(rows[start : start + size], targets.shape[1], axis=1) for start in range(0, len(rows), size))
    return np.concatenate([metric(*pairs, block) for block in blocks]).reshape(weights.shape[:-1])


def left_out_classes(targets: ArrayLike, classes: Sequence[str] | None = None) -> dict[str, str]:
    """The classes that have no AUROC on these records, each with the reason; a macro average leaves them out."""
    targets = np.asarray(targets)
    targets = targets.reshape(len(targets), -1)
    names = [str(index) for index in range(targets.shape[1])] if classes is None else classes
    positives = targets.sum(0)
    reasons = {0: "no positives", len(targets): "no negatives"}
    return {name: reasons[int(p)] for name, p in zip(names, positives, strict=True) if int(p) in reasons}


def check_scores(targets: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as (n, classes) arrays, or an error that says what is wrong with them."""
    targets, scores = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    if targets.shape != scores.shape or targets.ndim not in (1, 2) or not targets.size:
        raise ValueError(
            f"targets and scores must both be (n, classes) with n > 0, they are {targets.shape} and {scores.shape}"
        )
    targets, scores = targets.reshape(len(targets), -1), scores.reshape(len(scores), -1)
    wrong = np.argwhere((targets != 0) & (targets != 1))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"targets must be 0 or 1, but record {row}, class {column} has {targets[row, column]}")
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"scores must be finite, but record {row}, class {column} has {scores[row, column]}")
    return targets.astype(np.float64), scores


def check_weights(weights: ArrayLike | None, records: int) -> np.ndarray:
    """Weights as (resamples, n) or (n,), all 1 when not given."""
    checked = np.ones(records) if weights is None else np.asarray(weights)
    if checked.ndim not in (1, 2) or checked.shape[-1] != records:
        raise ValueError(f"weights must be ({records},) or (resamples, {records}), not {checked.shape}")
    return checked


def _descending(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of falling scores (n,), and where in it each run of equal scores starts (thresholds,)."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    return order, starts


def _over_classes(
    statistic: Statistic, targets: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> np.ndarray:
    """`statistic(positives, negatives)` of every class and resample, from their weights at each of the falling
    thresholds, (resamples, thresholds)."""
    targets, scores = check_scores(targets, scores)
    weights = check_weights(weights, len(targets))
    rows = np.atleast_2d(weights)  # (resamples, n)
    orders = [_descending(score) for score in scores.T]
    result = np.full((len(rows), targets.shape[1]), np.nan)
    size = max(1, BLOCK // len(targets))
    for first in range(0, len(rows), size):
        block = rows[first : first + size].astype(np.float64)
        for index, (order, starts) in enumerate(orders):
            ordered = block.take(order, axis=1)
            positives = ordered * targets[order, index]
            if len(starts) < len(order):
                ordered, positives = (np.add.reduceat(x, starts, axis=1) for x in (ordered, positives))
            negatives = ordered - positives
            with np.errstate(invalid="ignore", divide="ignore"):
                value = statistic(positives, negatives)
            both_labels = positives.any(1) & negatives.any(1)
            result[first : first + size, index] = np.where(both_labels, value, np.nan)
    return result.reshape(*weights.shape[:-1], -1)


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    above = positives.cumsum(1)
    pairs = np.einsum("rt,rt->r", negatives, above - positives / 2)  # positive above negative, ties one half
    return pairs / (above[:, -1] * negatives.sum(1))


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    tp, fp = positives.cumsum(1), negatives.cumsum(1)
    precision = tp / np.maximum(tp + fp, np.finfo(np.float64).tiny)
    return np.einsum("rt,rt->r", positives, precision) / tp[:, -1]


def _best_f1(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    tp, fp = positives.cumsum(1), negatives.cumsum(1)
    return (2 * tp / (tp + fp + tp[:, -1:])).max(1)
