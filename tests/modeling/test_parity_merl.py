"""MERL and both attention poolings beside the reference system, MERL through our converter and `AutoModel`.

Needs the folder that ECGFORMERS_PARITY names.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_parity_melp import measured, reference_weights
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig

from ecgformers.modeling.converting.checkpoint import KeyTable, rename_keys
from ecgformers.modeling.converting.merl import main as convert
from ecgformers.modeling.modeling_melp_ecg import MelpEcgPooler as AttentionalPooler
from ecgformers.modeling.modeling_merl import MerlPooler as AttentionPool

ACTIVATION, UNIT_NORM, GRADIENT = 2e-4, 5e-6, 1e-5


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float):
    difference = (ours - theirs).abs().max().item()
    print(f"{name:32s} {difference:.1e}  (tolerance {tolerance:.0e})")
    assert ours.shape == theirs.shape
    assert difference <= tolerance, name


def converted(parity_dir: Path, folder: Path, fixture: str, **kwargs):
    save_file(reference_weights(parity_dir, fixture), folder / "merl.safetensors")
    convert(["--checkpoint", str(folder / "merl.safetensors"), "--output", str(folder / "converted")])
    (folder / "merl.safetensors").unlink()
    model = AutoModel.from_pretrained(folder / "converted", **kwargs)
    (folder / "converted" / "model.safetensors").unlink()
    return model


def assert_shared_outputs(model, io):
    outputs = model(io["ecg"], io["input_ids"], attention_mask=io["attention_mask"], return_loss=True)
    text = outputs.text_model_output
    assert_close("ECG embedding", outputs.ecg_embeds, io["proj_ecg_emb"], UNIT_NORM)
    assert_close("text embedding", outputs.text_embeds, io["proj_text_emb"], UNIT_NORM)
    assert_close("ECG feature", outputs.ecg_model_output.pooler_output, io["ext_ecg_emb"], ACTIVATION)
    assert_close("BERT's pooler", text.pooler_output, io["text_emb_pooler"], ACTIVATION)
    assert_close("text feature", model.text_projection(text.pooler_output), io["get_text_emb"], ACTIVATION)
    for view, projection in enumerate(model.view_projections):
        mean_state = outputs.ecg_model_output.mean_state
        assert_close(f"view {view}", projection(mean_state), io[f"ecg_emb{view + 1}"], ACTIVATION)
    assert_close("cross-modal loss", outputs.contrastive_loss, io["loss/cma"], 1e-4 * io["loss/cma"].item())
    assert_close("uni-modal loss", outputs.unimodal_loss, io["loss/uma"], 1e-4 * io["loss/uma"].item())


@torch.no_grad()
def test_merl_with_a_resnet(parity_dir, tmp_path):
    model = converted(parity_dir, tmp_path, "merl_resnet18", attn_implementation="eager")
    io = measured(parity_dir, "merl_resnet18")
    assert_shared_outputs(model, io)
    tower = model.ecg_model
    outputs = tower(io["ecg"], output_hidden_states=True, output_attentions=True)
    for stage, states in enumerate(outputs.hidden_states[:-1]):
        assert_close(f"stage {stage}", states[:, :4], io[f"stage{stage}_ch0_4"], ACTIVATION)
    features, _ = tower.residual_features(io["ecg"])
    assert_close("stage 4", features[:, :32], io["features_ch0_32"], ACTIVATION)
    states = outputs.last_hidden_state.transpose(1, 2)
    assert_close("states", states[:, :16], io["downconv_ch0_16"], ACTIVATION)
    assert_close("attention", outputs.attentions[0].mean(1)[..., 1:], io["att_map"], UNIT_NORM)
    assert_close("attention pooling", outputs.pooler_output[:, None], io["att_pool"], ACTIVATION)
    assert_close("batch of one", tower(io["ecg"][:1]).pooler_output, io["att_pool_batch1"], ACTIVATION)


@torch.no_grad()
def test_merl_with_a_vit(parity_dir, tmp_path):
    model = converted(parity_dir, tmp_path, "merl_vit_tiny")
    io = measured(parity_dir, "merl_vit_tiny")
    assert_shared_outputs(model, io)
    outputs = model.get_ecg_features(io["ecg"], output_hidden_states=True)
    patches = model.ecg_model.patch_embedding(io["ecg"]).transpose(1, 2)
    assert_close("patches", patches[..., :16], io["patch_embedding_dim0_16"], ACTIVATION)
    for block in (0, 5, 11):
        states = outputs.hidden_states[block + 1]
        assert_close(f"block {block}", states[..., :32], io[f"block{block}_dim0_32"], ACTIVATION)
    assert_close("mean", outputs.mean_state, io["vit_out"], ACTIVATION)


ATTENTION_POOL: KeyTable = [
    (r"att_pool_head\.cls_token", r"class_token"),
    (r"att_pool_head\.positional_embedding", r"position_embedding"),
    (r"att_pool_head\.mhsa\.in_proj_(.+)", r"attention.{qkv}_proj.\1"),
    (r"att_pool_head\.mhsa\.out_proj\.(.+)", r"attention.out_proj.\1"),
    (r"att_pool_head\.c_proj\.(.+)", r"projection.\1"),
    (r"attn_pool_x\..+", None),
]
ATTENTIONAL_POOLER: KeyTable = [
    (r"attn_pool_x\.query", r"query"),
    (r"attn_pool_x\.attn\.([qkv])_proj_weight", r"attention.\1_proj.weight"),
    (r"attn_pool_x\.attn\.in_proj_bias", r"attention.{qkv}_proj.bias"),
    (r"attn_pool_x\.attn\.out_proj\.(.+)", r"attention.out_proj.\1"),
    (r"attn_pool_x\.ln_q\.(.+)", r"query_norm.\1"),
    (r"attn_pool_x\.ln_k\.(.+)", r"context_norm.\1"),
    (r"att_pool_head\..+", None),
]


def eager_config() -> PreTrainedConfig:
    return PreTrainedConfig(attn_implementation="eager")


@pytest.mark.parametrize("name", ["class token", "queries"])
def test_attention_poolings_and_their_gradients(parity_dir, name):
    io = measured(parity_dir, "pooling_heads")
    table = ATTENTION_POOL if name == "class token" else ATTENTIONAL_POOLER
    weights, _, unknown = rename_keys(reference_weights(parity_dir, "pooling_heads"), table)
    assert not unknown
    if name == "class token":
        pooling = AttentionPool(eager_config(), num_positions=20, embed_dim=32, num_heads=4, output_dim=24)
        states = io["x"].transpose(1, 2).requires_grad_()
    else:
        pooling = AttentionalPooler(eager_config(), num_queries=5, embed_dim=16, num_heads=4, context_dim=24)
        states = io["context"].requires_grad_()
    pooling.load_state_dict(weights)
    if name == "class token":
        pooled, attention = pooling(states)
        assert_close("attention", attention.mean(1)[..., 1:], io["att_map"], UNIT_NORM)
        assert_close("pooled", pooled[:, None], io["pool"], UNIT_NORM)
        (pooled[:, None] * io["coef_pool"]).sum().backward()
        assert_close("gradient of the input", states.grad.transpose(1, 2), io["grad/x"], GRADIENT)
    else:
        pooled = pooling(states)
        assert_close("pooled", pooled, io["pooler_out"], UNIT_NORM)
        (pooled * io["coef_pooler"]).sum().backward()
        assert_close("gradient of the input", states.grad, io["grad/context"], GRADIENT)
    expected = {key.removeprefix("grad/"): tensor for key, tensor in io.items() if key.startswith("grad/att")}
    gradients, _, unknown = rename_keys(expected, table)
    assert not unknown and gradients.keys() == dict(pooling.named_parameters()).keys()
    for parameter, gradient in gradients.items():
        assert_close(f"gradient of {parameter}", pooling.get_parameter(parameter).grad, gradient, GRADIENT)
