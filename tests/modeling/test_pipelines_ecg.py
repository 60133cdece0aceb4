"""Pipelines end to end, from a saved model and a file, against model and processor called by hand."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_echoing_ecg
import tiny_melp
import torch
import transformers
from pydicom.data import get_testdata_file
from tiny import fill
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForSpeechSeq2Seq, AutoProcessor

from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgForSequenceClassification
from ecgformers.modeling.modeling_melp import MelpForConditionalGeneration
from ecgformers.modeling.modeling_melp_ecg import MelpEcgForSequenceClassification
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgReadError, EcgRecord

pipeline = partial(transformers.pipeline, device="cpu")
DICOM_ECG = str(get_testdata_file("waveform_ecg.dcm", download=False))
PROMPTS = {
    "rhythm": ["sinus rhythm", "normal sinus rhythm"],
    "fibrillation": "atrial fibrillation",
    "axis": ["left axis"],
}
EXTRACTOR = EcgFeatureExtractor(sampling_rate=100, num_samples=240, normalization="min_max")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """MELP with its report writer, EchoingECG, and a classifier that has a feature extractor alone."""
    root = tmp_path_factory.mktemp("models")
    fill(MelpForConditionalGeneration(tiny_melp.tiny_config())).save_pretrained(root / "melp")
    vocabulary = len(tiny_melp.tiny_tokenizer())
    text_config = tiny_echoing_ecg.tiny_config().text_config.to_dict() | {"vocab_size": vocabulary}
    tiny_echoing_ecg.tiny_model(text_config=text_config).save_pretrained(root / "echoing_ecg")
    for name in ("melp", "echoing_ecg"):
        EcgProcessor(EXTRACTOR, tiny_melp.tiny_tokenizer(), "{text}.").save_pretrained(root / name)
    config = tiny_melp.tiny_ecg_config(id2label={0: "AF", 1: "MI", 2: "NORM"})
    fill(MelpEcgForSequenceClassification(config)).save_pretrained(root / "classifier")
    EXTRACTOR.save_pretrained(root / "classifier")
    return root


@pytest.fixture(scope="module")
def records() -> list[EcgRecord]:
    """Three ECGs that differ in length, rate and order of the leads."""
    record = read_ecg(DICOM_ECG)
    short = EcgRecord(record.signal[::-1, ::2], record.lead_names[::-1], 500.0, source="backwards")
    return [record, short, EcgRecord(-0.5 * record.signal[:, 3000:], record.lead_names, 1000.0, source="inverted")]


def assert_answer(answer: list[dict], scores: dict[str, float]) -> None:
    ranked = sorted(scores, key=lambda label: -scores[label])
    assert [entry["label"] for entry in answer] == ranked
    np.testing.assert_allclose([entry["score"] for entry in answer], [scores[label] for label in ranked], atol=1e-4)


@torch.no_grad()
def zero_shot_by_hand(folder: Path, record: EcgRecord) -> dict[str, float]:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    scores = {}
    for label, texts in PROMPTS.items():
        texts = [texts] if isinstance(texts, str) else texts
        each = [model(**processor(record, text=text, return_tensors="pt")).logits_per_ecg.item() for text in texts]
        scores[label] = sum(each) / len(each)
    return scores


@pytest.mark.parametrize("name", ["melp", "echoing_ecg"])
def test_zero_shot(folders, records, name):
    classify = pipeline("zero-shot-ecg-classification", model=folders / name)
    expected = [zero_shot_by_hand(folders / name, record) for record in records]
    assert_answer(classify(DICOM_ECG, candidate_labels=PROMPTS), expected[0])
    for batch_size in (1, 2):
        answers = classify(records, candidate_labels=PROMPTS, batch_size=batch_size)
        for answer, scores in zip(answers, expected, strict=True):
            assert_answer(answer, scores)
    best = classify(records[0], candidate_labels=PROMPTS, top_k=1)
    assert best == classify(DICOM_ECG, candidate_labels=PROMPTS)[:1]
    texts = [text for text in PROMPTS.values() if isinstance(text, str)]
    assert classify(DICOM_ECG, candidate_labels=texts)[0]["label"] == "atrial fibrillation"


def test_labels_may_be_given_once_for_all_calls(folders, records):
    classify = pipeline("zero-shot-ecg-classification", model=folders / "melp", candidate_labels=PROMPTS, top_k=2)
    assert len(classify(records[0])) == 2
    assert {entry["label"] for entry in classify(records[0], candidate_labels=["normal", "no"])} == {"normal", "no"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "give candidate_labels"),
        ("atrial fibrillation", "a list of texts, or a mapping, not the text 'atrial fibrillation'"),
        ([], "at least one label"),
        ({"AF": []}, "at least one text for each"),
    ],
)
def test_wrong_labels_are_refused(folders, records, labels, message):
    classify = pipeline("zero-shot-ecg-classification", model=folders / "melp")
    with pytest.raises(ValueError, match=message):
        classify(records[0], candidate_labels=labels)


@pytest.mark.parametrize(
    ("problem_type", "activation"),
    [
        (None, lambda logits: logits.softmax(-1)),
        ("single_label_classification", lambda logits: logits.softmax(-1)),
        ("multi_label_classification", torch.sigmoid),
        ("regression", lambda logits: logits),
    ],
)
def test_classification(folders, records, problem_type, activation):
    model = AutoModelForSequenceClassification.from_pretrained(folders / "classifier", problem_type=problem_type)
    extractor = EcgFeatureExtractor.from_pretrained(folders / "classifier")
    classify = pipeline("ecg-classification", model=model.eval(), feature_extractor=extractor)
    with torch.no_grad():
        logits = model(**extractor(records, return_tensors="pt")).logits
    expected = [dict(zip(("AF", "MI", "NORM"), row.tolist(), strict=True)) for row in activation(logits)]
    assert_answer(classify(DICOM_ECG), expected[0])
    for answer, scores in zip(classify(records, batch_size=2), expected, strict=True):
        assert_answer(answer, scores)
    assert classify(DICOM_ECG, top_k=2) == classify(DICOM_ECG)[:2]


def test_classification_by_folder_and_of_one_value(folders, records, tmp_path):
    assert pipeline("ecg-classification", model=folders / "classifier")(records[0])[0]["label"] in {"AF", "MI", "NORM"}
    model = fill(EchoingEcgForSequenceClassification(tiny_echoing_ecg.tiny_config(num_labels=1, id2label={0: "LVEF"})))
    model.save_pretrained(tmp_path)
    EcgProcessor(EXTRACTOR, tiny_melp.tiny_tokenizer()).save_pretrained(tmp_path)
    with torch.no_grad():
        value = model(**EXTRACTOR(records[0], return_tensors="pt")).logits.item()
    assert_answer(pipeline("ecg-classification", model=tmp_path)(DICOM_ECG), {"LVEF": value})


def test_report_writing(folders, records):
    write = pipeline("ecg-to-text", model=folders / "melp")
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folders / "melp").eval()
    processor = AutoProcessor.from_pretrained(folders / "melp")
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
    expected = []
    for record in records:
        texts = processor.batch_decode(
            model.generate(**processor(record, return_tensors="pt"), **options), skip_special_tokens=True
        )
        expected.append([{"generated_text": text} for text in texts])
    assert write(DICOM_ECG, **options) == expected[0] and len(expected[0]) == 2
    assert write(records, **options) == write(records, **options, batch_size=2) == expected


def test_any_source_of_read_ecg(folders, records):
    classify = pipeline("ecg-classification", model=folders / "classifier")
    record = records[0]
    mapping = {"signal": record.signal, "lead_names": record.lead_names, "sampling_rate": 1000}
    assert classify(mapping) == classify(record) == classify(DICOM_ECG)
    with pytest.raises(EcgReadError, match="lead names"):
        classify(record.signal)


LOAD_ALONE = """
import json, sys
sys.modules["ecgformers"] = None  # from here on it cannot be imported
from transformers import pipeline
classify = pipeline("zero-shot-ecg-classification", model=sys.argv[1], trust_remote_code=True, device="cpu")
json.dump(classify(sys.argv[2], candidate_labels=json.loads(sys.argv[3])), sys.stdout)
"""


def test_a_saved_pipeline_needs_no_ecgformers(folders, tmp_path):
    classify = pipeline("zero-shot-ecg-classification", model=folders / "echoing_ecg")
    classify.save_pretrained(tmp_path / "saved")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", LOAD_ALONE, str(tmp_path / "saved"), DICOM_ECG, json.dumps(PROMPTS)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert_answer(
        json.loads(result.stdout),
        {entry["label"]: entry["score"] for entry in classify(DICOM_ECG, candidate_labels=PROMPTS)},
    )
