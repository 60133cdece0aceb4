"""Balanced accuracy, Brier score, calibration error, risk and coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ecgformers.metrics.bootstrap import resample_counts
from ecgformers.metrics.decisions import (
    area_under_risk_coverage,
    balanced_accuracy,
    brier_score,
    calibration_error,
    risk_coverage,
)


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 3)) < [0.5, 0.3, 0.1]).astype(int)
    return targets, np.clip(rng.normal(0.3, 0.2, (200, 3)) + 0.3 * targets, 0, 1)


def test_values_are_those_of_scikit_learn(scored):
    targets, probabilities = scored
    counts = resample_counts(np.arange(200), resamples=4)
    drawn = np.repeat(np.arange(200), counts[3])
    for weights, rows in ((None, slice(None)), (counts, drawn)):
        balanced = np.atleast_2d(balanced_accuracy(targets, probabilities > 0.5, weights))[-1]
        brier = np.atleast_2d(brier_score(targets, probabilities, weights))[-1]
        for index, (target, probability) in enumerate(zip(targets[rows].T, probabilities[rows].T, strict=True)):
            expected = sklearn_metrics.balanced_accuracy_score(target, probability > 0.5)
            assert balanced[index] == pytest.approx(expected)
            assert brier[index] == pytest.approx(sklearn_metrics.brier_score_loss(target, probability))


def test_balanced_accuracy_without_negatives_has_no_value():
    assert np.isnan(balanced_accuracy([1, 1], [1, 0])).all()


def test_calibration_error_of_known_bins():
    probabilities = np.array([0.05, 0.05, 0.95, 0.95])
    targets = np.array([0, 1, 1, 1])  # low bin: says 0.05, is 0.5; high bin: says 0.95, is 1
    assert calibration_error(targets, probabilities, bins=10) == pytest.approx([(2 * 0.45 + 2 * 0.05) / 4])
    weights = np.array([[1, 1, 0, 0], [0, 0, 1, 3]])
    assert calibration_error(targets, probabilities, 10, weights).ravel() == pytest.approx([0.45, 0.05])


def test_calibration_error_against_a_loop(scored):
    targets, probabilities = scored
    expected = []
    for target, probability in zip(targets.T, probabilities.T, strict=True):
        total = 0.0
        for low in np.arange(15) / 15:
            inside = (probability >= low) & ((probability < low + 1 / 15) | (low == 14 / 15))
            if inside.any():
                total += inside.mean() * abs(probability[inside].mean() - target[inside].mean())
        expected.append(total)
    assert calibration_error(targets, probabilities) == pytest.approx(expected)


def test_probabilities_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\], not 0\.5 to 1\.5"):
        brier_score([0, 1], [0.5, 1.5])


def test_risk_coverage_of_a_known_order():
    # Most confident first: losses 0, 0, 1 give risks 0, 0, 1/3.
    assert area_under_risk_coverage([1, 0, 0], [0.1, 0.9, 0.5]) == pytest.approx(1 / 9)
    assert area_under_risk_coverage([1, 0, 0], [0.9, 0.5, 0.1]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


@given(losses=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_constant_confidence_gives_the_mean_loss(losses):
    assert area_under_risk_coverage(losses, np.zeros(len(losses))) == pytest.approx(np.mean(losses))


@given(
    pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=8),
)
def test_ties_count_as_their_mean_over_orders(pairs):
    losses, confidences = np.array(pairs).T
    rng = np.random.default_rng(0)
    orders = [np.lexsort((rng.random(len(pairs)), -confidences)) for _ in range(600)]
    risks = [(losses[order].cumsum() / np.arange(1, len(pairs) + 1)).mean() for order in orders]
    assert area_under_risk_coverage(losses, confidences) == pytest.approx(np.mean(risks), abs=0.1)


def test_losses_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        area_under_risk_coverage([np.nan], [1.0])
    with pytest.raises(ValueError, match="n > 0"):
        area_under_risk_coverage([], [])


def test_the_risk_coverage_curve_ends_at_the_mean_loss():
    losses, confidences = np.array([1.0, 0, 0, 1]), np.array([0.1, 0.9, 0.5, 0.5])
    np.testing.assert_allclose(risk_coverage(losses, confidences), [0, 0.25, 1 / 3, 0.5])  # two are tied
    assert area_under_risk_coverage(losses, confidences) == risk_coverage(losses, confidences).mean()
