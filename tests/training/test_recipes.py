"""MELP's stages, one after the other, on simulated ECGs: each goes on from the one before, and the result loads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from safetensors.torch import load_file
from synthetic import REPORTS, write_dataset
from test_resume import SETTINGS
from transformers import (
    AutoModel,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.modeling.configuration_echoing_ecg import EchoingEcgConfig
from ecgformers.modeling.configuration_melp import MelpConfig
from ecgformers.modeling.configuration_melp_ecg import MelpEcgConfig
from ecgformers.modeling.configuration_merl import MerlConfig
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining
from ecgformers.training import pretrain_ecg, pretrain_echoing_ecg, pretrain_melp, pretrain_text
from ecgformers.training.alignment import AlignmentSettings, check_stages
from ecgformers.training.loop import LoopSettings
from ecgformers.training.pretrain_text import train_tokenizer
from ecgformers.training.settings import build, parse_settings

TEXT_MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """All three stages, the text stage on reports and a text file."""
    root = tmp_path_factory.mktemp("recipes")
    data = str(write_dataset(root / "data", records=96))
    (root / "lines.txt").write_text("\n".join(list(REPORTS.values()) * 20))
    loop = {"batch_size": 16, "warmup_steps": 5, "learning_rate": 5e-3, "log_steps": 4}
    encoder = SETTINGS["model"]
    settings = {
        "text": {
            "data": [data, str(root / "lines.txt")],
            "vocab_size": 60,
            "model": TEXT_MODEL,
            "loop": loop | {"output": str(root / "text"), "epochs": 8},
        },
        "ecg": SETTINGS | {"data": [data], "cache": str(root / "cache")},
        "melp": {
            "data": [data],
            "text": str(root / "text" / "best"),
            "ecg": str(root / "ecg" / "best"),
            "processor": SETTINGS["processor"],
            "model": {
                "ecg_config": {"num_caption_queries": 4, "num_beat_queries": 4},
                "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 2,
                "decoder_intermediate_size": 32,
                "projection_dim": 16,
                "num_frozen_text_layers": 0,
            },
            "cache": str(root / "cache"),
            "validation": {"ptbxl_super": data},
            "loop": loop | {"output": str(root / "melp"), "epochs": 5, "learning_rate": 1e-3},
        },
    }
    settings["ecg"]["model"] = encoder
    settings["ecg"]["loop"] = loop | {"output": str(root / "ecg"), "epochs": 2}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    for recipe in (pretrain_text, pretrain_ecg, pretrain_melp):
        recipe.main(["--config", str(root / "config.yaml")])
    return root


def figures(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_the_text_stage_learns_masked_words(runs):
    accuracy = figures(runs / "text", "validation_accuracy")
    assert len(accuracy) == 8 and max(accuracy) > 0.3 > accuracy[0] - 0.2
    tokenizer = AutoTokenizer.from_pretrained(runs / "text" / "best")
    assert tokenizer.convert_ids_to_tokens(tokenizer("sinus rhythm.").input_ids)[0] == "[BOS]"
    assert BertForMaskedLM.from_pretrained(runs / "text" / "best").config.vocab_size == len(tokenizer)


def test_the_same_texts_give_the_same_tokenizer():
    """Several processes need it: each trains a tokenizer of its own."""
    words = [a + b for a in ("sinus", "vorhof", "block", "infarkt") for b in ("rhythmus", "lage", "typ", "en", "s")]
    texts = [f"{first} {second} ##e." for first in words for second in words]
    vocabularies = [train_tokenizer(texts, 80).get_vocab() for _ in range(5)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert len(vocabularies[0]) == 80
    tokenizer = train_tokenizer(texts, 80)
    assert tokenizer.tokenize("Sinuslage xyz ##e [MASK]")[-5:] == ["[UNK]", "#", "#", "e", "[MASK]"]
    ids = tokenizer("sinuslage vorhof.").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "sinuslage vorhof." and len(ids) > 3


def test_the_text_stage_resumes_with_its_own_vocabulary(runs, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    command = ["--config", str(runs / "config.yaml"), "loop.epochs=2", "loop.save_steps=4", "loop.keep=9"]
    pretrain_text.main([*command, f"loop.output={whole}"])
    first, *_, last = sorted(path.name for path in whole.glob("checkpoint-????????"))
    shutil.copytree(whole / first, resumed / first)
    pretrain_text.main([*command, f"loop.output={resumed}", "loop.resume=true"])
    expected, found = (load_file(folder / last / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    vocabularies = [AutoTokenizer.from_pretrained(folder / "best").get_vocab() for folder in (whole, resumed)]
    assert vocabularies[0] == vocabularies[1]


def test_the_aligned_model_starts_from_the_stages_before(runs):
    config = AutoModel.from_pretrained(runs / "melp" / "best").config
    stage = MelpEcgForPreTraining.from_pretrained(runs / "ecg" / "best").config
    for name in ("conv_dim", "conv_kernel", "hidden_size", "num_hidden_layers"):
        assert getattr(config.ecg_config.encoder_config, name) == getattr(stage.encoder_config, name)
    assert config.text_config.hidden_size == TEXT_MODEL["hidden_size"] and config.text_config.is_decoder


def test_a_residual_network_goes_the_same_way(runs):
    stages = {"stem_size": 8, "hidden_sizes": [8], "depths": [1], "strides": [2]}
    encoder = {"encoder_type": "resnet", **stages, "hidden_size": 16, "projection_dim": 16, "caption_dim": 16}
    config = ["--config", str(runs / "config.yaml")]
    sizes = json.dumps(encoder | {"num_pooler_heads": 2})
    run = [f"model={sizes}", f"loop.output={runs / 'resnet'}", "loop.epochs=8", "loop.learning_rate=1e-2"]
    pretrain_ecg.main([*config, *run, "augmentation.lead_drop=0"])  # with half of the leads nobody can be recognised
    loss, training_loss = (figures(runs / "resnet", name) for name in ("validation_cmsc_loss", "cmsc_loss"))
    assert loss[-1] < loss[0] and not figures(runs / "resnet", "validation_masked_loss")
    assert len(loss) == 8 and training_loss[-1] < 0.9 * training_loss[0]
    assert not figures(runs / "resnet", "masked_loss")
    aligned = ["loop.epochs=1", f"loop.output={runs / 'aligned'}", "groups=[normales,infarct]", "crop_reports=0.5"]
    pretrain_melp.main([*config, f"ecg={runs / 'resnet' / 'best'}", *aligned])
    trained = AutoModel.from_pretrained(runs / "aligned" / "best")
    assert (
        trained.config.ecg_config.encoder_type == "resnet"
        and trained.config.ecg_config.encoder_config.hidden_sizes == [8]
    )


def test_alignment_learns_and_is_validated_zero_shot(runs):
    loss = figures(runs / "melp", "loss")
    assert loss[-1] < 0.9 * loss[0]
    assert figures(runs / "melp", "temperature")[0] == pytest.approx(0.07, rel=0.05)
    scores = figures(runs / "melp", "validation_ptbxl_super")
    assert len(scores) == 5 and all(0 <= score <= 1 for score in scores)


def test_the_result_loads_compares_and_writes(runs):
    folder = runs / "melp" / "best"
    record = row_to_record(load_dataset(str(runs / "data"), split="validation")[0])
    processor = AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        output = AutoModel.from_pretrained(folder)(**processor(record, text=list(REPORTS.values())))
        ids = AutoModelForSpeechSeq2Seq.from_pretrained(folder).generate(**processor(record), max_new_tokens=8)
    assert output.logits_per_ecg.shape == (1, 5)
    assert isinstance(processor.batch_decode(ids, skip_special_tokens=True)[0], str)


def test_settings_come_from_the_file_and_the_command_line(runs):
    arguments = ["--config", str(runs / "config.yaml"), "loop.epochs=3", "loop.learning_rate=1e-4", "stream=5"]
    settings = parse_settings(pretrain_ecg.EcgSettings, "ecg", "", arguments)
    assert settings.loop.epochs == 3 and settings.loop.learning_rate == 1e-4 and settings.stream == 5
    assert settings.loop.batch_size == 16 and settings.processor == SETTINGS["processor"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": ["x"], "loop": {"output": "x", "epoch": 3}}, r"unknown settings loop\.epoch; .*epochs"),
        ({"loop": {"output": "x"}}, "settings missing: data"),
        ({"data": ["x"], "loop": {}}, r"settings missing: loop\.output"),
    ],
)
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        build(pretrain_ecg.EcgSettings, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("text: {}", "config.yaml has no section 'ecg'"),
        ("", "config.yaml has no section 'ecg'"),
        ("ecg: [", "while parsing"),
    ],
)
def test_a_file_without_the_settings_ends_with_a_message(text, message, tmp_path, capsys):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse_settings(pretrain_ecg.EcgSettings, "ecg", "", ["--config", str(tmp_path / "config.yaml")])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.projection_dims=3", "unknown setting model.projection_dims (projection_dim?)"),
        ("model.ecg_config.hidden_sized=3", "unknown setting model.ecg_config.hidden_sized (hidden_size?)"),
        ("model.text_config.zzz=3", "unknown setting model.text_config.zzz of BertConfig"),
    ],
)
def test_a_wrong_field_of_the_model_is_named(runs, override, message, capsys):
    with pytest.raises(SystemExit):
        pretrain_melp.main(["--config", str(runs / "config.yaml"), override])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["text", "ecg"])
def test_a_stage_that_was_not_trained_is_named(stage, tmp_path):
    trained = {"text": "", "ecg": "", stage: str(tmp_path / stage / "best")}
    settings = AlignmentSettings(data=["x"], loop=LoopSettings(output="x"), tokenizer="x", **trained)
    with pytest.raises(FileNotFoundError, match=f"{stage}: there is no folder .*/best; train that stage first"):
        check_stages(settings)


RECIPES = {
    "text": (pretrain_text.TextSettings, BertConfig),
    "ecg": (pretrain_ecg.EcgSettings, MelpEcgConfig),
    "melp": (AlignmentSettings, MelpConfig),
    "echoing_ecg": (pretrain_echoing_ecg.EchoingEcgSettings, EchoingEcgConfig),
    "merl": (AlignmentSettings, MerlConfig),
}


@pytest.mark.parametrize("name", ["melp", "echoing_ecg", "tiny_ptb_xl"])
def test_shipped_settings_are_known(name):
    path = Path(pretrain_melp.__file__).parent / "configs" / f"{name}.yaml"
    sections = RECIPES.keys() & yaml.safe_load(path.read_text())
    for section in sections:
        settings, model = RECIPES[section]
        parse_settings(settings, section, "", ["--config", str(path)], model)
    assert name in sections or len(sections) == len(RECIPES)


def test_the_published_recipe_is_complete():
    config = str(Path(pretrain_melp.__file__).parent / "configs" / "melp.yaml")
    melp = parse_settings(AlignmentSettings, "melp", "", ["--config", config])
    ecg = parse_settings(pretrain_ecg.EcgSettings, "ecg", "", ["--config", config])
    text = parse_settings(pretrain_text.TextSettings, "text", "", ["--config", config])
    assert (melp.loop.learning_rate, melp.loop.weight_decay, tuple(melp.loop.betas)) == (2e-4, 0.2, (0.9, 0.95))
    assert melp.loop.warmup_steps > 0 and melp.augmentation.lead_drop == ecg.augmentation.lead_drop == 0.5
    assert len(melp.validation) == 6 and text.mask_probability == 0.15
