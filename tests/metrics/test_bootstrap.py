"""Intervals by patient: drawn by patient, right coverage, pairs compared on the same draws."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ecgformers.metrics.bootstrap import bootstrap, interval, paired_bootstrap, resample_counts
from ecgformers.metrics.ranking import auroc, average_precision, macro


def mean_of(values):
    return lambda weights: (weights @ values) / weights.sum(-1)


def test_patients_are_drawn_with_all_their_records():
    patients = np.array(["a", "b", "a", "c", "b"])
    counts = resample_counts(patients, resamples=500)
    assert counts.shape == (500, 5)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 4])
    np.testing.assert_array_equal(counts[:, [0, 1, 3]].sum(1), 3)  # as many patients as there are
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.15)
    np.testing.assert_array_equal(counts, resample_counts(patients, resamples=500))
    assert (counts != resample_counts(patients, resamples=500, seed=1)).any()


def test_one_patient_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 patients, there is 1"):
        resample_counts(["a", "a", "a"])


def test_interval_of_a_mean_agrees_with_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    estimate = bootstrap(mean_of(values), np.arange(400), resamples=4000)
    error = values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_records_of_one_patient_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).normal(size=50), 8)
    alone = bootstrap(mean_of(values), np.arange(400))
    by_patient = bootstrap(mean_of(values), np.repeat(np.arange(50), 8))
    ratio = (by_patient.high - by_patient.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(8), rel=0.15)


def test_interval_of_macro_auroc_is_that_of_a_loop_over_scikit_learn():
    rng = np.random.default_rng(3)
    targets = rng.random((120, 3)) < 0.4
    scores = rng.normal(size=(120, 3)) + targets
    patients = rng.integers(90, size=120)
    estimate = bootstrap(lambda weights: macro(auroc(targets, scores, weights)), patients, resamples=50)
    rows = [np.repeat(np.arange(120), count) for count in resample_counts(patients, resamples=50)]
    loop = [roc_auc_score(targets[row], scores[row], average="macro") for row in rows]
    bounds = np.quantile(loop, [0.025, 0.975]) - np.mean(loop) + roc_auc_score(targets, scores, average="macro")
    assert (estimate.low, estimate.high) == pytest.approx(tuple(bounds))


def test_an_interval_holds_its_value_though_resampling_is_biased():
    """Average precision with a single positive: whenever it is drawn, it is drawn more often than once on average."""
    rng = np.random.default_rng(0)
    targets, scores = np.arange(300) == 0, rng.normal(size=300)
    counts = resample_counts(np.arange(300))
    value, resampled = average_precision(targets, scores)[0], average_precision(targets, scores, counts)[:, 0]
    assert np.nanmean(resampled) > 1.2 * value
    low, high = interval(resampled, value)
    assert low < value < high


def test_resamples_without_a_value_are_left_out():
    assert interval(np.array([np.nan, 1.0, 2.0, 3.0]), 2.5, level=1.0) == (1.5, 3.5)
    assert np.isnan(interval(np.full(3, np.nan), np.nan)).all()


def test_paired_bootstrap_sees_a_small_steady_difference():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=300)
    better, worse = mean_of(difficulty + 0.05 + 0.1 * rng.normal(size=300)), mean_of(difficulty)
    difference = paired_bootstrap(better, worse, np.arange(300))
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p_value < 0.01
    swapped = paired_bootstrap(worse, better, np.arange(300))
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(
        (-difference.value, -difference.high, -difference.low)
    )
    assert paired_bootstrap(worse, worse, np.arange(300)).p_value == 1
