"""The recipe of the shipped classifiers on simulated ECGs: it learns, calibrates, and leaves a folder that answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_evaluation import evaluation_rows, write_echoing_ecg, write_melp, write_rows
from transformers import AutoConfig, pipeline

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation import classifier
from ecgformers.evaluation.records import load_records
from ecgformers.evaluation.tasks import TASKS, words
from ecgformers.training import train_classifier

RECORDS = 160
LOOP = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2, "average": 0.9}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    rows = evaluation_rows(RECORDS)
    for index, row in enumerate(rows):
        row["age"], row["sex"] = 30.0 + index % 60, ("female", "male")[index // 20 % 2]
        row["statements"].append({"code": ("SR", "AFIB")[index % 2], "likelihood": 0.0})
    return write_rows(tmp_path_factory.mktemp("data"), rows)


def train(root: Path, model: str, data: str, **settings) -> Path:
    loop = LOOP | {"output": str(root / "run"), "epochs": 4}
    section = {"data": data, "model": model, "windows": [100, 200], "few_leads": 0.2, "cache": str(root / "cache")}
    root.mkdir(exist_ok=True)
    (root / "config.yaml").write_text(yaml.safe_dump({"classifier": section | {"loop": loop} | settings}))
    train_classifier.main(["--config", str(root / "config.yaml")])
    return root / "run" / "best"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("melp")
    return train(root, write_melp(root / "model"), data)


def test_it_learns(trained):
    lines = [json.loads(line) for line in (trained.parent / "log.jsonl").read_text().splitlines()]
    scores = [line["auroc_all"] for line in lines if "auroc_all" in line]
    assert len(scores) == 4 and max(scores) > 0.7


def test_the_folder_answers_in_words_with_calibrated_probabilities(trained, data):
    config = AutoConfig.from_pretrained(trained)
    names = list(words(TASKS["ptbxl_all"]).values())
    assert [config.id2label[index] for index in range(71)] == names
    assert len(config.thresholds) == 71 and config.logit_temperature > 0
    assert config.thresholds[names.index("paced rhythm")] == 0.5  # nobody has it: no threshold of its own
    answer = pipeline("ecg-classification", model=str(trained), device="cpu")
    records = load_records(data).part("test")
    record = row_to_record(records.ecgs[int(records.rows[0])])
    found = {entry["label"]: entry["score"] for entry in answer(record)}
    inputs = answer.feature_extractor(record, return_tensors="pt")
    with torch.no_grad():
        logits = answer.model(**inputs).logits[0]
    expected = (logits / config.logit_temperature).sigmoid().tolist()
    assert found == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-6)

    groups = {entry["label"]: entry["score"] for entry in answer(record, level="superclass")}
    assert list(groups) == sorted(groups, key=lambda name: -groups[name]) and len(groups) == 5
    blocks = config.groups["superclass"]["conduction disturbance"]
    assert "left bundle branch block" in blocks
    assert groups["conduction disturbance"] == pytest.approx(
        1 - np.prod([1 - found[name] for name in blocks]), abs=1e-5
    )
    with pytest.raises(ValueError, match="subclass, superclass"):
        answer(record, level="chapter")


def test_the_evaluation_gives_figures_of_every_level(trained, data, tmp_path, capsys):
    options = ["--model", str(trained), "--data", data, "--output", str(tmp_path), "--resamples", "0"]
    again = shutil.copytree(trained, tmp_path / "again")
    tables = classifier.main([*options, "--seeds", str(again)])
    assert list(tables) == list(classifier.TASK_NAMES)
    for table in tables.values():
        (row,) = table.rows
        first, second = row["auroc_macro_of_runs"]
        assert first == second == row["auroc_macro"]["value"]  # None where all have one label: form
        assert 0 <= row["calibration_error_macro"]["value"] <= 1
    assert tables["ptbxl_super"].rows[0]["auroc_macro"]["value"] > 0.7
    slices = json.loads((tmp_path / "classifier_slices_best.json").read_text())
    assert slices["female"]["records"] + slices["male"]["records"] == len(tables["ptbxl_all"].data)
    assert "| female |" in capsys.readouterr().out

    one = classifier.main([*options, "--leads", "I"])["ptbxl_super"].rows[0]
    assert one["protocol"] == "one seed, leads I alone"
    assert one["auroc_macro"] != tables["ptbxl_super"].rows[0]["auroc_macro"]


def test_temperature_has_the_least_cross_entropy(trained, data):
    """On the validation records, divided by another temperature, the same logits are worse."""
    settings = train_classifier.ClassifierSettings(data, str(trained), None, cache=str(trained.parent / "cache"))
    extractor = train_classifier.AutoFeatureExtractor.from_pretrained(trained)
    model = train_classifier.AutoModelForSequenceClassification.from_pretrained(trained)
    settings.folds = "1-7/8/9"
    _, validation = train_classifier.load_recordings(settings, extractor)
    logits = train_classifier.predict(model, validation, 16)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    best, colder, warmer = (
        loss(logits / (factor * model.config.logit_temperature), torch.from_numpy(validation.targets))
        for factor in (1, 0.8, 1.25)
    )
    assert best < colder and best < warmer


def test_it_starts_from_random_weights_too(data, tmp_path):
    model = write_echoing_ecg(tmp_path / "model")
    best = train(tmp_path, model, data, random=True, loop=LOOP | {"output": str(tmp_path / "run")})
    assert load_file(best / "model.safetensors")["classifier.weight"].shape[0] == 71


def test_blocks_that_come_into_a_trained_tower_change_nothing_at_first(data, tmp_path):
    best = train(tmp_path, write_echoing_ecg(tmp_path / "model"), data, loop=LOOP | {"output": str(tmp_path / "run")})
    config = AutoConfig.from_pretrained(best)
    config.depths = [depth + index for index, depth in enumerate(config.depths)]
    deeper = train_classifier.load_deeper(str(best), config).eval()
    before = train_classifier.AutoModelForSequenceClassification.from_pretrained(best).eval()
    ecgs = torch.randn(2, 12, 200)
    assert deeper.num_parameters() > before.num_parameters() and not deeper.head_is_new
    with torch.no_grad():
        assert torch.equal(deeper(ecgs).logits, before(ecgs).logits)


def test_folds_to_test_on_are_not_read(data, tmp_path):
    settings = train_classifier.ClassifierSettings(data, "", None, cache=str(tmp_path), folds="1-7/8/9")
    extractor = train_classifier.EcgFeatureExtractor(sampling_rate=100, num_samples=200, min_duration=1.0)
    training, validation = train_classifier.load_recordings(settings, extractor)
    fold = {row["record_id"]: row["fold"] for row in evaluation_rows(RECORDS)}
    assert {fold[record] for record in training.record_ids} == set(range(1, 8))
    assert {fold[record] for record in validation.record_ids} == {8}
