"""The models that ship: whole folders of safetensors that load by name of task, and that say the right thing."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydicom.data import get_testdata_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    pipeline,
)

from ecgformers import read_ecg
from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.ecg_folder import EcgFolder
from ecgformers.evaluation import classifier, zero_shot
from ecgformers.evaluation.encoders import extract_features
from ecgformers.evaluation.records import load_task
from ecgformers.evaluation.scoring import statement_scores
from ecgformers.evaluation.tasks import TASKS, prompts, words
from ecgformers.metrics.ranking import auroc, macro
from ecgformers.modeling.pipelines_ecg import prompt_scores, tasks_of
from ecgformers.publishing import card_faults

CARDS = Path(__file__).parents[1] / "model_cards"
CLASSIFIERS = sorted(path.parent for path in CARDS.glob("*-classifier/config.json"))
FOLDERS = sorted({path.parent for path in CARDS.glob("*/config.json")} - {*CLASSIFIERS})
DICOM_ECG = str(get_testdata_file("waveform_ecg.dcm", download=False))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


@pytest.fixture(params=CLASSIFIERS, ids=lambda folder: folder.name)
def classifier_folder(request) -> Path:
    return request.param


def test_models_ship():
    assert {folder.name for folder in (*FOLDERS, *CLASSIFIERS)} == {
        path.parent.name for path in CARDS.glob("*/README.md")
    }
    assert FOLDERS and CLASSIFIERS


def test_a_folder_is_whole_small_and_safe(folder):
    names = {path.name for path in folder.iterdir() if path.suffix != ".py"}
    if "ecg-to-text" in tasks_of(AutoConfig.from_pretrained(folder)):
        names.remove("generation_config.json")
    assert names == {
        "README.md",
        "TRIALS.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "model.safetensors").stat().st_size <= 25e6
    assert not card_faults(folder / "README.md")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n") and "Not a medical device" in card


def test_features_of_a_classifier(classifier_folder):
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder)
    features = pipeline("ecg-feature-extraction", model=classifier_folder)(DICOM_ECG)
    assert len(features) == model.config.projection_dim


def test_a_classifier_is_whole_small_and_safe(classifier_folder):
    assert not card_faults(classifier_folder / "README.md")
    names = {path.name for path in classifier_folder.iterdir() if path.suffix != ".py"}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert (classifier_folder / "model.safetensors").stat().st_size <= 25e6
    card = (classifier_folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n") and "Not a medical device" in card


def test_a_classifier_answers_in_words(classifier_folder):
    """Pydicom's recording: sinus rhythm at 61 a minute, nothing else to be seen."""
    answer = pipeline("ecg-classification", model=str(classifier_folder), device="cpu")
    found = answer(DICOM_ECG)
    assert found[0]["label"] in ("sinus rhythm", "normal ECG") and {entry["label"] for entry in found[:2]} == {
        "sinus rhythm",
        "normal ECG",
    }
    config = AutoConfig.from_pretrained(classifier_folder)
    assert {entry["label"] for entry in found} == set(words(TASKS["ptbxl_all"]).values())
    assert all(0 <= entry["score"] <= 1 for entry in found)
    threshold = dict(zip(config.id2label.values(), config.thresholds, strict=True))
    assert "sinus rhythm" in {entry["label"] for entry in found if entry["score"] >= threshold[entry["label"]]}
    assert answer(DICOM_ECG, level="superclass")[0]["label"] == "normal ECG"


def test_a_normal_ecg_is_called_normal(folder):
    """The 12-lead recording in pydicom: sinus rhythm without a finding, of another device, at 1,000 Hz."""
    classes = prompts(TASKS["ptbxl_super"])
    processor = AutoProcessor.from_pretrained(folder)
    record = read_ecg(get_testdata_file("waveform_ecg.dcm", download=False))
    inputs = processor(record, text=[text for texts in classes.values() for text in texts])
    with torch.no_grad():
        logits = AutoModel.from_pretrained(folder)(**inputs).logits_per_ecg
    scores = prompt_scores(logits, [len(texts) for texts in classes.values()])[0]
    assert list(classes)[int(scores.argmax())] == "NORM"


def test_it_can_be_fine_tuned(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    inputs = AutoProcessor.from_pretrained(folder)(read_ecg(get_testdata_file("waveform_ecg.dcm", download=False)))
    model(**inputs, labels=torch.tensor([1])).loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_melp_writes_a_report():
    folder = CARDS / "melp-tiny-ptb-xl"
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(read_ecg(get_testdata_file("waveform_ecg.dcm", download=False)))
    writer = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    report = processor.batch_decode(writer.generate(**inputs), skip_special_tokens=True)[0]
    assert "sinus" in report
    never_ending = writer.generate(**inputs, eos_token_id=1)  # as long as the longest text, not transformers' 20
    assert never_ending.shape == (1, writer.config.max_text_length)


@pytest.fixture(scope="module")
def fold_9(ptb_xl_dir, tmp_path_factory) -> Path:
    """The recordings that no shipped model was trained on, with their labels."""
    source = tmp_path_factory.mktemp("source")
    subprocess.run([sys.executable, str(ptb_xl_dir / "restore.py"), str(source), "--folds", "9"], check=True)
    with (source / "ptbxl_labels.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with (source / "fold_9.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in rows if row[header.index("strat_fold")] == "9")])
    columns = {"path_column": "filename_lr", "id_column": "ecg_id", "patient_column": "patient_id"}
    labels = {"label_columns": "super_NORM:ISCAS", "fold_column": "strat_fold", "test_folds": "9"}
    build(EcgFolder(**columns, **labels, table="fold_9.csv", data_dir=str(source)), source / "built", strict=True)
    return source / "built"


def test_classifier_figures_are_those_of_the_card(classifier_folder, fold_9, tmp_path):
    text = (classifier_folder / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| fold 9")]
    stated = [float(cell.split()[0]) for cell in rows[0][1:]]
    data = load_task(str(fold_9), "ptbxl_all").part("test")
    model = classifier.Classifier(str(classifier_folder), "cpu", ())
    logits, _ = extract_features(model, data.ecgs, data.rows)
    found = []
    for name in classifier.TASK_NAMES:
        test, takes_part = classifier.task_part(data, name)
        scores = statement_scores(model.probabilities(logits), test.task)[takes_part]
        found.append(100 * float(macro(auroc(test.targets, scores))))
    assert found == pytest.approx(stated, abs=0.06)


def test_zero_shot_figures_are_those_of_the_card(folder, fold_9, tmp_path):
    (row,) = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| zero-shot, no")]
    stated = [float(cell.split()[0]) for cell in row.split("|")[2:-1]]
    options = ["--model", str(folder), "--data", str(fold_9), "--output", str(tmp_path), "--resamples", "0"]
    tables = [
        zero_shot.main([*options, "--task", f"ptbxl_{task}", "--split", "test"])
        for task in ("super", "sub", "form", "rhythm")
    ]
    assert [100 * table.rows[0]["auroc_macro"]["value"] for table in tables] == pytest.approx(stated, abs=0.06)
