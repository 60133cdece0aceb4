"""The `evaluate.Metric` wrappers load from the folder of the sources, offline, and give the functions' values."""

from pathlib import Path

import numpy as np
import pytest

import ecgformers
from ecgformers.metrics.ranking import auroc, macro
from ecgformers.metrics.text_overlap import bleu

evaluate = pytest.importorskip("evaluate")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = next(Path(root) / "metrics" for root in ecgformers.__path__ if (Path(root) / "metrics").is_dir())
    modules = tmp_path_factory.mktemp("modules")
    package = modules / "metrics_copied_by_evaluate"
    package.mkdir()
    (package / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
        patch.syspath_prepend(str(modules))
        patch.setattr("evaluate.loading.init_dynamic_modules", lambda: str(package))
        yield lambda name: evaluate.load(str(folder / f"{name}.py"), cache_dir=str(modules / "cache"))


def test_classification(load):
    rng = np.random.default_rng(0)
    targets = (rng.random((30, 2)) < 0.5).astype(int)
    scores = rng.normal(size=(30, 2))
    metric = load("ecg_classification")
    result = metric.compute(predictions=scores.tolist(), references=targets.tolist(), classes=["A", "B"], resamples=20)
    assert result["auroc_macro"]["value"] == pytest.approx(macro(auroc(targets, scores)))
    assert set(result["classes"]) == {"A", "B"}


def test_retrieval(load):
    metric = load("ecg_retrieval")
    similarity, matches = [[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]], [[1, 0], [0, 1], [0, 0]]
    result = metric.compute(predictions=similarity, references=matches, ks=[1, 2])
    assert result == {"recall@1": 0.5, "recall@2": 1.0, "queries_without_match": 1}
    result = metric.compute(predictions=[[0.5]], references=[[0]])
    assert result == {"queries_without_match": 1}


def test_report(load):
    generated, reports = ["sinus rhythm normal ecg"], ["Sinus rhythm. Normal ECG."]
    result = load("ecg_report").compute(predictions=generated, references=reports)
    assert result["bleu_4"] == bleu(generated, reports) == 1
    assert result["rouge_l"] == 1


def test_selection(load):
    result = load("ecg_selection").compute(predictions=[0.9, 0.5, 0.1], references=[0, 0, 1])
    assert result == {"area_under_risk_coverage": pytest.approx(1 / 9)}
