"""Every evaluation on data that leave little to measure: a table with words, or an error with words, and no NaN."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from small_evaluation import evaluation_rows, label_of, write_melp, write_rows
from transformers import AutoModelForSpeechSeq2Seq

from ecgformers.evaluation import (
    few_shot,
    finetune,
    leaderboard,
    linear_probe,
    report_generation,
    retrieval,
    transfer,
    zero_shot,
)

RECIPES = {
    "zero_shot": (zero_shot, []),
    "linear_probe": (linear_probe, ["--shares", "5", "100", "--seeds", "2"]),
    "few_shot": (few_shot, ["--shots", "2", "--seeds", "2"]),
    "finetune": (finetune, ["--epochs", "1", "--skip-random"]),
    "transfer": (transfer, ["--test-task", "ptbxl_super", "--test-folds", "1-8/9/10"]),
    "retrieval": (retrieval, []),
    "report_generation": (report_generation, ["--max-new-tokens", "2"]),
}
WITHOUT_TASK = ("retrieval", "report_generation")


def absent_in_training(index: int, row: dict) -> bool:
    return label_of(index) != 4 or row["fold"] > 8


def one_patient(index: int, row: dict) -> bool:
    return row["fold"] < 10 or row["patient_id"] == "p9"


def one_record(index: int, row: dict) -> bool:
    return row["fold"] < 10 or row["record_id"] == "r18"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("degenerate")
    rows = list(enumerate(evaluation_rows(120)))
    kinds = (absent_in_training, one_patient, one_record)
    folders = {
        kind.__name__: write_rows(root / kind.__name__, [row for index, row in rows if kind(index, row)])
        for kind in kinds
    }
    folders["whole"] = write_rows(root / "whole", [row for _, row in rows])
    folders["model"], folders["constant"] = write_melp(root / "model"), write_melp(root / "constant")
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folders["constant"])
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():  # what is said of an ECG passes through these
            torch.nn.init.constant_(parameter, float(name.endswith("bias")))
    model.save_pretrained(folders["constant"])
    return folders


def arguments(recipe: str, data: str, model: str, output: Path, task: str = "ptbxl_super") -> list[str]:
    shared = ["--model", model, "--data", data, "--output", str(output), "--resamples", "5", "--device", "cpu"]
    shared += ["--folds", "1-8/9/10"]
    if recipe not in WITHOUT_TASK:
        shared += ["--task", task]
    if recipe == "transfer":
        shared += ["--test-data", data]
    return [*shared, *RECIPES[recipe][1]]


def run(recipe: str, data: str, model: str, output: Path, task: str = "ptbxl_super") -> tuple[list[dict], str]:
    """The rows and notes of a table without NaN."""
    table = RECIPES[recipe][0].main(arguments(recipe, data, model, output, task))
    assert "nan" not in (output / f"{table.name}.md").read_text().lower()
    written = (output / f"{table.name}.json").read_text()
    assert "NaN" not in written and "Infinity" not in written
    return table.rows, "; ".join(json.loads(written)["notes"])


@pytest.mark.parametrize("recipe", ["linear_probe", "few_shot", "finetune", "transfer"])
def test_a_class_without_a_positive_in_training_is_named(recipe, folders, tmp_path):
    rows, notes = run(recipe, folders["absent_in_training"], folders["model"], tmp_path)
    assert "no AUROC" not in notes and rows[0]["auroc_macro"]["value"] is not None
    assert re.search("(without a positive among the training labels:|training split has fewer of) .*HYP", notes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_single_record_has_no_intervals_and_no_auroc(recipe, folders, tmp_path):
    rows, notes = run(recipe, folders["one_record"], folders["model"], tmp_path)
    assert "all records are of one patient: there are no intervals" in notes
    figures = [value for row in rows for value in row.values() if isinstance(value, dict) and "low" in value]
    assert figures and all(figure["low"] is figure["high"] is None for figure in figures)
    assert {row["records"] for row in rows} == {1}
    if recipe not in WITHOUT_TASK:
        assert "5 of 5 classes have no AUROC here" in notes
        assert rows[0]["auroc_macro"]["value"] is None


@pytest.mark.parametrize("recipe", ["zero_shot", "retrieval"])
def test_a_single_patient_has_no_intervals(recipe, folders, tmp_path):
    rows, notes = run(recipe, folders["one_patient"], folders["model"], tmp_path)
    assert "all records are of one patient: there are no intervals" in notes
    assert {row["records"] for row in rows} == {2}


@pytest.mark.parametrize("recipe", ["zero_shot", "linear_probe", "few_shot", "finetune"])
def test_most_classes_without_a_positive(recipe, folders, tmp_path):
    rows, notes = run(recipe, folders["whole"], folders["model"], tmp_path, task="ptbxl_all")
    assert "66 of 71 classes have no AUROC here" in notes
    assert 0 <= rows[0]["auroc_macro"]["value"] <= 1


@pytest.mark.parametrize("recipe", ["zero_shot", "linear_probe", "retrieval", "report_generation"])
def test_a_model_that_says_the_same_of_everything(recipe, folders, tmp_path):
    rows, _ = run(recipe, folders["whole"], folders["constant"], tmp_path)
    own = [row for row in rows if row["method"] == "constant"]
    if recipe == "retrieval":
        assert [row["recall_at_1"]["value"] for row in own] == [0, 0, 0]
    elif recipe != "report_generation":
        assert {row["auroc_macro"]["value"] for row in own} == {0.5}


def test_a_leaderboard_of_what_there_is(folders, tmp_path):
    config = {
        "models": {"model": folders["model"]},
        "data": {"one": {"data": folders["one_record"], "resamples": 5, "device": "cpu", "folds": "1-8/9/10"}},
        "evaluations": {
            recipe: {"recipe": recipe, "data": "one"} | ({} if recipe in WITHOUT_TASK else {"tasks": ["ptbxl_super"]})
            for recipe in ("zero_shot", "retrieval")
        },
    }
    (tmp_path / "leaderboard.yaml").write_text(yaml.safe_dump(config))
    lines = leaderboard.main(["--config", str(tmp_path / "leaderboard.yaml"), "--output", str(tmp_path / "results")])
    assert {line["value"] for line in lines if line["evaluation"] == "zero_shot"} == {None}
    text = (tmp_path / "results" / "leaderboard.md").read_text()
    assert "nan" not in text.lower() and "| model | – |" in text
    assert (tmp_path / "results" / "leaderboard.png").exists()
