"""The uncertainty command, on simulated recordings: what it writes, and that its parts do what they say."""

import json

import numpy as np
import pytest
import simulated_echo
import tiny_echoing_ecg
import torch
from datasets import load_dataset
from small_evaluation import evaluation_rows, feature_extractor, write_echoing_ecg, write_melp, write_rows
from tiny_melp import tiny_tokenizer

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation import zero_shot_value
from ecgformers.evaluation.corruption import CorruptedExtractor, Corruption
from ecgformers.evaluation.records import load_task
from ecgformers.evaluation.uncertainty import (
    calibrated,
    conformal_trial,
    main,
    parts_of_patients,
    sure_prompts,
    with_contrast,
)
from ecgformers.evaluation.zero_shot_value import embed_prompts, load_ejection_fractions
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.processing_ecg import EcgProcessor


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data"), evaluation_rows(200))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, str]:
    """Simulated patients with LVEF, the simulated teacher, and an untrained model whose space is as wide."""
    root = tmp_path_factory.mktemp("pairs")
    data, _ = simulated_echo.write_pairs(root / "data", patients=60)
    torch.manual_seed(0)
    EchoingEcgModel(tiny_echoing_ecg.tiny_config(projection_dim=simulated_echo.DIM)).save_pretrained(root / "model")
    extractor = feature_extractor(num_samples=simulated_echo.SAMPLES)
    EcgProcessor(extractor, tiny_tokenizer(), max_text_length=31).save_pretrained(root / "model")
    return {"data": data, "teacher": simulated_echo.write_teacher(root / "teacher"), "model": str(root / "model")}


def test_classes_give_tables_scores_and_figures(data, tmp_path):
    model, output = write_echoing_ecg(tmp_path / "model"), tmp_path / "results"
    options = ["--data", data, "--task", "ptbxl_super", "--split", "train", "--output", str(output), "--device", "cpu"]
    table = main(["--model", model, *options, "--resamples", "20", "--trials", "5", "--corrupted", "12"])
    rows = {(row["method"], row["protocol"]): row for row in table.rows}
    assert {method for method, _ in rows} == {"model", "random encoder"}
    halves = ("lower uncertainty", "higher uncertainty")
    whole, lower, higher = (rows["model", name] for name in ("all records", *halves))
    assert lower["records"] + higher["records"] == whole["records"] == 160
    assert lower["uncertainty"]["value"] <= whole["uncertainty"]["value"] <= higher["uncertainty"]["value"]
    assert ("model", "all records, prompts of lower variance") in rows

    conformal = json.loads((output / "conformal_ptbxl_super_model.json").read_text())["rows"]
    assert [row["protocol"] for row in conformal] == ["80 % stated"] * 2 + ["90 % stated"] * 2
    assert all(row["lowest"]["value"] <= row["coverage"]["value"] <= row["highest"]["value"] for row in conformal)
    corruption = json.loads((output / "corruption_ptbxl_super_model.json").read_text())["rows"]
    assert len(corruption) == 8 and corruption[0]["raised"]["value"] == 0
    for name in ("risk_coverage", "reliability", "uncertainty"):
        assert (output / f"{name}_ptbxl_super_model.png").read_bytes().startswith(b"\x89PNG")
    with np.load(output / "uncertainty_ptbxl_super_model.npz") as values:
        assert np.isnan(values["model, lower uncertainty"]).any(1).sum() == higher["records"]


@pytest.mark.parametrize("task", ["lvef", "lvef_below_40"])
def test_ejection_fractions_give_intervals_and_binary_tasks_sets(pairs, tmp_path, task):
    options = ["--model", pairs["model"], "--data", pairs["data"], "--task", task, "--output", str(tmp_path)]
    options += ["--teacher", pairs["teacher"], "--language", "en", "--resamples", "0", "--corrupted", "0"]
    table = main([*options, "--trials", "40", "--split", "train", "--device", "cpu"])
    assert all(row["balanced_accuracy"]["value"] is not None for row in table.rows)
    rows = json.loads((tmp_path / f"conformal_{task}_model.json").read_text())["rows"]
    assert ("model, width by uncertainty" in {row["method"] for row in rows}) == (task == "lvef")
    for row in rows:
        stated = float(row["protocol"].split()[0]) / 100
        assert row["coverage"]["value"] > stated - 0.05, row


def test_a_model_without_gaussians_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="MelpModel, which has no Gaussians"):
        main(["--model", write_melp(tmp_path), "--data", data, "--task", "ptbxl_super", "--output", str(tmp_path)])


