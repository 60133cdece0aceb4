"""Ranking metrics: scikit-learn's values, weighted, resampled, and clear words where a class has none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ecgformers.metrics.bootstrap import resample_counts
from ecgformers.metrics.ranking import (
    auroc,
    average_precision,
    best_f1,
    best_thresholds,
    left_out_classes,
    macro,
    micro,
)


def sklearn_best_f1(target, score, sample_weight=None):
    precision, recall, _ = sklearn_metrics.precision_recall_curve(target, score, sample_weight=sample_weight)
    return (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()


REFERENCES = [
    (auroc, sklearn_metrics.roc_auc_score),
    (average_precision, sklearn_metrics.average_precision_score),
    (best_f1, sklearn_best_f1),
]


@st.composite
def rankings(draw):
    """Labels, scores with many ties, and counts as a resample draws them."""
    size = draw(st.integers(2, 30))
    cells = st.lists(st.integers(0, 1), min_size=size, max_size=size)
    target = np.array(draw(cells.filter(lambda labels: 0 < sum(labels) < len(labels))))
    score = np.array(draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))) / 2
    weights = np.array(draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    return target, score, weights


@pytest.mark.parametrize(("metric", "reference"), REFERENCES)
@given(ranking=rankings())
@settings(max_examples=60, deadline=None)
def test_values_are_those_of_scikit_learn(metric, reference, ranking):
    target, score, weights = ranking
    assert metric(target, score) == pytest.approx([reference(target, score)], abs=1e-12)
    drawn = np.repeat(np.arange(len(target)), weights)
    if 0 < target[drawn].sum() < len(drawn):
        assert metric(target, score, weights) == pytest.approx([reference(target[drawn], score[drawn])], abs=1e-12)
        assert metric(target, score, weights) == pytest.approx(
            [reference(target, score, sample_weight=weights)], abs=1e-12
        )
    else:
        assert np.isnan(metric(target, score, weights)).all()


@pytest.mark.parametrize(("metric", "reference"), REFERENCES)
def test_resamples_of_many_classes_at_once(metric, reference):
    rng = np.random.default_rng(0)
    targets = rng.random((150, 4)) < [0.5, 0.2, 0.05, 0.02]
    scores = rng.normal(size=(150, 4)).round(1) + targets
    counts = resample_counts(rng.integers(100, size=150), resamples=20)
    result = metric(targets, scores, counts)
    assert result.shape == (20, 4)
    for row, count in zip(result, counts, strict=True):
        drawn = np.repeat(np.arange(150), count)
        for value, target, score in zip(row, targets[drawn].T, scores[drawn].T, strict=True):
            expected = reference(target, score) if 0 < target.sum() < len(target) else np.nan
            assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_the_size_of_blocks_does_not_matter(block, monkeypatch):
    rng = np.random.default_rng(0)
    targets, scores = rng.random((40, 3)) < 0.4, rng.normal(size=(40, 3))
    counts = resample_counts(np.arange(40), resamples=11)
    expected, together = auroc(targets, scores, counts), micro(auroc, targets, scores, counts)
    monkeypatch.setattr("ecgformers.metrics.ranking.BLOCK", block)
    monkeypatch.setattr("ecgformers.metrics.ranking.MICRO_BLOCK", block)
    np.testing.assert_array_equal(auroc(targets, scores, counts), expected)
    np.testing.assert_array_equal(micro(auroc, targets, scores, counts), together)


def test_macro_and_micro_averages():
    rng = np.random.default_rng(1)
    targets, scores = rng.random((60, 3)) < 0.4, rng.normal(size=(60, 3))
    for metric, reference in REFERENCES[:2]:
        assert macro(metric(targets, scores)) == pytest.approx(reference(targets, scores, average="macro"))
        assert micro(metric, targets, scores) == pytest.approx(reference(targets, scores, average="micro"))
    counts = resample_counts(np.arange(60), resamples=3)
    drawn = np.repeat(np.arange(60), counts[2])
    assert micro(auroc, targets, scores, counts)[2] == pytest.approx(
        sklearn_metrics.roc_auc_score(targets[drawn], scores[drawn], average="micro")
    )


@pytest.mark.parametrize("metric", [auroc, average_precision, best_f1])
def test_a_class_with_one_label_has_no_value_and_does_not_count_in_the_mean(metric):
    targets = np.array([[0, 0, 1], [1, 0, 1], [1, 0, 1]])
    scores = np.array([[0.1, 0.2, 0.3], [0.2, 0.1, 0.2], [0.3, 0.5, 0.1]])
    per_class = metric(targets, scores)
    assert np.isnan(per_class).tolist() == [False, True, True]
    assert macro(per_class) == per_class[0] == 1
    assert left_out_classes(targets, ["A", "B", "C"]) == {"B": "no positives", "C": "no negatives"}
    assert np.isnan(macro(per_class[1:]))


def test_constant_scores_rank_by_chance():
    targets = np.array([0, 1, 0, 0])
    assert auroc(targets, np.zeros(4)) == [0.5]
    assert average_precision(targets, np.zeros(4)) == [0.25]
    assert best_f1(targets, np.zeros(4)) == [pytest.approx(0.4)]


def test_best_thresholds_reach_the_best_f1():
    rng = np.random.default_rng(2)
    targets = rng.random((80, 3)) < 0.3
    scores = (rng.normal(size=(80, 3)) + targets).round(1)
    thresholds = best_thresholds(targets, scores)
    reached = [sklearn_metrics.f1_score(t, s >= th) for t, s, th in zip(targets.T, scores.T, thresholds, strict=True)]
    np.testing.assert_allclose(reached, best_f1(targets, scores))
    assert np.isnan(best_thresholds(np.zeros(3), np.arange(3))).all()


@pytest.mark.parametrize(
    ("targets", "scores", "message"),
    [
        ([0, 1], [0.5], r"\(2,\) and \(1,\)"),
        ([], [], "n > 0"),
        ([0, 2], [0.5, 0.6], "record 1, class 0 has 2"),
        ([[0, 1], [0, 1]], [[0.5, 0.1], [0.5, np.nan]], "record 1, class 1 has nan"),
    ],
)
def test_what_is_wrong_is_named(targets, scores, message):
    with pytest.raises(ValueError, match=message):
        auroc(targets, scores)


def test_weights_of_another_length_are_refused():
    with pytest.raises(ValueError, match="weights must be"):
        auroc([0, 1], [0.1, 0.2], [1, 1, 1])
