"""The models that ship: whole folders of safetensors that load by name of task, and that say the right thing."""

from pathlib import Path

import pytest
import torch
from pydicom.data import get_testdata_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForSpeechSeq2Seq, AutoProcessor

from ecgformers import read_ecg
from ecgformers.datasets_scripts.tasks import TASKS, prompts
from ecgformers.modeling.pipelines_ecg import prompt_scores

CARDS = Path(__file__).parents[1] / "model_cards"
FOLDERS = sorted(path.parent for path in CARDS.glob("*/config.json"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


def test_models_ship():
    assert {folder.name for folder in FOLDERS} == {path.parent.name for path in CARDS.glob("*/README.md")}
    assert FOLDERS


def test_a_folder_is_whole_small_and_safe(folder):
    names = {path.name for path in folder.iterdir() if path.suffix != ".py"}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "model.safetensors").stat().st_size <= 25e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n") and "Not a medical device" in card


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
    ids = AutoModelForSpeechSeq2Seq.from_pretrained(folder).generate(**inputs, max_new_tokens=40)
    report = processor.batch_decode(ids, skip_special_tokens=True)[0]
    assert "sinus" in report
