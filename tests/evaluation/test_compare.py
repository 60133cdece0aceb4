"""Two results compared record by record: known differences, rows by name, and what cannot be compared."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_evaluation import CLASSES, evaluation_rows, label_of, write_melp, write_rows

from ecgformers.evaluation import report_generation, retrieval, zero_shot
from ecgformers.evaluation.compare import Result, main
from ecgformers.evaluation.options import EvaluationOptions
from ecgformers.evaluation.records import load_task
from ecgformers.evaluation.tables import ClassificationTable
from ecgformers.metrics.ranking import auroc, macro


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data"), evaluation_rows(100))


def write_result(folder: Path, model: str, data: str, noise: float, which=slice(None), protocol="no labels", **task):
    """A result on the training records, with scores that are the labels plus noise; 3 runs."""
    options = EvaluationOptions(model=model, data=data, split="train", output=folder, resamples=0)
    train = load_task(data, "ptbxl_super").part("train")
    train = train.take(np.arange(len(train))[which])
    rng = np.random.default_rng(int(100 * noise))
    table = ClassificationTable("zero_shot", options, train)
    table.add(model, train.targets + noise * rng.normal(size=(3, *train.targets.shape)), protocol)
    table.add("prior", np.zeros(train.targets.shape), "the same score for all")
    table.write()
    return folder / f"zero_shot_ptbxl_super_{model}.json"


def compare(first, second, output, *more) -> list[dict]:
    return main([str(first), str(second), "--output", str(output), "--resamples", "300", *more])


def test_the_better_model_is_better_and_the_interval_says_so(data, tmp_path):
    good = write_result(tmp_path / "good", "good", data, 0.3)
    poor = write_result(tmp_path / "poor", "poor", data, 2.0)
    rows = {row["figure"]: row for row in compare(good, poor, tmp_path)}
    assert list(rows) == ["macro AUROC", "macro AP", *(f"AUROC of {name}" for name in CLASSES)]
    row, results = rows["macro AUROC"], (Result.load(good), Result.load(poor))
    expected = [
        np.mean([macro(auroc(result.targets, run)) for run in result.rows[f"{result.model}, no labels"]])
        for result in results
    ]
    assert [row["first_value"], row["second_value"]] == pytest.approx(expected)
    assert row["value"] == pytest.approx(expected[0] - expected[1])
    assert 0 < row["low"] < row["value"] < row["high"] and row["p_value"] < 0.05
    written = json.loads((tmp_path / "compare_good_poor_zero_shot_ptbxl_super.json").read_text())
    assert written["rows"] == list(rows.values())
    text = (tmp_path / "compare_good_poor_zero_shot_ptbxl_super.md").read_text()
    assert f"{100 * row['value']:+.1f} [" in text and "not a medical device" in text
    assert "among many, some are small by chance" in text
    swapped = compare(poor, good, tmp_path)[0]
    assert swapped["value"] == pytest.approx(-row["value"]) and swapped["p_value"] == row["p_value"]


def test_a_model_does_not_differ_from_itself(data, tmp_path):
    same = write_result(tmp_path / "same", "same", data, 1.0)
    for row in compare(same, same, tmp_path):
        assert (row["value"], row["low"], row["high"], row["p_value"]) == (0, 0, 0, 1)


def test_any_two_rows(data, tmp_path):
    result = write_result(tmp_path / "model", "model", data, 1.0)
    row = compare(result, result, tmp_path, "--rows", "model, no labels", "prior, the same score for all")[0]
    assert row["second_value"] == 0.5 and row["value"] > 0
    with pytest.raises(ValueError, match="has no row 'model, magic'; there are: model, no labels; prior, the same"):
        compare(result, result, tmp_path, "--rows", "model, no labels", "model, magic")


def test_records_that_one_model_refused_are_left_out_of_both(data, tmp_path):
    whole = write_result(tmp_path / "a", "a", data, 0.5)
    part = write_result(tmp_path / "b", "b", data, 0.5, which=slice(60, 10, -1))
    assert compare(whole, part, tmp_path)[0]["records"] == 50
    assert "- only the 50 records that both have, of 80 and 50" in next(tmp_path.glob("*.md")).read_text()


def test_what_cannot_be_compared_is_named(data, tmp_path):
    first = write_result(tmp_path / "a", "a", data, 0.5, which=slice(40))
    for changes, message in (
        ({"which": slice(40, None)}, "no record in common"),
        ({"protocol": "probe"}, "no protocol in common; say by --rows what to compare: a, no labels; or b, probe"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(first, write_result(tmp_path / "b", "b", data, 0.5, **changes), tmp_path)
    other_labels = [row | {"statements": [{"code": "LVH", "likelihood": 100.0}]} for row in evaluation_rows(100)]
    others = write_result(tmp_path / "b", "b", write_rows(tmp_path / "data", other_labels), 0.5)
    with pytest.raises(ValueError, match=r"record r\d+ has another patient or other labels"):
        compare(first, others, tmp_path)
    alone = write_result(tmp_path / "c", "c", data, 0.5, which=slice(2))
    with pytest.raises(ValueError, match="at least 2 patients, there is 1"):
        compare(first, alone, tmp_path)
    with pytest.raises(FileNotFoundError):
        compare(first, tmp_path / "none.json", tmp_path)


def test_a_class_without_positives_has_words_not_nan(tmp_path):
    rows = [row for index, row in enumerate(evaluation_rows(100)) if label_of(index) != 4 or row["fold"] == 9]
    data = write_rows(tmp_path / "data", rows)
    results = [write_result(tmp_path / name, name, data, noise) for name, noise in (("a", 0.5), ("b", 1.0))]
    rows = {row["figure"]: row for row in compare(*results, tmp_path)}
    assert rows["AUROC of HYP"]["value"] is None and rows["macro AUROC"]["value"] is not None
    assert "| AUROC of HYP | – | – | – | – |" in next(tmp_path.glob("*.md")).read_text()


def test_results_of_every_kind_of_evaluation(data, tmp_path):
    folder = write_melp(tmp_path / "model")
    shared = ["--model", folder, "--data", data, "--output", str(tmp_path), "--resamples", "0", "--device", "cpu"]
    zero_shot.main([*shared, "--task", "ptbxl_super"])
    retrieval.main(shared)
    report_generation.main([*shared, "--max-new-tokens", "4"])
    for name, rows, figure, key in (
        ("zero_shot_ptbxl_super", ("model, no labels", "random encoder, no labels"), "macro AUROC", "auroc_macro"),
        ("retrieval", ("model, same patient", "chance, same patient"), "recall_at_1", "recall_at_1"),
        ("retrieval", ("model, report of an ECG", "chance, report or ECG"), "recall_at_5", "recall_at_5"),
        ("report_generation", ("model, greedy", "most frequent report, for everybody"), "rouge_l", "rouge_l"),
    ):
        path = tmp_path / f"{name}_model.json"
        found = {row["figure"]: row for row in compare(path, path, tmp_path, "--rows", *rows)}
        written = {f"{row['method']}, {row['protocol']}": row for row in json.loads(path.read_text())["rows"]}
        values = [found[figure][which] for which in ("first_value", "second_value")]
        assert values == pytest.approx([written[row][key]["value"] for row in rows], abs=1e-6)
