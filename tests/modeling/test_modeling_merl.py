"""MERL's behaviour on tiny models; its numbers are checked in test_parity_merl.py and by the golden files."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import text_batch
from tiny_merl import ENCODERS, GOLDEN, ecg_samples, golden_outputs, tiny_config, tiny_model
from transformers import AutoModel

from ecgformers.modeling.configuration_merl import MerlConfig
from ecgformers.modeling.converting.merl import convert
from ecgformers.modeling.converting.merl import main as convert_main
from ecgformers.modeling.losses_ecg import contrastive_loss
from ecgformers.modeling.modeling_merl import MerlModel


@pytest.fixture(params=ENCODERS)
def model(request) -> MerlModel:
    return tiny_model(request.param)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_numbers_stay_what_they_were_when_they_equalled_the_reference(encoder):
    outputs, golden = golden_outputs(encoder), load_file(GOLDEN / f"merl_{encoder}.safetensors")
    assert outputs.keys() == golden.keys()
    for name, expected in golden.items():
        torch.testing.assert_close(outputs[name], expected, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", [149, 101, 37])
@torch.no_grad()
def test_padding_leaves_an_embedding_alone(model, length):
    long, short = ecg_samples(1)[0], ecg_samples(1, length, seed=1)[0]
    padded = torch.stack([long, torch.nn.functional.pad(short, (0, 150 - length), value=7.0)])
    sample_mask = torch.stack([torch.ones(150), torch.arange(150) < length]).long()
    alone = model.get_ecg_features(short[None])
    together = model.get_ecg_features(padded, sample_mask=sample_mask)
    for name in ("ecg_embeds", "pooler_output", "mean_state"):
        torch.testing.assert_close(together[name][1:], alone[name], atol=1e-5, rtol=0)
    steps = alone.last_hidden_state.shape[1]
    torch.testing.assert_close(together.last_hidden_state[1:, :steps], alone.last_hidden_state, atol=1e-5, rtol=0)


@torch.no_grad()
def test_text_padding_leaves_an_embedding_alone(model):
    texts = text_batch()
    together = model.get_text_features(**texts).text_embeds
    for row, length in enumerate(texts["attention_mask"].sum(1)):
        alone = model.get_text_features(texts["input_ids"][row : row + 1, :length]).text_embeds
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_pair_is_a_row_of_the_batch(model):
    texts = {name: tensor[2:] for name, tensor in text_batch().items()}
    batch, one = model(ecg_samples(), **text_batch()), model(ecg_samples()[2:], **texts, return_loss=True)
    torch.testing.assert_close(one.ecg_embeds, batch.ecg_embeds[2:], atol=1e-6, rtol=0)
    torch.testing.assert_close(one.logits_per_ecg, batch.logits_per_ecg[2:, 2:], atol=1e-5, rtol=1e-5)
    assert one.loss == 0  # nothing to tell a pair from


@torch.no_grad()
def test_a_masked_lead_counts_as_zero(model):
    ecg, lead_mask = ecg_samples(2), torch.ones(2, 12, dtype=torch.long)
    lead_mask[1, 3] = 0
    zeroed = ecg * lead_mask[..., None]
    ecg[1, 3] = torch.nan
    assert torch.equal(model.get_ecg_features(ecg, lead_mask).ecg_embeds, model.get_ecg_features(zeroed).ecg_embeds)


def test_both_losses_and_their_gradients(model):
    outputs = model(ecg_samples(), **text_batch(), return_loss=True)
    scale = model.logit_scale.exp()
    torch.testing.assert_close(
        outputs.contrastive_loss, contrastive_loss(outputs.ecg_embeds, outputs.text_embeds, scale)
    )
    views = [projection(outputs.ecg_model_output.mean_state) for projection in model.view_projections]
    torch.testing.assert_close(outputs.unimodal_loss, contrastive_loss(*views, 1 / 0.07))
    torch.testing.assert_close(outputs.loss, outputs.contrastive_loss + outputs.unimodal_loss)
    torch.testing.assert_close(outputs.ecg_embeds.norm(dim=-1), torch.ones(3))
    outputs.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_views_of_an_ecg_differ_by_dropout(model):
    model.train()
    model.view_projections[1].load_state_dict(model.view_projections[0].state_dict())
    model.view_dropout.p = 0.5
    model.config.unimodal_temperature = 10.0  # the views are not normalised: at 0.1 a loss may saturate at 0
    losses = [model(ecg_samples(), **text_batch(), return_loss=True).unimodal_loss for _ in range(3)]
    assert len({loss.item() for loss in losses}) == 3


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_lowers_the_loss(encoder):
    torch.manual_seed(0)
    model = MerlModel(tiny_config(encoder)).train()
    model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        output = model(ecg_samples(), **text_batch(), return_loss=True)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] / 2


@torch.no_grad()
def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is MerlModel
    outputs, expected = (each(ecg_samples(), **text_batch()) for each in (loaded, model))
    assert torch.equal(outputs.logits_per_ecg, expected.logits_per_ecg)
    as_tuple = model(ecg_samples(), **text_batch(), return_dict=False)
    assert torch.equal(as_tuple[0], expected.logits_per_ecg)


@torch.no_grad()
def test_hidden_states_and_attentions(model):
    model.set_attn_implementation("eager")
    outputs = model.get_ecg_features(ecg_samples(), output_hidden_states=True, output_attentions=True)
    shapes = [tuple(states.shape[1:]) for states in outputs.hidden_states]
    if model.config.encoder_type == "resnet":
        assert shapes == [(6, 75), (6, 75), (38, 12)]
        assert [tuple(weights.shape) for weights in outputs.attentions] == [(3, 2, 1, 39)]
    else:
        assert shapes == [(15, 12)] * 3
        assert [tuple(weights.shape) for weights in outputs.attentions] == [(3, 3, 15, 15)] * 2
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_inputs_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match=r"12 leads, samples\), not \(2, 8, 150\)"):
        model.get_ecg_features(ecg_samples(2)[:, :8])
    with pytest.raises(ValueError, match=r"400 time steps are more than the 75|160 patches of 10, not 1 to 75"):
        model.get_ecg_features(ecg_samples(1, 1600))
    with pytest.raises(ValueError, match=r"rows \[1\] of the mask"):
        model.get_ecg_features(ecg_samples(2), sample_mask=torch.tensor([[1] * 150, [0] * 150]))
    with pytest.raises(ValueError, match="3 ECGs and 2 reports"):
        model(ecg_samples(), text_batch()["input_ids"][:2], return_loss=True)


def test_frozen_text_layers_get_no_gradient():
    model = MerlModel(tiny_config(num_frozen_text_layers=1))
    model.freeze_text_layers()
    model(ecg_samples(), **text_batch(), return_loss=True).loss.backward()
    first, second = model.text_model.encoder.layer
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None for parameter in second.parameters())


def test_configs_that_do_not_fit_are_refused():
    for change, message in (
        ({"depths": (1,)}, "2, 1 and 2 entries"),
        ({"hidden_size": 13}, "multiple"),
        ({"encoder_type": "lstm"}, "resnet"),
    ):
        with pytest.raises(Exception, match=message):
            tiny_config(**change)
    assert MerlConfig().text_config.vocab_size == 30522


# ------------------------------------------------------------------------------------------------------- conversion


def in_their_layout(model: MerlModel) -> dict[str, torch.Tensor]:
    """A checkpoint as the authors write it, of our weights."""
    names = {
        "ecg_model.attention_pool.class_token": "att_pool_head.cls_token",
        "ecg_model.attention_pool.position_embedding": "att_pool_head.positional_embedding",
        "ecg_model.attention_pool.attention.out_proj": "att_pool_head.mhsa.out_proj",
        "ecg_model.attention_pool.projection": "att_pool_head.c_proj",
        "ecg_model.feature_projection": "downconv",
        "ecg_model.projection": "proj_e",
        "ecg_model.patch_embedding": "ecg_encoder.to_patch_embedding",
        "ecg_model.position_embedding": "ecg_encoder.pos_embedding",
        "ecg_model.stem_conv": "ecg_encoder.conv1",
        "ecg_model.stem_norm": "ecg_encoder.bn1",
        "ecg_model.": "ecg_encoder.",
        "stages.0.blocks": "layer1",
        "stages.1.blocks": "layer2",
        "norm1": "bn1",
        "norm2": "bn2",
        "layers.": "block",
        "attention_norm": "attn.norm",
        "feed_forward_norm": "ff.norm",
        "fc1": "ff.fn.net.0",
        "fc2": "ff.fn.net.3",
        "text_projection": "proj_t",
        "view_projections.0": "linear1",
        "view_projections.1": "linear2",
    }
    theirs, packed = {}, {}
    for ours, tensor in model.state_dict().items():
        name = ours
        if name.startswith("text_model."):
            theirs[name.replace("text_model.", "lm_model.")] = tensor
            continue
        for our_part, their_part in names.items():
            name = name.replace(our_part, their_part)
        name = name.replace("attention.out_proj", "attn.fn.to_out.0") if "block" in name else name
        stem, dot, kind = name.rpartition("_proj.")
        if dot and stem.endswith(("attention.q", "attention.k", "attention.v")):
            block = stem.removesuffix(stem[-len("attention.q") :])
            is_vit = block.startswith("ecg_encoder.block")
            name = f"{block}attn.fn.to_qkv.{kind}" if is_vit else f"att_pool_head.mhsa.in_proj_{kind}"
            packed.setdefault(name, []).append((stem[-1], tensor))
        else:
            theirs[name] = tensor
    for name, parts in packed.items():
        theirs[name] = torch.cat([dict(parts)[part] for part in "qkv"])
    return theirs


@pytest.mark.parametrize("encoder", ENCODERS)
@torch.no_grad()
def test_their_checkpoint_becomes_our_model(encoder, tmp_path, capsys):
    model = tiny_model(encoder)
    checkpoint = in_their_layout(model)
    if encoder == "resnet":
        checkpoint["ecg_encoder.linear.bias"] = torch.zeros(10)
    save_file(checkpoint, tmp_path / "merl.safetensors")
    paths = ["--checkpoint", str(tmp_path / "merl.safetensors"), "--output", str(tmp_path / "converted")]
    convert_main([*paths, "--heads", "3", "--text-heads", "1", "--pooler-heads", "2"])
    dropped = "ecg_encoder.linear.bias" if encoder == "resnet" else "nothing"
    assert f"left out on purpose (not used by the model): {dropped}" in capsys.readouterr().out
    converted = AutoModel.from_pretrained(tmp_path / "converted")
    outputs, expected = (each(ecg_samples(), **text_batch()) for each in (converted, model))
    assert torch.equal(outputs.logits_per_ecg, expected.logits_per_ecg)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_checkpoint_that_does_not_fit_is_refused_with_all_reasons(encoder):
    checkpoint = in_their_layout(tiny_model(encoder))
    checkpoint["surprise"] = checkpoint.pop("logit_scale")
    checkpoint["proj_t.2.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        convert(checkpoint, heads=3, text_heads=1, pooler_heads=2)
    for reason in (
        "logit_scale is missing",
        "surprise is unknown",
        r"text_projection.2.bias is (3,) instead of (16,)",
    ):
        assert reason in str(error.value)
    with pytest.raises(ValueError, match=r"patch_embedding\.weight .* is missing"):
        convert({"logit_scale": torch.zeros(())})
