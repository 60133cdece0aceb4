"""Checkpoints in the layout of MELP's authors become the models that they were written from."""

import re

import pytest
import torch
from safetensors.torch import save_file
from tiny import ecg_batch, fill
from tiny_melp import tiny_config, tiny_ecg_config, tiny_resnet_config, tiny_tokenizer
from transformers import AutoModel, AutoProcessor

from ecgformers.modeling.converting.melp import MELP_LEADS, convert, main
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.modeling_melp_ecg import MelpEcgModel
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining

HEADS = {"heads": 2, "text_heads": 2, "decoder_heads": 4, "pooler_heads": 4}
WAV2VEC2 = tiny_ecg_config(conv_kernel=(3, 2, 2), conv_stride=(3, 2, 2))

# Ours -> theirs; the first match of a table wins.
ENCODER = [
    (r"encoder\.mask_embedding", r"ecg_encoder.mask_emb"),
    (r"encoder\.conv_blocks\.(\d)\.conv\.", r"ecg_encoder.feature_extractor.conv_layers.\1.0."),
    (r"encoder\.conv_blocks\.0\.norm\.", r"ecg_encoder.feature_extractor.conv_layers.0.2."),
    (r"encoder\.feature_norm\.", r"ecg_encoder.layer_norm."),
    (r"encoder\.feature_projection\.", r"ecg_encoder.post_extract_proj."),
    (r"encoder\.position_embedding\.conv\.", r"ecg_encoder.conv_pos.pos_conv.0."),
    (r"encoder\.layer_norm\.", r"ecg_encoder.encoder.layer_norm."),
    (r"encoder\.layers\.(\d)\.attention_norm\.", r"ecg_encoder.encoder.layers.\1.self_attn_layer_norm."),
    (r"encoder\.layers\.(\d)\.final_norm\.", r"ecg_encoder.encoder.layers.\1.final_layer_norm."),
    (r"encoder\.layers\.", r"ecg_encoder.encoder.layers."),
]
RESNET = [
    (r"encoder\.stem_conv\.", r"model.conv1."),
    (r"encoder\.stem_norm\.", r"model.bn1."),
    *[
        (rf"encoder\.stages\.{stage}\.blocks\.(\d)\.{ours}", rf"model.layer{stage + 1}.\1.{theirs}")
        for stage in range(3)
        for ours, theirs in ((r"norm(\d)", r"bn\2"), ("", ""))
    ],
    (r"encoder\.feature_projection\.", r"downconv."),
]
ATTENTION = [
    (r"attention\.q_proj\.(weight|bias)", r"attn.in_proj_\1"),  # k and v come in the same matrix
    (r"attention\.out_proj\.", r"attn.out_proj."),
]
POOLERS = [
    (rf"{ours}_pooler\.{our_part}", rf"attn_pool_{theirs}.{their_part}")
    for ours, theirs in (("caption", "caption"), ("beat", "contrast"))
    for our_part, their_part in (
        (r"query_norm\.", r"ln_q."),
        (r"context_norm\.", r"ln_k."),
        *ATTENTION,
        (r"query", r"query"),
    )
]
TOWER = [
    *POOLERS,
    (r"beat_projection\.weight", r"proj_contrast"),
    (r"beat_norm\.", r"ln_contrast."),
    (r"caption_norm\.", r"ln_caption."),
]
PRETRAINING = [
    *ENCODER,
    (r"quantizer\.codevectors", r"ecg_encoder.quantizer.vars"),
    (r"quantizer\.code_projection\.", r"ecg_encoder.quantizer.weight_proj."),
    (r"target_projection\.", r"ecg_encoder.project_q."),
    (r"context_projection\.", r"ecg_encoder.final_proj."),
    (r"recording_projection\.", r"head.proj."),
    (r"logit_scale", r"logit_scale"),
]
BLOCK = [
    (r"attention_norm\.", r"ln_1."),
    (r"context_norm\.", r"ln_1_kv."),
    (r"feed_forward_norm\.", r"ln_2."),
    (r"fc1\.", r"mlp.c_fc."),
    (r"fc2\.", r"mlp.c_proj."),
]
TEXT = [
    (r"text_model\.", r"lm_model.bert."),
    (r"text_projection\.", r"proj_t."),
    (r"sentence_projection\.", r"sent_proj."),
    (r"text_decoder\.vocabulary_projection\.weight", r"text_decoder.text_projection"),
    (r"text_decoder\.final_norm\.", r"text_decoder.ln_final."),
    *[
        (rf"text_decoder\.layers\.(\d)\.{ours}_block\.{our_part}", rf"text_decoder.{theirs}.\1.{their_part}")
        for ours, theirs in (("self", "resblocks"), ("cross", "cross_attn"))
        for our_part, their_part in (*BLOCK, *((part, name.replace(r"\1", r"\2")) for part, name in ATTENTION))
    ],
    (r"logit_scale", r"logit_scale"),
]


