"""The summary of a classifier: complete, serialisable, and never NaN."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgformers.metrics.bootstrap import bootstrap
from ecgformers.metrics.ranking import auroc, best_thresholds, macro
from ecgformers.metrics.summary import classification_summary, format_figure


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    targets = (rng.random((100, 3)) < [0.5, 0.3, 0.2]).astype(int)
    return targets, np.clip(rng.normal(0.3, 0.2, (100, 3)) + 0.3 * targets, 0, 1), rng.integers(80, size=100)


def test_figures_are_those_of_the_metrics(scored):
    targets, scores, patients = scored
    summary = classification_summary(targets, scores, ["A", "B", "C"], patients, resamples=40)
    expected = bootstrap(lambda weights: macro(auroc(targets, scores, weights)), patients, resamples=40)
    assert summary["auroc_macro"] == pytest.approx(vars(expected))
    assert summary["classes"]["B"]["auroc"]["value"] == pytest.approx(auroc(targets, scores)[1])
    assert summary["classes"]["B"]["positives"] == targets[:, 1].sum()
    assert (summary["records"], summary["patients"]) == (100, len(set(patients)))
    assert summary["left_out"] == {}
    assert summary["notes"] == []
    assert "brier_score_macro" not in summary
    assert "balanced_accuracy_macro" not in summary


def test_probabilities_and_thresholds_add_figures(scored):
    targets, scores, _ = scored
    thresholds = best_thresholds(targets, scores)
    summary = classification_summary(targets, scores, thresholds=thresholds, are_probabilities=True, resamples=5)
    assert 0.5 < summary["balanced_accuracy_macro"]["value"] < 1
    assert 0 < summary["brier_score_macro"]["low"] < summary["brier_score_macro"]["high"] < 1
    assert 0 < summary["calibration_error_macro"]["value"] < 1


def test_several_runs_are_averaged(scored):
    targets, scores, patients = scored
    other = scores[:, ::-1]
    summary = classification_summary(targets, np.stack([scores, other]), None, patients, resamples=20)
    alone = [classification_summary(targets, run, None, patients, resamples=20) for run in (scores, other)]
    values = [run["auroc_macro"]["value"] for run in alone]
    assert summary["auroc_macro"]["value"] == pytest.approx(np.mean(values))
    assert summary["auroc_macro_of_runs"] == pytest.approx(values)
    assert summary["auroc_macro"]["low"] > min(run["auroc_macro"]["low"] for run in alone)


def assert_no_nan(tree):
    json.dumps(tree, allow_nan=False)


@given(
    st.integers(1, 4).flatmap(
        lambda classes: st.lists(
            st.tuples(*[st.tuples(st.integers(0, 1), st.integers(0, 2))] * classes), min_size=1, max_size=6
        )
    ),
    st.booleans(),
)
@settings(deadline=None)
def test_no_nan_whatever_the_labels(rows, one_patient):
    table = np.array(rows)  # (n, classes, 2)
    targets, scores = table[..., 0], table[..., 1] / 2
    patients = np.zeros(len(rows)) if one_patient else None
    thresholds = best_thresholds(targets, scores)
    summary = classification_summary(targets, scores, None, patients, thresholds, are_probabilities=True, resamples=8)
    assert_no_nan(summary)
    for figure in (value for key, value in summary.items() if key.endswith(("_macro", "_micro"))):
        assert "nan" not in format_figure(figure)


def test_left_out_classes_are_named():
    targets = np.array([[0, 0, 1], [1, 0, 1], [0, 0, 1]])
    summary = classification_summary(targets, np.arange(9).reshape(3, 3), ["A", "B", "C"], resamples=10)
    assert summary["left_out"] == {"B": "no positives", "C": "no negatives"}
    assert "2 of 3 classes have no AUROC here" in summary["notes"][0]
    assert "B (no positives), C (no negatives)" in summary["notes"][0]
    assert summary["classes"]["B"]["auroc"] == {"value": None, "low": None, "high": None}


def test_all_classes_left_out():
    summary = classification_summary(np.zeros((4, 2)), np.zeros((4, 2)), resamples=10)
    assert_no_nan(summary)
    assert format_figure(summary["auroc_macro"]) == "–"


def test_one_patient_has_no_intervals_and_the_summary_says_so(scored):
    targets, scores, _ = scored
    summary = classification_summary(targets, scores, patients=["p"] * 100)
    assert summary["auroc_macro"]["low"] is None
    assert summary["notes"] == ["all records are of one patient: there are no intervals"]
    assert "[" not in format_figure(summary["auroc_macro"])


def test_what_does_not_fit_is_named(scored):
    targets, scores, _ = scored
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        classification_summary(targets, scores, ["A", "B"])
    with pytest.raises(ValueError, match="1 patients for 100 records"):
        classification_summary(targets, scores, patients=["p"])


def test_figures_as_text():
    assert format_figure({"value": 0.9214, "low": 0.91, "high": 0.9325}) == "92.1 [91.0, 93.2]"
    assert format_figure({"value": 0.5, "low": None, "high": None}) == "50.0"
    assert format_figure({"value": None, "low": None, "high": None}) == "–"
