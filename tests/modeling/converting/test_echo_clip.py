"""The converter on tiny checkpoints in open_clip's layout, which tiny_echo_clip writes down independently."""

import json
from pathlib import Path

import pytest
import tiny_echo_clip
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoProcessor

from ecgformers.modeling.converting.echo_clip import convert, main


def save_training_checkpoint(weights: dict[str, torch.Tensor], path: Path):
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)


CHECKPOINTS = {
    "open_clip_pytorch_model.bin": lambda weights, path: torch.save(weights, path),
    "epoch_3.pt": save_training_checkpoint,
    "open_clip_model.safetensors": save_file,
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_numbers_survive(tmp_path, name):
    model = tiny_echo_clip.tiny_model()
    CHECKPOINTS[name](tiny_echo_clip.open_clip_layout(model), tmp_path / name)
    main(["--checkpoint", str(tmp_path / name), "--output", str(tmp_path / "converted")])
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert (config["weights_license"], config["base_model"]) == ("not transferable", "EchoCLIP")
    converted = AutoModel.from_pretrained(tmp_path / "converted")
    frames, texts = tiny_echo_clip.frame_batch(), tiny_echo_clip.text_batch()
    with torch.no_grad():
        assert torch.equal(converted(frames, texts).logits_per_image, model(frames, texts).logits_per_image)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted", backend="pil")
    assert processor.crop_size.height == 224
    assert not [path for path in (tmp_path / "converted").iterdir() if path.suffix in {".bin", ".pt"}]


def test_with_its_tokenizer(tmp_path):
    save_file(tiny_echo_clip.open_clip_layout(tiny_echo_clip.tiny_model()), tmp_path / "model.safetensors")
    tiny_echo_clip.tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    arguments = ["--checkpoint", tmp_path / "model.safetensors", "--tokenizer", tmp_path / "tokenizer"]
    main([str(argument) for argument in [*arguments, "--output", tmp_path / "converted"]])
    processor = AutoProcessor.from_pretrained(tmp_path / "converted")
    assert processor.tokenizer.model_max_length == 16
    inputs = processor(text=["normal", "severe stenosis"], padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(tmp_path / "converted")
    assert model.get_text_features(**inputs).text_embeds.shape == (2, 8)


def test_a_wrong_tokenizer_is_refused(tmp_path):
    save_file(tiny_echo_clip.open_clip_layout(tiny_echo_clip.tiny_model()), tmp_path / "model.safetensors")
    tokenizer = tiny_echo_clip.tiny_tokenizer()
    tokenizer.add_tokens(["ventricle"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = ["--checkpoint", tmp_path / "model.safetensors", "--tokenizer", tmp_path / "tokenizer"]
    with pytest.raises(ValueError, match="give the tokenizer that it was trained with"):
        main([str(argument) for argument in [*arguments, "--output", tmp_path / "converted"]])
    assert not (tmp_path / "converted").exists()


def test_half_precision_and_the_saved_mask():
    weights = tiny_echo_clip.open_clip_layout(tiny_echo_clip.tiny_model())
    model, dropped = convert({k: v.half() for k, v in weights.items()} | {"attn_mask": torch.zeros(16, 16)})
    assert model.dtype == torch.float32 and dropped == ["attn_mask"]


def test_every_misfit_is_named():
    weights = tiny_echo_clip.open_clip_layout(tiny_echo_clip.tiny_model())
    del weights["visual.trunk.stages.2.blocks.1.gamma"]
    weights["logit_bias"] = torch.zeros(())
    weights["visual.trunk.head.norm.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        convert(weights)
    for expected in (
        "vision_model.encoder.stages.2.layers.1.layer_scale_parameter is missing",
        "logit_bias is unknown",
        "vision_model.layernorm.bias is (3,) instead of (10,)",
    ):
        assert expected in str(error.value)


@pytest.mark.parametrize("weights", [{}, {"logit_scale": torch.zeros(())}, {"other": torch.zeros(2)}])
def test_other_checkpoints_are_refused(weights):
    with pytest.raises(ValueError, match="no checkpoint of this model"):
        convert(weights)


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save({"state_dict": print}, tmp_path / "model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        main(["--checkpoint", str(tmp_path / "model.bin"), "--output", str(tmp_path / "converted")])