def in_their_layout(model: torch.nn.Module, table: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    ours, theirs = model.state_dict(), {}
    for name, tensor in ours.items():
        packs = re.search(r"(_pooler|_block)\.attention\.[qkv]_proj", name)
        if packs and ".q_proj" in name:
            parts = [ours[name.replace(".q_proj", f".{part}_proj")] for part in "qkv"]
            if len({part.shape for part in parts}) > 1:  # keys of another width than queries: three matrices
                their_name = rename(name, table).removesuffix("in_proj_weight")
                theirs |= {f"{their_name}{part}_proj_weight": each for part, each in zip("qkv", parts, strict=True)}
                continue
            tensor = torch.cat(parts)
        elif packs:
            continue
        their_name = rename(name, table)
        is_transposed = their_name.endswith(("proj_contrast", "text_decoder.text_projection"))
        theirs[their_name] = tensor.T.contiguous() if is_transposed else tensor
    return theirs


def rename(name: str, table: list[tuple[str, str]]) -> str:
    for ours, theirs in table:
        if match := re.match(ours, name):
            return match.expand(theirs) + name[match.end() :]
    raise AssertionError(f"{name} has no name of theirs")


def with_prefix(ours: str, theirs: str, table: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(ours + pattern, theirs + name) for pattern, name in table]


def tower_checkpoint(model: MelpEcgModel) -> dict[str, torch.Tensor]:
    encoder = RESNET if model.config.encoder_type == "resnet" else ENCODER
    return in_their_layout(model, with_prefix("", "ecg_encoder.", [*encoder, *TOWER]))


def full_checkpoint(model: MelpModel) -> dict[str, torch.Tensor]:
    encoder = RESNET if model.config.ecg_config.encoder_type == "resnet" else ENCODER
    return in_their_layout(model, [*with_prefix(r"ecg_model\.", "ecg_encoder.", [*encoder, *TOWER]), *TEXT])


def assert_same_weights(converted: torch.nn.Module, model: torch.nn.Module):
    assert type(converted) is type(model)
    expected = model.state_dict()
    assert converted.state_dict().keys() == expected.keys()
    for name, tensor in converted.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("config", [WAV2VEC2, tiny_resnet_config()], ids=["wav2vec2", "resnet"])
@torch.no_grad()
def test_the_tower_alone(config, tmp_path, capsys):
    model = fill(MelpEcgModel(config))
    checkpoint = tower_checkpoint(model)
    unused = "ecg_encoder.model.linear.bias" if config.encoder_type == "resnet" else "ecg_encoder.logit_scale"
    checkpoint[unused] = torch.zeros(1)
    save_file(checkpoint, tmp_path / "model.safetensors")
    paths = ["--checkpoint", str(tmp_path / "model.safetensors"), "--output", str(tmp_path / "converted")]
    main([*paths, "--heads", "2", "--pooler-heads", "4"])
    assert unused.removeprefix("ecg_encoder.") in capsys.readouterr().out
    converted = AutoModel.from_pretrained(tmp_path / "converted")
    assert_same_weights(converted, model)
    assert torch.equal(converted(ecg_batch()).ecg_embeds, model(ecg_batch()).ecg_embeds)
    extractor = AutoProcessor.from_pretrained(tmp_path / "converted")
    assert tuple(extractor.lead_names) == MELP_LEADS
    assert (extractor.sampling_rate, extractor.num_samples, extractor.normalization) == (500, 5000, "min_max")


@pytest.mark.parametrize("ecg_config", [WAV2VEC2, tiny_resnet_config()], ids=["wav2vec2", "resnet"])
@torch.no_grad()
def test_the_whole_model_with_its_tokenizer(ecg_config, tmp_path):
    model = fill(MelpModel(tiny_config(ecg_config=ecg_config, cls_position=39, max_text_length=39)))
    checkpoint = full_checkpoint(model) | {"lm_model.cls.predictions.bias": torch.zeros(18)}
    torch.save({"state_dict": checkpoint, "epoch": 3}, tmp_path / "epoch.ckpt")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    arguments = {"checkpoint": "epoch.ckpt", "output": "converted", "tokenizer": "tokenizer"}
    arguments = [text for name, path in arguments.items() for text in (f"--{name}", str(tmp_path / path))]
    main(arguments + [text for name, n in HEADS.items() for text in (f"--{name.replace('_', '-')}", str(n))])
    converted = AutoModel.from_pretrained(tmp_path / "converted")
    assert_same_weights(converted, model)
    texts = AutoProcessor.from_pretrained(tmp_path / "converted")(text=["Sinus rhythm.", "no infarction"])
    inputs = {"input_values": ecg_batch(2), **texts, "return_loss": True}
    assert torch.equal(converted(**inputs).loss, model(**inputs).loss)


@torch.no_grad()
def test_the_pretraining_stage(tmp_path):
    model = fill(MelpEcgForPreTraining(WAV2VEC2))
    converted, dropped = convert(in_their_layout(model, PRETRAINING), **HEADS)
    assert_same_weights(converted, model)
    stage = converted.config.pretraining_config
    assert (dropped, stage.num_codevectors_per_group) == ([], WAV2VEC2.pretraining_config.num_codevectors_per_group)


def test_what_does_not_fit_is_refused_with_all_reasons():
    checkpoint = tower_checkpoint(fill(MelpEcgModel(WAV2VEC2)))
    checkpoint["ecg_encoder.surprise"] = checkpoint.pop("ecg_encoder.ln_caption.bias")
    checkpoint["ecg_encoder.ln_contrast.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        convert(checkpoint, **HEADS)
    for reason in (
        "caption_norm.bias is missing",
        "surprise is unknown",
        "beat_norm.bias is (3,) instead of (16,)",
    ):
        assert reason in str(error.value)
    with pytest.raises(ValueError, match="no checkpoint of this model"):
        convert({"weight": torch.zeros(2)})


def test_a_tokenizer_or_leads_that_do_not_fit_are_refused(tmp_path):
    model = MelpModel(tiny_config(ecg_config=WAV2VEC2))
    model.resize_token_embeddings(30)
    checkpoint = full_checkpoint(model)
    checkpoint["text_decoder.text_projection"] = torch.zeros(24, 30)
    save_file(checkpoint, tmp_path / "model.safetensors")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    paths = ["--checkpoint", str(tmp_path / "model.safetensors"), "--output", str(tmp_path / "converted")]
    heads = [text for name, number in HEADS.items() for text in (f"--{name.replace('_', '-')}", str(number))]
    with pytest.raises(ValueError, match=r"has 18 tokens, but .* 30"):
        main([*paths, *heads, "--tokenizer", str(tmp_path / "tokenizer")])
    save_file(tower_checkpoint(MelpEcgModel(tiny_resnet_config(num_leads=8))), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="takes 8 leads"):
        main([*paths, "--pooler-heads", "4"])
    assert not (tmp_path / "converted").exists()
