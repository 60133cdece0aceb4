"""The linear classifier: scikit-learn's optimum, classes that cannot be learnt, and the choice of the penalty."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ecgformers.evaluation.probing import PENALTIES, choose_probe, cross_validated_probe, fit_probes
from ecgformers.metrics.ranking import auroc


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 8)) * np.geomspace(0.1, 10, 8) + 5).astype(np.float32)
    logits = (features - 5) / np.geomspace(0.1, 10, 8) @ rng.normal(size=(8, 3)) + [0, -1, -2]
    return features, (rng.random((300, 3)) < 1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_the_optimum_is_that_of_scikit_learn(problem, penalty):
    features, targets = problem
    *_, probe = fit_probes(features, targets, [10.0, penalty])
    standard = (features - features.mean(0)) / features.std(0)
    for index, target in enumerate(targets.T):
        reference = LogisticRegression(C=1 / (penalty * len(features)), tol=1e-8, max_iter=10_000).fit(
            standard, target
        )
        np.testing.assert_allclose(probe.weight[:, index], reference.coef_[0], atol=2e-2)
        np.testing.assert_allclose(probe(features)[:, index], reference.predict_proba(standard)[:, 1], atol=5e-3)


def test_a_class_with_one_label_gets_a_constant_probability(problem):
    features, targets = problem
    targets[:, 1], targets[:, 2] = 0, 1
    *_, probe = fit_probes(features, targets)
    probabilities = probe(features * 3)
    assert np.ptp(probabilities[:, 1:], axis=0).max() == 0
    assert probabilities[0, 1] == pytest.approx(0.5 / 301)
    assert probabilities[0, 2] == pytest.approx(300.5 / 301)
    assert np.ptp(probe(features)[:, 0]) > 0.5


def test_no_class_can_be_learnt(problem):
    features, _ = problem
    probabilities = list(fit_probes(features, np.zeros((300, 2))))[-1](features)
    assert np.isfinite(probabilities).all()
    assert np.ptp(probabilities) == 0


def test_a_single_record_and_constant_features():
    *_, probe = fit_probes(np.ones((1, 4)), np.array([[0, 1]]))
    assert np.isfinite(probe(np.array([[1.0, 2.0, 3.0, 4.0]]))).all()


def test_the_penalty_is_the_best_on_validation(problem):
    features, targets = problem
    noise = np.random.default_rng(1).normal(size=(300, 200))  # many useless features: little penalty overfits
    features = np.concatenate([features, noise], 1)
    chosen = choose_probe(features[:150], targets[:150], features[150:], targets[150:])
    scores = {
        p.penalty: auroc(targets[150:], p(features[150:])).mean() for p in fit_probes(features[:150], targets[:150])
    }
    assert scores[chosen.penalty] == max(scores.values())
    assert chosen.penalty > PENALTIES[-1]


def test_without_both_labels_in_validation_there_is_nothing_to_choose_by(problem):
    features, targets = problem
    with pytest.raises(ValueError, match="nothing to choose by"):
        choose_probe(features, targets, features[:5], np.zeros((5, 3)))


def test_cross_validation_leaves_whole_patients_out(problem):
    """A feature that tells the patient, not the class, is worth nothing for patients that the probe has not seen."""
    rng = np.random.default_rng(2)
    patients = np.arange(300) // 3
    targets = rng.integers(2, size=(100, 1))[patients]
    features = rng.normal(size=(100, 60))[patients] + 0.01 * rng.normal(size=(300, 60))
    probe, left_out = cross_validated_probe(features, targets, patients)
    assert auroc(targets, probe(features))[0] > 0.8 > 0.65 > auroc(targets, left_out)[0]
    features, targets = problem
    probe, left_out = cross_validated_probe(features, targets, patients)
    assert auroc(targets, left_out).mean() > 0.8
    expected = next(fit_probes(features, targets, [probe.penalty]))
    np.testing.assert_allclose(probe(features), expected(features), atol=5e-3)


def test_a_penalty_that_cannot_be_cross_validated(problem):
    features, targets = problem
    with pytest.raises(ValueError, match="on one patient: take more records, or a validation split"):
        cross_validated_probe(features, targets, np.full(300, "p"))
    with pytest.raises(ValueError, match="no class has positives and negatives among 300 training records"):
        cross_validated_probe(features, np.zeros((300, 3)), np.arange(300))
    probe, left_out = cross_validated_probe(features[:2], np.array([[0, 1], [1, 1]]), np.arange(2))
    assert np.isfinite(left_out).all() and np.isfinite(probe(features)).all()
