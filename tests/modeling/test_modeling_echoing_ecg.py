"""EchoingECG on tiny models; its numbers are checked in test_parity_echoing_ecg.py and by the golden file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ecg_batch, fill, text_batch
from tiny_echoing_ecg import GOLDEN, golden_outputs, tiny_config, tiny_model
from torch.nn.functional import pad

from ecgformers.modeling.configuration_echoing_ecg import EchoingEcgConfig
from ecgformers.modeling.losses_echoing_ecg import study_gaussian
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgForSequenceClassification, EchoingEcgModel


@pytest.fixture
def model() -> EchoingEcgModel:
    return tiny_model()


def test_numbers_stay_what_they_were_when_they_equalled_the_reference():
    golden, outputs = load_file(GOLDEN), golden_outputs()
    assert golden.keys() == outputs.keys()
    for name, expected in golden.items():
        torch.testing.assert_close(outputs[name], expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# ------------------------------------------------------------------------------------------------ inputs and masks


@pytest.mark.parametrize("length", [1, 2, 37, 200, 241])
@torch.no_grad()
def test_padding_leaves_an_ecg_alone(model, length):
    recording = ecg_batch(1, length, seed=1)
    batch = torch.cat([ecg_batch(1, 300), pad(recording, (0, 300 - length), value=torch.nan)])
    sample_mask = (torch.arange(300) < torch.tensor([300, length])[:, None]).long()
    alone, padded = model.get_ecg_features(recording), model.get_ecg_features(batch, sample_mask=sample_mask)
    torch.testing.assert_close(padded.ecg_embeds[1:], alone.ecg_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.ecg_logvar[1:], alone.ecg_logvar, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.mean_state[1:], alone.last_hidden_state.mean(2), atol=1e-5, rtol=1e-5)
    steps = alone.last_hidden_state.shape[-1]
    torch.testing.assert_close(padded.last_hidden_state[1:, :, :steps], alone.last_hidden_state, atol=1e-5, rtol=0)
    assert (padded.last_hidden_state[1, :, steps:] == 0).all()


@torch.no_grad()
def test_padding_leaves_a_text_alone(model):
    texts = text_batch()
    padded = model.get_text_features(**texts)
    for row, length in enumerate(texts["attention_mask"].sum(1)):
        alone = model.get_text_features(texts["input_ids"][row : row + 1, :length])
        torch.testing.assert_close(padded.text_embeds[row : row + 1], alone.text_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(padded.text_logvar[row : row + 1], alone.text_logvar, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_masked_lead_counts_as_zero(model):
    ecg, lead_mask = ecg_batch(2), torch.ones(2, 12, dtype=torch.long)
    lead_mask[1, 3] = 0
    zeroed = ecg.clone()
    zeroed[1, 3] = 0
    ecg[1, 3] = torch.nan
    torch.testing.assert_close(
        model.get_ecg_features(ecg, lead_mask).ecg_embeds, model.get_ecg_features(zeroed).ecg_embeds
    )


def test_inputs_of_the_wrong_shape_are_refused(model):
    with pytest.raises(ValueError, match=r"\(batch, 12 leads, samples\), not \(2, 8, 240\)"):
        model.get_ecg_features(ecg_batch(2, leads=8))
    with pytest.raises(ValueError, match=r"either texts .* or echo studies"):
        model(ecg_batch())
    with pytest.raises(ValueError, match="3 ECGs and 2 texts: give matched"):
        model(ecg_batch(), input_ids=text_batch()["input_ids"][:2], return_loss=True)


# ---------------------------------------------------------------------------------------------- outputs and losses


@torch.no_grad()
def test_logits_are_distances_of_gaussians(model):
    outputs = model(ecg_batch(), **text_batch())
    assert outputs.loss is None
    for i in range(3):
        for j in range(3):
            distance = (outputs.ecg_embeds[i] - outputs.text_embeds[j]).square().sum()
            distance += outputs.ecg_logvar[i].exp().sum() + outputs.text_logvar[j].exp().sum()
            torch.testing.assert_close(outputs.logits_per_ecg[i, j], 5 - 5 * distance, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(outputs.logits_per_text, outputs.logits_per_ecg.T)
    torch.testing.assert_close(outputs.ecg_embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(outputs.text_embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(outputs.ecg_model_output.uncertainty, outputs.ecg_logvar.exp().sum(-1))
    torch.testing.assert_close(outputs.text_model_output.uncertainty, outputs.text_logvar.exp().sum(-1))


@torch.no_grad()
def test_one_pair_is_a_row_of_the_batch(model):
    texts = {name: tensor[2:] for name, tensor in text_batch().items()}
    batch, one = model(ecg_batch(), **text_batch()), model(ecg_batch()[2:], **texts, return_loss=True)
    torch.testing.assert_close(one.ecg_embeds, batch.ecg_embeds[2:], atol=1e-6, rtol=0)
    torch.testing.assert_close(one.logits_per_ecg, batch.logits_per_ecg[2:, 2:])
    assert one.loss.isfinite()


@torch.no_grad()
def test_equal_texts_match_each_others_ecgs(model):
    texts = {name: tensor[[0, 1, 0]] for name, tensor in text_batch().items()}
    texts["input_ids"][2, 8] = 5  # under the padding
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    loss = model(ecg_batch(), **texts, return_loss=True).loss
    torch.testing.assert_close(loss, model(ecg_batch(), **texts, matched=same, return_loss=True).loss)
    assert loss != model(ecg_batch(), **texts, matched=torch.eye(3), return_loss=True).loss


def test_parts_of_the_loss(model):
    outputs = model(ecg_batch(), **text_batch(), return_loss=True)
    parts = outputs.match_loss + 0.1 * outputs.pseudo_positive_loss + 1e-4 * outputs.vib_loss
    torch.testing.assert_close(outputs.loss, parts)
    outputs.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_echo_studies_in_place_of_texts(model):
    studies = [study_gaussian(torch.randn(frames, 16)) for frames in (5, 1, 8)]
    mean, logvar = (torch.stack(part) for part in zip(*studies, strict=True))
    outputs = model(ecg_batch(), echo_embeds=mean, echo_logvar=logvar, return_loss=True)
    assert outputs.logits_per_ecg.shape == (3, 3)
    assert outputs.logits_per_text is None
    outputs.loss.backward()
    assert model.ecg_model.stem_conv.weight.grad.isfinite().all()


def test_ecgs_of_one_study_match_each_other(model):
    mean, logvar = torch.nn.functional.normalize(torch.randn(3, 16), dim=-1), torch.randn(3, 16) - 3
    studies = {"echo_embeds": mean[[0, 1, 0]], "echo_logvar": logvar[[0, 1, 0]], "return_loss": True}
    matched = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    by_id = model(ecg_batch(), **studies, study_ids=torch.tensor([7, 5, 7]))
    assert by_id.loss == model(ecg_batch(), **studies, matched=matched).loss
    assert by_id.match_loss != model(ecg_batch(), **studies).match_loss


def test_the_weight_of_the_echo_loss(model):
    twice = tiny_model(echo_loss_weight=2.0)
    studies = {"echo_embeds": torch.eye(16)[:3], "echo_logvar": torch.zeros(3, 16) - 3, "return_loss": True}
    assert twice(ecg_batch(), **studies).loss == 2 * model(ecg_batch(), **studies).loss
    assert (
        twice(ecg_batch(), **text_batch(), return_loss=True).loss
        == model(ecg_batch(), **text_batch(), return_loss=True).loss
    )


def test_study_gaussian_of_frames():
    frames = np.random.RandomState(0).randn(2, 7, 16)
    mean, logvar = study_gaussian(torch.from_numpy(frames))
    direction = frames.mean(1)
    np.testing.assert_allclose(mean, direction / np.linalg.norm(direction, axis=-1, keepdims=True))
    np.testing.assert_allclose(logvar, np.log(frames.var(1) + 1e-8))


@torch.no_grad()
def test_hidden_states_and_tuples(model):
    outputs = model.get_ecg_features(ecg_batch(), output_hidden_states=True)
    shapes = [tuple(states.shape[1:]) for states in outputs.hidden_states]
    assert shapes == [(6, 120), (6, 120), (8, 60), (10, 30), (12, 15)]
    assert outputs.hidden_states[-1] is outputs.last_hidden_state
    assert len(model(ecg_batch(), **text_batch(), output_hidden_states=True).text_model_output.hidden_states) == 3
    assert torch.equal(model.get_ecg_features(ecg_batch(), return_dict=False)[2], outputs.ecg_embeds)
    assert isinstance(model(ecg_batch(), **text_batch(), return_dict=False), tuple)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.01), (torch.float64, 1e-5)])
@torch.no_grad()
def test_other_precisions(model, dtype, tolerance):
    expected = model(ecg_batch(), **text_batch())
    outputs = model.to(dtype)(ecg_batch().to(dtype), **text_batch())
    assert outputs.ecg_embeds.dtype == dtype
    torch.testing.assert_close(outputs.ecg_embeds.float(), expected.ecg_embeds, atol=tolerance, rtol=0)
    torch.testing.assert_close(outputs.text_logvar.float(), expected.text_logvar, atol=10 * tolerance, rtol=0)


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    config = tiny_config(depths=(2, 3, 1, 1))
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    plain, checkpointed = (fill(EchoingEcgModel(config)).train() for _ in range(2))
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in (plain, checkpointed):
        model(ecg_batch().requires_grad_(), **text_batch(), return_loss=True).loss.backward()
    for (name, expected), parameter in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, expected.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    for (name, expected), buffer in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(buffer, expected, msg=lambda m, n=name: f"{n}: {m}")
    checkpointed.activation_checkpointing_disable()
    assert {m.momentum for m in checkpointed.modules() if isinstance(m, torch.nn.BatchNorm1d)} == {0.1}


def test_training_under_autocast(model):
    sample_mask = (torch.arange(240) < torch.tensor([240, 100, 7])[:, None]).long()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.train()(ecg_batch(), sample_mask=sample_mask, **text_batch(), return_loss=True)
    outputs.loss.backward()
    assert outputs.logits_per_ecg.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_new_model_starts_with_moderate_uncertainty():
    torch.manual_seed(0)
    model = EchoingEcgModel(tiny_config(projection_dim=256)).eval()
    outputs = model(ecg_batch(), **text_batch())
    assert (outputs.ecg_model_output.uncertainty.log().abs() < 1).all()
    assert (outputs.text_model_output.uncertainty.log().abs() < 1).all()
    assert model.logit_bias.item() == model.logit_scale.item() == 5


# --------------------------------------------------------------------------------------------- configs and folders


def test_config_defaults_and_round_trip(tmp_path):
    config = EchoingEcgConfig()
    assert (config.hidden_sizes, config.depths, config.projection_dim) == ((192, 384, 768, 1536), (3, 4, 23, 3), 512)
    assert config.strides == [1, 2, 2, 2]
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (28996, 768)
    tiny_config(smoothness=0.5, freeze_encoder=True).save_pretrained(tmp_path)
    loaded = EchoingEcgConfig.from_pretrained(tmp_path)
    assert loaded.text_config.to_dict() == tiny_config().text_config.to_dict()
    assert (loaded.smoothness, loaded.freeze_encoder, list(loaded.depths)) == (0.5, True, [1, 2, 1, 1])
    with pytest.raises(Exception, match=r"hidden_sizes, depths and strides .* 4, 1 and 1 entries"):
        EchoingEcgConfig(depths=(1,))
    with pytest.raises(Exception, match="pooling_size"):
        EchoingEcgConfig(pooling_size=7)


REMOTE = """
import sys
sys.modules["ecgformers"] = None  # from here on it cannot be imported
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
inputs = load_file("inputs.safetensors")
assert AutoConfig.from_pretrained("model", trust_remote_code=True).model_type == "echoing_ecg"
model = AutoModel.from_pretrained("model", trust_remote_code=True)
classifier = AutoModelForSequenceClassification.from_pretrained("classifier", trust_remote_code=True)
with torch.no_grad():
    outputs = model(**inputs)
    logits = classifier(inputs["input_values"]).logits
