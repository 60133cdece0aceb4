"""What is asked of the answers to a task, be they scores of classes or values: calibration, errors, sets or intervals.

kind = answers_to(task)
predictions = kind.fit(answers[half], targets[half])(answers[~half])
kind.errors(predictions, targets[~half])
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ecgformers.evaluation.probing import fit_probes
from ecgformers.evaluation.tasks import Task
from ecgformers.metrics.conformal import covers_labels, label_sets, value_intervals
from ecgformers.metrics.decisions import calibration_error
from ecgformers.metrics.ranking import auroc, macro
from ecgformers.metrics.summary import as_figure

PENALTY = 1e-5  # on the slope of a class's logistic regression
LIMIT = 40  # % of ejection fraction, as in the task lvef_below_40


class ClassAnswers:
    """Scores (n, classes), calibrated to probabilities; targets (n, classes) of 0 and 1."""

    columns = {"macro AUROC": "auroc_macro", "calibration error": "calibration_error"}
    error = "likeliest class wrong"
    note = (
        "error: the likeliest class is none of the record's; a class is said to be there where its probability is "
        "higher than its share (balanced accuracy)"
    )
    size = "share of the classes in the set"

    @staticmethod
    def fit(answers: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """A function from answers to probabilities."""
        columns = [slice(index, index + 1) for index in range(answers.shape[1])]
        probes = [next(fit_probes(answers[:, column], targets[:, column], [PENALTY])) for column in columns]
        return lambda new: np.hstack([probe(new[:, column]) for probe, column in zip(probes, columns, strict=True)])

    @staticmethod
    def errors(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(n,): whether the likeliest class is not among a record's."""
        return 1.0 - targets[np.arange(len(targets)), predictions.argmax(1)]

    @staticmethod
    def truth(targets: np.ndarray) -> np.ndarray:
        """What `decisions` are about."""
        return targets

    @staticmethod
    def decisions(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return predictions > targets.mean(0)

    @staticmethod
    def figures(
        targets: np.ndarray, answers: np.ndarray, predictions: np.ndarray, counts: np.ndarray | None
    ) -> dict[str, Any]:
        """Those of `columns`; `counts` are of the resampled records."""
        resampled = None if counts is None else macro(auroc(targets, answers, counts))
        return {
            "auroc_macro": as_figure(macro(auroc(targets, answers)), resampled),
            "calibration_error": as_figure(calibration_error(targets, predictions).mean()),
        }

    @staticmethod
    def promises(
        targets: np.ndarray,
        predictions: np.ndarray,
        known: np.ndarray,
        held_out: np.ndarray,
        coverage: float,
        spreads: np.ndarray | None = None,
    ) -> np.ndarray:
        """(held out, 2): whether a record's set holds all its labels, and the share of the classes in it."""
        sets = label_sets(targets[known], predictions[known], predictions[held_out], coverage)
        return np.stack([covers_labels(sets, targets[held_out]), sets.mean(1)], axis=1)


class ValueAnswers:
    """Ejection fractions (n, 1) in %, calibrated by a straight line; targets (n, 1) in %."""

    columns: dict[str, str] = {}
    error = "mean absolute error"
    note = f"error: mean absolute error; balanced accuracy: of ejection fractions below {LIMIT} %"
    size = "width of the interval"

    @staticmethod
    def fit(answers: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """A function from answers to values."""
        line = np.linalg.lstsq(np.hstack([answers, np.ones_like(answers)]), targets[:, 0])[0]
        return lambda new: new * line[0] + line[1]

    @staticmethod
    def errors(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(n,): how far the value is off, as a part of 100 %."""
        return np.abs(predictions - targets)[:, 0] / 100

    @staticmethod
    def truth(targets: np.ndarray) -> np.ndarray:
        """What `decisions` are about."""
        return targets < LIMIT

    @staticmethod
    def decisions(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return predictions < LIMIT

    @staticmethod
    def figures(
        targets: np.ndarray, answers: np.ndarray, predictions: np.ndarray, counts: np.ndarray | None
    ) -> dict[str, Any]:
        return {}

    @staticmethod
    def promises(
        targets: np.ndarray,
        predictions: np.ndarray,
        known: np.ndarray,
        held_out: np.ndarray,
        coverage: float,
        spreads: np.ndarray | None = None,
    ) -> np.ndarray:
        """(held out, 2): whether the interval holds a record's value, and its width as a part of 100 %."""
        spread = np.ones(len(targets)) if spreads is None else spreads
        values, predicted = targets[:, 0], predictions[:, 0]
        low, high = value_intervals(
            values[known], predicted[known], predicted[held_out], coverage, spread[known], spread[held_out]
        ).clip(0, 100).T  # fmt: skip
        return np.stack([(low <= values[held_out]) & (values[held_out] <= high), (high - low) / 100], axis=1)


def answers_to(task: Task) -> type[ClassAnswers] | type[ValueAnswers]:
    return ValueAnswers if task.is_value else ClassAnswers
