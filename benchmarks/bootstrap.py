"""Time of bootstrap intervals of AUROC for many classes, against a loop over scikit-learn's `roc_auc_score`.

    python benchmarks/bootstrap.py

The loop is timed on some of the resamples, whose values must agree, and its time is scaled up to all.  Linux only.
"""

from collections.abc import Callable

import numpy as np
from measuring import measure, print_table
from sklearn.metrics import roc_auc_score

from ecgformers.metrics.bootstrap import resample_counts
from ecgformers.metrics.ranking import auroc

SIZES = ((2000, 5), (2000, 71), (8000, 71))  # records, classes
RESAMPLES, LOOP_RESAMPLES = 1000, 5


def scored(records: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of classes from rare to frequent, scores, and the counts of resampled patients."""
    rng = np.random.default_rng(0)
    targets = rng.random((records, classes)) < np.geomspace(0.005, 0.5, classes)
    patients = rng.integers(int(0.9 * records), size=records)
    return targets, rng.normal(size=(records, classes)) + targets, resample_counts(patients, RESAMPLES)


def ours(records: int, classes: int, resamples: int) -> Callable[[], float]:
    targets, scores, counts = scored(records, classes)
    return lambda: float(np.nansum(auroc(targets, scores, counts[:resamples])))


def loop(records: int, classes: int, resamples: int) -> Callable[[], float]:
    targets, scores, counts = scored(records, classes)

    def step() -> float:
        total = 0.0
        for count in counts[:resamples]:
            drawn = np.repeat(np.arange(records), count)
            for target, score in zip(targets[drawn].T, scores[drawn].T, strict=True):
                if 0 < target.sum() < len(target):
                    total += roc_auc_score(target, score)
        return total

    return step


def main() -> None:
    rows = []
    for records, classes in SIZES:
        one_by_one = measure(loop, records, classes, LOOP_RESAMPLES, more_runs=1)
        same = measure(ours, records, classes, LOOP_RESAMPLES, more_runs=1)
        np.testing.assert_allclose(same.value, one_by_one.value)
        at_once = measure(ours, records, classes, RESAMPLES, more_runs=2)
        expected = one_by_one.seconds * RESAMPLES / LOOP_RESAMPLES
        rows.append(
            (
                str(records),
                str(classes),
                f"{expected:.0f} s",
                f"{at_once.seconds:.2f} s",
                f"{expected / at_once.seconds:.0f}x",
                f"{at_once.mebibytes:.0f} MiB",
            )
        )
    title = f"Bootstrap of AUROC, {RESAMPLES} resamples by patient"
    print_table(title, ("records", "classes", "loop over roc_auc_score", "ours", "ratio", "memory"), rows)


if __name__ == "__main__":
    main()
