"""Zero-shot: the models' own similarities, averaged over prompts; the same in a loop and as an evaluation."""

import json

import pytest
import torch
from small_evaluation import CLASSES, evaluation_rows, write_echoing_ecg, write_melp, write_melp_encoder, write_rows
from transformers import AutoModel, AutoProcessor

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation.records import load_task
from ecgformers.evaluation.scoring import embed_texts, similarity, zero_shot_auroc
from ecgformers.evaluation.tasks import TASKS, prompts
from ecgformers.evaluation.zero_shot import main
from ecgformers.metrics.ranking import auroc, macro
from ecgformers.modeling.pipelines_ecg import prompt_scores

PROMPTS = {
    "NORM": ["sinus rhythm. normal ecg.", "normal ecg"],
    "MI": ["infarction"],
    "STTC": ["atrial fibrillation", "no sinus rhythm", "axis"],
    "CD": ["left axis deviation"],
    "HYP": ["left"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data"), evaluation_rows(60))


@pytest.mark.parametrize("write", [write_melp, write_echoing_ecg])
def test_scores_are_the_models_logits(write, data, tmp_path):
    folder = write(tmp_path)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    test = load_task(data, "ptbxl_super").part("train")
    records = [row_to_record(test.ecgs[int(row)]) for row in test.rows]
    texts = [text for class_texts in PROMPTS.values() for text in class_texts]
    with torch.no_grad():
        logits = model(**processor(records, text=texts)).logits_per_ecg
        ecg = model.get_ecg_features(**processor.feature_extractor(records, return_tensors="pt"))
    embeds = torch.cat([ecg[name] for name in model.embedding_names], -1)
    similarities = similarity(model, embeds, embed_texts(model, processor, PROMPTS))
    torch.testing.assert_close(similarities, logits, atol=1e-3, rtol=1e-5)

    expected = prompt_scores(logits, [len(class_texts) for class_texts in PROMPTS.values()])
    model.train()
    batches = [processor.feature_extractor(records[i : i + 7], return_tensors="pt") for i in range(0, len(records), 7)]
    value = zero_shot_auroc(model, processor, batches, test.targets, PROMPTS)
    assert value == pytest.approx(macro(auroc(test.targets, expected.numpy())), abs=0.01)
    assert model.training


def test_many_texts_and_ecgs_go_in_batches(tmp_path, monkeypatch):
    folder = write_melp(tmp_path)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    expected = embed_texts(model, processor, PROMPTS)
    monkeypatch.setattr("ecgformers.evaluation.scoring.TEXTS_A_BATCH", 3)
    torch.testing.assert_close(embed_texts(model, processor, PROMPTS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("write", [write_melp, write_echoing_ecg])
def test_the_command_writes_a_table_with_both_baselines(write, data, tmp_path):
    folder = write(tmp_path / "model")
    options = ["--data", data, "--task", "ptbxl_super", "--output", str(tmp_path / "results"), "--resamples", "20"]
    table = main(["--model", folder, *options, "--language", "en", "--device", "cpu"])
    assert [row["method"] for row in table.rows] == ["model", "random encoder", "prior"]
    result = json.loads((tmp_path / "results" / "zero_shot_ptbxl_super_model.json").read_text())
    assert set(result["rows"][0]["classes"]) == set(CLASSES)
    assert result["rows"][2]["auroc_macro"]["value"] == 0.5
    count = sum(map(len, prompts(TASKS["ptbxl_super"], "en").values()))
    assert f"{count} prompts, en" in result["notes"]


def test_a_model_without_a_text_tower_is_refused(data, tmp_path):
    folder = write_melp_encoder(tmp_path)
    with pytest.raises(ValueError, match="MelpEcgModel, which has no text tower"):
        main(["--model", folder, "--data", data, "--task", "ptbxl_super", "--output", str(tmp_path)])