embeds = AutoModelForSequenceClassification.from_pretrained("model", trust_remote_code=True).ecg_model(
    inputs["input_values"]
).ecg_embeds.detach()
outputs = {"logits_per_ecg": outputs.logits_per_ecg, "ecg_logvar": outputs.ecg_logvar, "ecg_embeds": embeds}
save_file({name: tensor.contiguous() for name, tensor in outputs.items()} | {"classes": logits}, "outputs.safetensors")
"""


@torch.no_grad()
def test_saved_folders_load_without_the_package(model, tmp_path):
    """Bit-identical outputs from the folders alone: their own code, no network."""
    classifier = fill(EchoingEcgForSequenceClassification(tiny_config(num_labels=3)))
    model.save_pretrained(tmp_path / "model")
    classifier.save_pretrained(tmp_path / "classifier")
    for folder in ("model", "classifier"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"}
    save_file({"input_values": ecg_batch(), **text_batch()}, tmp_path / "inputs.safetensors")
    offline = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(
        [sys.executable, "-c", REMOTE], cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    outputs, expected = load_file(tmp_path / "outputs.safetensors"), model(ecg_batch(), **text_batch())
    for name in ("logits_per_ecg", "ecg_logvar", "ecg_embeds"):
        assert torch.equal(outputs[name], expected[name]), name
    assert torch.equal(outputs["classes"], classifier(ecg_batch()).logits)
    reloaded = EchoingEcgModel.from_pretrained(tmp_path / "model")
    assert torch.equal(reloaded(ecg_batch(), **text_batch()).logits_per_ecg, expected.logits_per_ecg)


def test_the_head_of_a_classifier_sees_unit_variance_not_unit_norm():
    classifier = fill(EchoingEcgForSequenceClassification(tiny_config(num_labels=3)))
    seen = []
    classifier.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    classifier(ecg_batch())
    torch.testing.assert_close(seen[0].var(-1, unbiased=False), torch.ones(len(ecg_batch())), atol=1e-2, rtol=0)
