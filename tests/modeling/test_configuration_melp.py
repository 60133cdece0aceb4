"""MELP's configurations say what is there, and read what was written before they had parts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_echoing_ecg
import tiny_melp
import tiny_merl
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig

from ecgformers.modeling.configuration_melp import MelpConfig
from ecgformers.modeling.configuration_melp_ecg import (
    MelpEcgConfig,
    MelpPretrainingConfig,
    MelpResNetConfig,
    MelpWav2Vec2Config,
)
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining

FORMER = {  # of a folder saved before: the fields of both encoders and of the stage side by side
    "architectures": ["MelpEcgModel"],
    "auto_map": {"AutoConfig": "configuration_melp.MelpEcgConfig"},
    "encoder_type": "resnet",
    "conv_dim": [256, 256],
    "conv_kernel": [2, 2],
    "conv_stride": [2, 2],
    "num_hidden_layers": 3,
    "stem_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 2],
    "strides": [1, 2],
    "hidden_size": 16,
    "hidden_dropout": 0.3,
    "initializer_range": 0.01,
    "codevector_dim": 64,
    "num_negatives": 7,
    "num_pooler_heads": 2,
    "projection_dim": 32,
    "caption_dim": 24,
}


def keys(values: Any) -> Iterator[str]:
    """All keys of nested mappings."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield key
            yield from keys(value)


def saved(config: Any, folder: Path) -> dict[str, Any]:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def test_a_residual_tower_writes_nothing_of_the_other_one_nor_of_the_stage(tmp_path: Path) -> None:
    tower = MelpEcgConfig(**FORMER)
    others = set(MelpWav2Vec2Config.__annotations__) - set(MelpResNetConfig.__annotations__) - {"layer_norm_eps"}
    stage = set(MelpPretrainingConfig.__annotations__)
    assert not (others | stage) & set(keys(saved(tower, tmp_path / "tower")))
    whole = MelpConfig(ecg_config=FORMER, projection_dim=32, text_config={"hidden_size": 24, "num_attention_heads": 2})
    written = saved(whole, tmp_path / "whole")["ecg_config"]
    assert not (others | stage | {"encoder_type", "auto_map", "architectures"}) & set(keys(written))
    assert written["encoder_config"] == {
        "model_type": "melp_resnet",
        "num_leads": 12,
        "stem_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "strides": [1, 2],
        "hidden_size": 16,
        "hidden_dropout": 0.3,
        "initializer_range": 0.01,
    }
    assert AutoConfig.from_pretrained(tmp_path / "whole").ecg_config.to_dict() == whole.ecg_config.to_dict()


def test_the_stage_keeps_its_own(tmp_path: Path) -> None:
    stage = MelpEcgConfig(**FORMER | {"architectures": ["MelpEcgForPreTraining"]})
    assert (stage.pretraining_config.codevector_dim, stage.pretraining_config.num_negatives) == (64, 7)
    model = MelpEcgForPreTraining(tiny_melp.tiny_ecg_config())
    model.save_pretrained(tmp_path)
    config = MelpEcgForPreTraining.from_pretrained(tmp_path).config
    for part in ("encoder_config", "pretraining_config"):
        loaded, made = getattr(config, part), getattr(tiny_melp.tiny_ecg_config(), part)
        assert type(loaded) is type(made) and loaded.to_diff_dict().items() >= made.to_diff_dict().items()


def test_fields_of_a_part_may_be_given_without_its_name() -> None:
    named = MelpEcgConfig(encoder_config={"model_type": "melp_resnet", "depths": [1, 1, 1, 1], "hidden_size": 64})
    plain = MelpEcgConfig(encoder_type="resnet", depths=[1, 1, 1, 1], hidden_size=64)
    assert named.to_dict() == plain.to_dict() and plain.encoder_type == "resnet" and plain.hidden_size == 64
    eps = MelpEcgConfig(layer_norm_eps=1e-6)
    assert eps.layer_norm_eps == eps.encoder_config.layer_norm_eps == 1e-6
    with pytest.raises(ValueError, match="wav2vec2, resnet, not 'cnn'"):
        MelpEcgConfig(encoder_type="cnn")
    with pytest.raises(StrictDataclassClassValidationError, match="equally long"):
        MelpEcgConfig(encoder_type="resnet", depths=[1])


@pytest.mark.parametrize("tiny", [tiny_melp, tiny_echoing_ecg, tiny_merl], ids=lambda module: module.__name__)
def test_no_part_points_to_files_of_another_folder(tiny: Any, tmp_path: Path) -> None:
    config = tiny.tiny_config()
    parts = [getattr(config, name) for name in config.sub_configs]
    for part in parts:  # as when it was saved, or loaded, by itself
        part.auto_map = {"AutoConfig": f"configuration_elsewhere.{type(part).__name__}"}
    written = saved(config, tmp_path)
    assert [key for key in keys(written) if key == "auto_map"] == ["auto_map"]
    assert "configuration_elsewhere" not in json.dumps(written)
