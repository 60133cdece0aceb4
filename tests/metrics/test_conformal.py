"""Split-conformal sets cover as often as they say, whatever the scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgformers.metrics.conformal import conformal_quantile, covers_labels, label_sets, value_intervals

coverages = st.floats(0.05, 0.95)
distinct = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=2, max_size=30, unique=True).map(np.array)


@given(distinct, coverages)
def test_each_of_exchangeable_records_is_covered_as_often_as_stated(values, coverage):
    """Every record is left out in turn: the share that keeps the bound of the others is the coverage, rounded up."""
    count = len(values)
    kept = [value <= conformal_quantile(np.delete(values, i), coverage) for i, value in enumerate(values)]
    assert coverage - 1e-9 <= np.mean(kept) <= coverage + 1 / count + 1e-9


def test_too_few_records_promise_nothing():
    assert conformal_quantile(np.arange(8), 0.9) == math.inf
    assert conformal_quantile(np.arange(9), 0.9) == 8
    assert conformal_quantile(np.arange(9), 0.7) == 6  # 10 * 0.7 is not quite 7 in floating point


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, math.nan]])
def test_wrong_nonconformity_is_refused(values):
    with pytest.raises(ValueError, match="nonconformity must be"):
        conformal_quantile(values, 0.9)


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90])
def test_wrong_coverage_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage must lie between"):
        conformal_quantile([1.0], coverage)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 5), coverages, st.integers(0, 2**31))
def test_label_sets_hold_all_labels_of_enough_calibration_records(records, classes, coverage, seed):
    rng = np.random.default_rng(seed)
    targets, scores = rng.integers(0, 2, (records, classes)), rng.normal(size=(records, classes)).round(1)
    covered = covers_labels(label_sets(targets, scores, scores, coverage), targets)
    assert covered.mean() >= coverage - 1e-9  # on the calibration records themselves, by construction
    order = rng.permutation(classes)
    swapped = label_sets(targets[:, order], scores[:, order], scores[:, order], coverage)
    assert np.array_equal(swapped, label_sets(targets, scores, scores, coverage)[:, order])


def test_coverage_on_new_records_is_the_stated_one():
    rng = np.random.default_rng(0)
    truth = rng.random((6000, 4))
    targets = (rng.random((6000, 4)) < truth).astype(int)
    scores = np.clip(truth + rng.normal(0, 0.2, truth.shape), 0, 1)
    sets = label_sets(targets[:3000], scores[:3000], scores[3000:], 0.9)
    assert covers_labels(sets, targets[3000:]).mean() == pytest.approx(0.9, abs=0.02)
    worse = label_sets(targets[:3000], rng.random((3000, 4)), rng.random((3000, 4)), 0.9)
    assert worse.mean() > sets.mean() + 0.05  # knowing less costs size, not coverage


def test_intervals_follow_the_spread_and_cover():
    rng = np.random.default_rng(1)
    spreads = rng.uniform(1, 10, 6000)
    predictions = rng.uniform(20, 70, 6000)
    values = predictions + spreads * rng.normal(size=6000)
    known, new = slice(3000), slice(3000, None)
    alike = value_intervals(values[known], predictions[known], predictions[new], 0.9)
    by_spread = value_intervals(values[known], predictions[known], predictions[new], 0.9, spreads[known], spreads[new])
    for intervals in (alike, by_spread):
        covered = (intervals[:, 0] <= values[new]) & (values[new] <= intervals[:, 1])
        assert covered.mean() == pytest.approx(0.9, abs=0.02)
    assert np.ptp(alike[:, 1] - alike[:, 0]) < 1e-9
    assert np.corrcoef(by_spread[:, 1] - by_spread[:, 0], spreads[new])[0, 1] > 0.999
    assert (by_spread[:, 1] - by_spread[:, 0]).mean() < (alike[:, 1] - alike[:, 0]).mean()
    # a normal residual stays within 1.645 standard deviations nine times of ten
    assert np.median((by_spread[:, 1] - by_spread[:, 0]) / spreads[new] / 2) == pytest.approx(1.645, abs=0.1)
