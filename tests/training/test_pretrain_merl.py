"""MERL's recipe on simulated ECGs: it starts from a text stage, learns, can be stopped, and its result loads."""

import json
from pathlib import Path

import pytest
import tiny_melp
import torch
import yaml
from datasets import load_dataset
from safetensors.torch import load_file
from synthetic import REPORTS, write_dataset
from test_resume import SETTINGS
from transformers import AutoModel, AutoProcessor, AutoTokenizer, BertConfig, BertForMaskedLM

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.modeling.configuration_melp_ecg import MelpEcgConfig
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining
from ecgformers.training import pretrain_merl
from ecgformers.training.alignment import AlignmentSettings
from ecgformers.training.loop import LoopSettings

MODEL = {
    "num_positions": 50,
    "hidden_size": 12,
    "stem_size": 6,
    "hidden_sizes": [6, 8],
    "depths": [1, 1],
    "strides": [2, 2],
    "num_pooler_heads": 2,
    "projection_dim": 16,
    "num_frozen_text_layers": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A text stage (of random weights, but for its vocabulary), data, and the settings of a run."""
    root = tmp_path_factory.mktemp("merl")
    torch.manual_seed(3)
    tokenizer = tiny_melp.tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)
    BertForMaskedLM(config).save_pretrained(root / "text")
    tokenizer.save_pretrained(root / "text")
    data = str(write_dataset(root / "data", records=96))
    settings = {
        "data": [data],
        "text": str(root / "text"),
        "processor": SETTINGS["processor"],
        "model": MODEL,
        "cache": str(root / "cache"),
        "validation": {"ptbxl_super": data},
        "loop": {"epochs": 6, "batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 10, "log_steps": 6}
        | {"save_steps": 4, "decay": "constant"},
    }
    (root / "config.yaml").write_text(yaml.safe_dump({"merl": settings}))
    return root


def train(root: Path, run: str, *overrides: str) -> Path:
    pretrain_merl.main(["--config", str(root / "config.yaml"), f"loop.output={root / run}", *overrides])
    return root / run


@pytest.fixture(scope="module")
def run(root) -> Path:
    return train(root, "whole")


def test_it_learns_and_is_validated_zero_shot(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]
    for line in losses:
        assert line["loss"] == pytest.approx(line["contrastive_loss"] + line["unimodal_loss"], rel=1e-4)
    scores = [line["validation_ptbxl_super"] for line in lines if "validation_ptbxl_super" in line]
    assert len(scores) == 6 and all(0 <= score <= 1 for score in scores)


def test_the_text_tower_starts_from_the_text_stage(root, run):
    stage = BertForMaskedLM.from_pretrained(root / "text").bert.state_dict()
    processor = AutoProcessor.from_pretrained(run / "best")
    settings = AlignmentSettings([], LoopSettings(output=""), text=str(root / "text"), model=MODEL)
    model = pretrain_merl.build_model(settings, processor.tokenizer)
    started = model.text_model.state_dict()
    assert {name for name in started if name not in stage} == {"pooler.dense.weight", "pooler.dense.bias"}
    for name, weight in stage.items():
        torch.testing.assert_close(started[name], weight, rtol=0, atol=0)
    trained = AutoModel.from_pretrained(run / "best").text_model
    for index, layer in enumerate(trained.encoder.layer):
        same = torch.equal(layer.output.dense.weight, stage[f"encoder.layer.{index}.output.dense.weight"])
        assert same == (index < MODEL["num_frozen_text_layers"])


def test_a_run_that_was_stopped_ends_in_the_same_weights(root, run):
    train(root, "stopped", "loop.max_steps=13")
    stopped = train(root, "stopped", "loop.resume=true")
    expected, found = (load_file(path / "checkpoint-00000036" / "model.safetensors") for path in (run, stopped))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0)


def test_the_result_loads_and_compares(root, run):
    record = row_to_record(load_dataset(str(root / "data"), split="validation")[0])
    processor, model = AutoProcessor.from_pretrained(run / "best"), AutoModel.from_pretrained(run / "best")
    with torch.no_grad():
        assert model(**processor(record, text=list(REPORTS.values()))).logits_per_ecg.shape == (1, 5)
    assert processor.lowercase and processor.max_text_length == 32


def test_the_ecg_tower_starts_from_the_ecg_stage(root):
    sizes = {name: MODEL[name] for name in ("hidden_size", "stem_size", "hidden_sizes", "depths", "strides")}
    stage = MelpEcgForPreTraining(MelpEcgConfig(encoder_type="resnet", **sizes, caption_dim=16, projection_dim=16))
    stage.save_pretrained(root / "ecg")
    settings = AlignmentSettings(
        data=[], loop=LoopSettings(output=""), text=str(root / "text"), ecg=str(root / "ecg"), model=MODEL
    )
    model = pretrain_merl.build_model(settings, AutoTokenizer.from_pretrained(root / "text"))
    trained = stage.encoder.state_dict()
    assert all(torch.equal(model.ecg_model.state_dict()[name], weight) for name, weight in trained.items())
    settings.model = MODEL | {"stem_size": 4}
    with pytest.raises(RuntimeError, match="size mismatch for stem_conv"):
        pretrain_merl.build_model(settings, AutoTokenizer.from_pretrained(root / "text"))
