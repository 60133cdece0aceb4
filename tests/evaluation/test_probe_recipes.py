"""Linear probe, few-shot and transfer: whole commands on simulated ECGs that an outside encoder can tell apart."""

import json
import sys
import types

import numpy as np
import pytest
from small_evaluation import MeanAndSpread, evaluation_rows, label_of, write_melp_encoder, write_rows

from ecgformers.evaluation import few_shot, linear_probe, transfer
from ecgformers.evaluation.records import load_task


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data"), evaluation_rows(200))


@pytest.fixture
def outside(monkeypatch) -> str:
    class Theirs(MeanAndSpread):
        def random(self, seed):
            rng = np.random.default_rng(seed)
            noise = types.SimpleNamespace(encode=lambda ecgs: rng.normal(size=(len(ecgs), 3)))
            return noise

    module = types.ModuleType("theirs")
    module.make = Theirs
    monkeypatch.setitem(sys.modules, "theirs", module)
    return "theirs:make"


def arguments(model, data, output, *more):
    return [
        "--model",
        model,
        "--data",
        data,
        "--task",
        "ptbxl_super",
        "--output",
        str(output),
        "--resamples",
        "20",
        *more,
    ]


def values(table):
    return {(row["method"], row["protocol"]): row["auroc_macro"]["value"] for row in table.rows}


@pytest.mark.parametrize("folds", ["1-8/9/10", "1-8//10"])
def test_a_good_encoder_beats_noise_and_the_prior(outside, data, tmp_path, folds):
    table = linear_probe.main(arguments(outside, data, tmp_path, "--shares", "20", "100", "--folds", folds))
    found = values(table)
    assert found["theirs:make", "probe, 100 % of labels"] > 0.8
    assert found["theirs:make", "probe, 3 draws of 20 % of labels"] > 0.7
    assert found["random encoder", "probe, 100 % of labels"] < 0.7
    assert found["prior", "share of positives in training"] == 0.5
    row = table.rows[0]
    assert len(row["auroc_macro_of_runs"]) == 3
    assert row["auroc_macro"]["value"] == pytest.approx(np.mean(row["auroc_macro_of_runs"]))
    assert {"brier_score_macro", "calibration_error_macro", "balanced_accuracy_macro"} <= row.keys()


def test_one_of_our_models_with_features_on_disk(data, tmp_path):
    folder = write_melp_encoder(tmp_path / "model")
    first = linear_probe.main(arguments(folder, data, tmp_path / "results", "--shares", "100", "--device", "cpu"))
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "features").glob("*.npy")}
    assert len(stored) == 2  # the encoder and the random one
    second = linear_probe.main(arguments(folder, data, tmp_path / "results", "--shares", "100", "--device", "cpu"))
    assert values(first) == values(second)


def test_the_same_draws_for_the_same_seed(data):
    task_data = load_task(data, "ptbxl_super")
    first, again = (linear_probe.draw_shares(task_data, 10, 3, 2) for _ in range(2))
    assert [len(draw) for draw in first] == [16, 16]
    assert set(task_data.splits[first[0]]) == {"train"}
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != first[1]).any()
    assert [len(draw) for draw in linear_probe.draw_shares(task_data, 100, 3, 2)] == [160]


def test_one_label_and_an_absent_class_leave_words_not_nan(outside, tmp_path):
    rows = [row for index, row in enumerate(evaluation_rows(200)) if label_of(index) != 4 or row["fold"] >= 9]
    data = write_rows(tmp_path / "data", rows)
    table = linear_probe.main(arguments(outside, data, tmp_path, "--shares", "0.1", "100"))
    result = json.loads((tmp_path / f"{table.name}.json").read_text())
    assert "NaN" not in (tmp_path / f"{table.name}.json").read_text()
    assert "nan" not in table.markdown()
    assert any("without a positive among the training labels: HYP" in note for note in result["notes"])
    assert result["rows"][-1]["left_out"] == {}


def test_without_validation_records_the_probe_says_so(outside, data, tmp_path):
    with pytest.raises(ValueError, match="no record that takes part is in split test"):
        linear_probe.main(arguments(outside, data, tmp_path, "--folds", "1-8/9/"))


@pytest.mark.parametrize(
    ("recipe", "option", "message"),
    [
        (linear_probe, ["--shares", "10", "0"], "0 % is not above 0 and at most 100"),
        (linear_probe, ["--shares", "101"], "101 % is not above 0 and at most 100"),
        (linear_probe, ["--seeds", "0"], "0 is less than 1"),
        (few_shot, ["--shots", "-4"], "-4 is less than 1"),
    ],
)
def test_shares_and_counts_must_leave_something(recipe, option, message, outside, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        recipe.main(arguments(outside, data, tmp_path, *option))


def test_few_shot(outside, data, tmp_path):
    table = few_shot.main(arguments(outside, data, tmp_path, "--shots", "1", "40", "--seeds", "3"))
    found = values(table)
    assert found["theirs:make", "40-shot, 3 draws"] > max(0.75, found["random encoder", "40-shot, 3 draws"])
    assert "40-shot: the training split has fewer of NORM, MI, STTC, CD, HYP" in table.notes


def test_shots_are_drawn_of_every_class(data):
    task_data = load_task(data, "ptbxl_super")
    draw = few_shot.draw_shots(task_data, 3, seed=0)
    np.testing.assert_array_equal(task_data.targets[draw].sum(0), 3)
    assert set(task_data.splits[draw]) == {"train"}
    assert (draw != few_shot.draw_shots(task_data, 3, seed=1)).any()


def test_transfer_over_shared_classes(outside, data, tmp_path):
    other = write_rows(tmp_path / "other", evaluation_rows(60, seed=5))
    more = ["--test-data", other, "--test-task", "ptbxl_all", "--same", "IMI=MI", "--test-folds", "//1-10"]
    table = transfer.main(arguments(outside, data, tmp_path, *more))
    assert "classes: NORM=NORM, IMI=MI" in table.notes
    assert values(table)["theirs:make", "probe of ptbxl_super"] > 0.8
    assert {row["records"] for row in table.rows} == {60}
    assert (tmp_path / "transfer_ptbxl_super_ptbxl_all_theirs-make.json").exists()


def test_transfer_needs_classes_in_common(outside, data, tmp_path):
    rows = evaluation_rows(60)
    for row in rows:
        row["statements"].append({"code": "SR", "likelihood": 0.0})
    more = ["--test-data", write_rows(tmp_path, rows), "--test-task"]
    with pytest.raises(ValueError, match="share no class: say which are the same by --same"):
        transfer.main(arguments(outside, data, tmp_path, *more, "ptbxl_rhythm"))
    for same, message in (("IMI=XYZ", "ptbxl_super has no class XYZ"), ("IMI", "--same IMI: give TEST=TRAINING")):
        with pytest.raises(ValueError, match=message):
            transfer.main(arguments(outside, data, tmp_path, *more, "ptbxl_all", "--same", same))
