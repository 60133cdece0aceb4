"""EchoCLIP beside the reference system: full-size weights by the fixtures' rule, in open_clip's layout, through the
converter and the Auto classes; and its zero-shot rules.  Tolerances are those of the fixture (about ten times the
float32 noise), all within 1e-4."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from ecgformers.evaluation.zero_shot_echo import zero_shot_score, zero_shot_value
from ecgformers.modeling.converting.echo_clip import main as convert_echo_clip

close = torch.testing.assert_close
VISION, TEXT, STATES, LOGITS = ({"atol": tolerance, "rtol": 0} for tolerance in (1e-5, 5e-5, 1e-4, 1e-5))
IMAGE_EMBEDS, TEXT_EMBEDS = {"atol": 1e-6, "rtol": 0}, {"atol": 2e-6, "rtol": 0}


def fill_rule(folder: Path) -> dict:
    """The functions `values` and `images` of the fixture's own rule."""
    code = re.search(r"```python\n(.+?)```", (folder / "fill_rule.md").read_text(), re.DOTALL)[1]
    functions: dict = {}
    exec(code, functions)
    return functions


@pytest.fixture(scope="module")
def folder(parity_dir, tmp_path_factory) -> Path:
    """A `.bin` of open_clip, converted."""
    fixture, root = parity_dir / "out" / "echoclip_model", tmp_path_factory.mktemp("echo_clip")
    values = fill_rule(fixture)["values"]
    keys = json.loads((fixture / "state_dict_keys.json").read_text())
    weights = {name: torch.from_numpy(np.array(values(name, shape))) for name, shape, _ in keys}
    for check in json.loads((fixture / "meta.json").read_text())["fill_checks"]:
        assert weights[check["key"]].double().sum().item() == pytest.approx(check["sum"], rel=1e-9)
    torch.save(weights, root / "open_clip_pytorch_model.bin")
    convert_echo_clip(["--checkpoint", str(root / "open_clip_pytorch_model.bin"), "--output", str(root / "converted")])
    (root / "open_clip_pytorch_model.bin").unlink()
    return root / "converted"


@torch.no_grad()
def test_full_model(parity_dir, folder):
    fixture = parity_dir / "out" / "echoclip_model"
    io = load_file(fixture / "io.safetensors")
    model = AutoModel.from_pretrained(folder)
    # Too small a difference for the numbers below: 3e-6 on features.
    assert model.config.vision_config.layer_norm_eps == model.vision_model.layernorm.eps == 1e-6
    assert model.num_parameters() == 151518849

    output = model.get_image_features(io["pixel_values"], output_hidden_states=True)
    close(output.pooler_output, io["vision/pooled"], **VISION)
    close(model.visual_projection(output.pooler_output), io["vision/image_features"], **VISION)
    close(output.image_embeds, io["vision/image_embeds"], **IMAGE_EMBEDS)
    close(output.last_hidden_state[:, :512], io["vision/stage4_slice"], **STATES)
    stem, *stages = output.hidden_states
    for name, states, channels, step in [
        ("stem", stem, 16, 7),
        *[
            (f"stage{i + 1}", s, c, d)
            for i, (s, c, d) in enumerate(zip(stages, (16, 16, 32), (7, 4, 2), strict=False))
        ],
    ]:
        close(states.mean((2, 3)), io[f"vision/{name}_mean"], **VISION)
        close(states[:, :channels, ::step, ::step], io[f"vision/{name}_slice"], **STATES)
    for name, pixel_values in (("nonsquare", io["nonsquare/pixel_values"]), ("zero", torch.zeros(1, 3, 64, 64))):
        output = model.get_image_features(pixel_values)
        close(output.pooler_output, io[f"{name}/pooled"], **VISION)
        close(model.visual_projection(output.pooler_output), io[f"{name}/image_features"], **VISION)

    output = model.get_text_features(io["input_ids"], output_hidden_states=True)
    close(output.pooler_output, io["text/pooled"], **TEXT)
    close(model.text_projection(output.pooler_output), io["text/text_features"], **TEXT)
    close(output.text_embeds, io["text/text_embeds"], **TEXT_EMBEDS)
    close(output.last_hidden_state[..., ::32], io["text/last_hidden_slice"], **TEXT)
    for layer in (1, 6, 12):
        close(output.hidden_states[layer][..., ::32], io[f"text/block{layer}_slice"], **STATES)

    output = model(io["pixel_values"], io["input_ids"])
    close(output.logits_per_image, io["logits_per_image"], **LOGITS)
    close(output.logits_per_text, io["logits_per_text"], **LOGITS)
    close(model.logit_scale.exp(), io["logit_scale_exp"], **LOGITS)


def test_preprocessing(parity_dir, folder):
    """The saved image processor on the three pictures that the fixture describes."""
    fixture = parity_dir / "out" / "echoclip_model"
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = load_file(fixture / "preprocess.safetensors")
    for entry in json.loads((fixture / "preprocess.json").read_text())["images"]:
        height, width, rng = entry["height"], entry["width"], np.random.default_rng(entry["seed"])
        blocks = np.kron(rng.random((-(-height // 16), -(-width // 16), 3)), np.ones((16, 16, 1)))[:height, :width]
        picture = np.clip(np.rint(255 * (0.8 * blocks + 0.2 * rng.random((height, width, 3)))), 0, 255).astype("uint8")
        for image in (picture, Image.fromarray(picture)):
            pixel_values = processor(image, return_tensors="pt").pixel_values[0]
            assert pixel_values.shape == (3, 224, 224)
            close(pixel_values[:, ::6, ::6], expected[f"{entry['name']}/pixel_values_slice"], atol=1e-5, rtol=0)
            close(pixel_values.mean((1, 2)), expected[f"{entry['name']}/channel_mean"], atol=1e-5, rtol=0)


def test_zero_shot_rules(parity_dir):
    fixture = parity_dir / "out" / "echoclip_zeroshot"
    io = load_file(fixture / "io.safetensors")
    cases = json.loads((fixture / "meta.json").read_text())["cases"]
    assert len(cases) == 7
    for case in cases:
        name = case["name"]
        similarities = io[f"{name}/video"] @ io[f"{name}/prompts"].T  # (studies, frames, prompts)
        close(zero_shot_score(similarities), io[f"{name}/binary"], atol=1e-6, rtol=0)
        if case["regression_error"]:
            with pytest.raises(ValueError, match=f"{case['candidates']} candidates are too few"):
                zero_shot_value(similarities, io[f"{name}/prompt_values"])
        elif f"{name}/regression" in io:
            values = zero_shot_value(similarities, io[f"{name}/prompt_values"])
            close(values, io[f"{name}/regression"], atol=1e-4, rtol=0)
