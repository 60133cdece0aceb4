"""Everything that is said of a multi-label classifier's scores, ready for JSON and tables."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import counts_for_intervals, interval
from .decisions import balanced_accuracy, brier_score, calibration_error
from .ranking import auroc, average_precision, best_f1, check_scores, left_out_classes, macro, micro


def classification_summary(
    targets: ArrayLike,
    scores: ArrayLike,
    classes: Sequence[str] | None = None,
    patients: Sequence[Any] | np.ndarray | None = None,
    thresholds: ArrayLike | None = None,
    are_probabilities: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Macro, micro and per-class figures with 95 % bootstrap intervals by patient.

    Args:
        targets: (n, classes) of 0 and 1.
        scores: (n, classes), or (runs, n, classes) for means over several runs of the same method.
        classes: their names; by default their numbers.
        patients: (n,); by default every record counts as a patient.
        thresholds: (classes,) or (runs, classes), chosen on other records: adds balanced accuracy.
        are_probabilities: adds Brier score and calibration error.
        resamples: of the patients; 0 for no intervals.

    Returns:
        `records`, `patients`; figures such as `auroc_macro` as {"value", "low", "high"}, None where there is none;
        `auroc_macro_of_runs`; `classes`, the same by class with the number of positives; `left_out`, the classes that
        the macro figures leave out, with reasons; `notes`, what a reader must know.
    """
    runs = np.asarray(scores, np.float64)
    runs = runs if runs.ndim == 3 else runs[None]  # (runs, n, classes)
    for run in runs:
        labels, _ = check_scores(targets, run)  # (n, classes)
    names = [str(index) for index in range(labels.shape[1])] if classes is None else list(classes)
    if len(names) != labels.shape[1]:
        raise ValueError(f"{len(names)} class names for {labels.shape[1]} classes")
    patient_of = np.arange(len(labels)) if patients is None else np.asarray(patients)
    if len(patient_of) != len(labels):
        raise ValueError(f"{len(patient_of)} patients for {len(labels)} records")
    patient_count = len(np.unique(patient_of))
    counts = counts_for_intervals(patient_of, resamples, seed)

    metrics: dict[str, list[Callable[..., np.ndarray]]] = {  # one function a run
        "auroc": [partial(auroc, labels, run) for run in runs],
        "average_precision": [partial(average_precision, labels, run) for run in runs],
        "best_f1": [partial(best_f1, labels, run) for run in runs],
    }
    if thresholds is not None:
        limits = np.broadcast_to(np.nan_to_num(np.asarray(thresholds, np.float64), nan=np.inf), runs[:, 0].shape)
        decisions = runs >= limits[:, None]
        metrics["balanced_accuracy"] = [partial(balanced_accuracy, labels, run) for run in decisions]
    if are_probabilities:
        metrics["brier_score"] = [partial(brier_score, labels, run) for run in runs]
        metrics["calibration_error"] = [partial(calibration_error, labels, run) for run in runs]

    figures: dict[str, Any] = {}
    by_class: dict[str, dict[str, Any]] = {
        name: {"positives": int(positives)} for name, positives in zip(names, labels.sum(0), strict=True)
    }
    for metric_name, functions in metrics.items():
        values = _mean(function() for function in functions)  # (classes,)
        resampled = None if counts is None else _mean(function(weights=counts) for function in functions)
        figures[f"{metric_name}_macro"] = as_figure(macro(values), None if resampled is None else macro(resampled))
        for index, name in enumerate(names):
            by_class[name][metric_name] = as_figure(values[index], None if resampled is None else resampled[:, index])
    for ranking in (auroc, average_precision):
        together = [partial(micro, ranking, labels, run) for run in runs]
        resampled = None if counts is None else _mean(function(counts) for function in together)
        figures[f"{ranking.__name__}_micro"] = as_figure(_mean(function() for function in together), resampled)
    figures["auroc_macro_of_runs"] = [as_figure(macro(auroc(labels, run)), None)["value"] for run in runs]

    left_out = left_out_classes(labels, names)
    return {
        "records": len(labels),
        "patients": patient_count,
        **figures,
        "classes": by_class,
        "left_out": left_out,
        "notes": _notes(left_out, len(names), patient_count, bool(resamples)),
    }


def mean_summary(
    values: np.ndarray,
    names: Sequence[str],
    patients: Sequence[Any] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Means of values in [0, 1] over records, with 95 % bootstrap intervals where there are two patients or more.

    Args:
        values: (n, names), without NaN.
        names: of the figures.
        patients: (n,).
        resamples: of the patients; 0 for no intervals.

    Returns:
        `records`, `patients`, every figure as {"value", "low", "high"}, and `notes`.
    """
    patient_count = len(np.unique(patients))
    counts = counts_for_intervals(patients, resamples, seed)
    resampled = None if counts is None else (counts @ values) / counts.sum(-1, keepdims=True)
    figures = {
        name: as_figure(values[:, index].mean(), None if resampled is None else resampled[:, index])
        for index, name in enumerate(names)
    }
    notes = _patient_notes(patient_count, bool(resamples))
    return {"records": len(values), "patients": patient_count, **figures, "notes": notes}


def _mean(values: Iterable[np.ndarray]) -> np.ndarray:
    return np.mean(list(values), axis=0)


def as_figure(value: Any, resampled: np.ndarray | None = None) -> dict[str, float | None]:
    """{"value", "low", "high"} of a figure in [0, 1] from its value and the resampled ones; None for NaN."""
    bounds = (math.nan, math.nan) if resampled is None else np.clip(interval(resampled, float(value)), 0, 1)
    figure = dict(zip(("value", "low", "high"), (value, *bounds), strict=True))
    return {key: None if math.isnan(x) else float(x) for key, x in figure.items()}


def _notes(left_out: dict[str, str], classes: int, patients: int, with_intervals: bool) -> list[str]:
    notes = []
    if left_out:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
        notes.append(f"{len(left_out)} of {classes} classes have no AUROC here, macro means leave them out: {reasons}")
    return notes + _patient_notes(patients, with_intervals)


def _patient_notes(patients: int, with_intervals: bool) -> list[str]:
    return ["all records are of one patient: there are no intervals"] if with_intervals and patients < 2 else []


def format_figure(figure: dict[str, float | None], scale: float = 100, digits: int = 1) -> str:
    """A figure as tables show it: "92.1 [91.0, 93.2]", "92.1" without an interval, "–" without a value."""
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "–"
    text = f"{scale * value:.{digits}f}"
    return text if low is None or high is None else f"{text} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