def test_a_teacher_of_another_space_is_refused(pairs):
    narrow = EchoingEcgModel(tiny_echoing_ecg.tiny_config(projection_dim=8))
    with pytest.raises(ValueError, match="no space of embeddings in common"):
        embed_prompts(narrow, None, ["lvef 40 %"], pairs["teacher"])


def test_calibration_and_sets_come_from_other_patients(data):
    records = load_task(data, "ptbxl_super").part("train")
    rng = np.random.default_rng(0)
    answers = records.targets + rng.normal(0, 0.5, records.targets.shape)
    predictions = calibrated(records, answers, seed=0)
    part = parts_of_patients(records.patients, 2, np.random.default_rng(0))
    for patient in np.unique(records.patients):
        assert len(set(part[records.patients == patient])) == 1
    changed = records.targets.copy()
    changed[part == 0] = 1 - changed[part == 0]
    other = calibrated(type(records)(**{**vars(records), "targets": changed}), answers, seed=0)
    assert np.array_equal(other[part == 0], predictions[part == 0])  # its own labels play no part
    assert not np.array_equal(other[part == 1], predictions[part == 1])

    trials = np.array([conformal_trial(records, answers, None, 0.8, seed) for seed in range(60)])
    assert np.isnan(trials).all(2).mean() == pytest.approx(0.5, abs=0.02)
    assert np.nanmean(trials[..., 0]) == pytest.approx(0.8, abs=0.06)


def test_a_binary_task_gets_its_complement_as_a_class(pairs):
    records = with_contrast(load_task(pairs["data"], "lvef_below_40").part("test"))
    assert records.task.classes == ("lvef_below_40", "lvef_at_least_40")
    assert np.array_equal(records.targets.sum(1), np.ones(len(records)))
    lvef = load_ejection_fractions(pairs["data"]).part("test").targets[:, 0]
    assert np.array_equal(records.targets[:, 0] == 1, lvef < 40)


def test_the_surest_prompts_of_each_class_are_kept():
    texts = {"A": ["a0", "a1", "a2"], "B": ["b0"]}
    variances = torch.tensor([3.0, 1, 2, 9])
    text = torch.stack([torch.zeros(4), variances.log()], dim=-1)  # mean 0, one dimension
    kept, names = sure_prompts(text, texts, kept=0.5)
    assert names == {"A": ["a1", "a2"], "B": ["b0"]}
    assert torch.equal(kept, text[[1, 2, 3]])


def test_corruption_is_as_loud_as_stated_and_grows(pairs):
    records = [row_to_record(row) for row in load_dataset(pairs["data"], split="test").select(range(4))]
    extractor = feature_extractor(num_samples=simulated_echo.SAMPLES, inconsistent_leads="ignore")

    def corrupted(**kind) -> dict[str, np.ndarray]:
        return CorruptedExtractor(extractor, Corruption(**kind), seed=1)(records, return_tensors="np")

    clean = extractor(records, return_tensors="np")
    assert np.array_equal(corrupted()["input_values"], clean["input_values"])
    loud, quiet = (corrupted(noise_db=level)["input_values"] - clean["input_values"] for level in (0, 20))
    ratios = 20 * np.log10(np.stack([r.signal.std(1) for r in records]) / loud.std(-1))
    np.testing.assert_allclose(ratios, 0, atol=1.0)
    np.testing.assert_allclose(loud, 10 * quiet, atol=1e-4)
    one, three = (corrupted(dropped_leads=number)["lead_mask"] for number in (1, 3))
    assert (one.sum(1) == 11).all() and (three.sum(1) == 9).all() and (three <= one).all()
    assert len({tuple(mask) for mask in three.tolist()}) > 1  # other leads for other recordings


def test_the_value_command_compares_with_the_median(pairs, tmp_path):
    options = ["--model", pairs["model"], "--data", pairs["data"], "--output", str(tmp_path), "--language", "en"]
    table = zero_shot_value.main([*options, "--teacher", pairs["teacher"], "--resamples", "20", "--device", "cpu"])
    assert [row["method"] for row in table.rows] == ["model", "random encoder", "prior"]
    prior, lvef = table.rows[2], load_ejection_fractions(pairs["data"]).part("test").targets[:, 0]
    train = load_ejection_fractions(pairs["data"]).part("train").targets[:, 0]
    assert prior["absolute_error"]["value"] == pytest.approx(np.abs(lvef - np.median(train)).mean() / 100, rel=1e-6)
    assert prior["balanced_accuracy_40"]["value"] == 0.5 and prior["rank_correlation"]["value"] is None
