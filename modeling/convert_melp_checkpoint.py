"""Turn a MELP checkpoint of the authors into a folder that `AutoModel.from_pretrained` loads.

    python -m ecgformers.modeling.convert_melp_checkpoint --checkpoint FILE --output DIR [--tokenizer DIR]

It takes the published safetensors file (ECG tower, `MelpEcgModel`), a full Lightning checkpoint (`MelpModel`) and a
checkpoint of the ECG pretraining stage (`MelpEcgForPreTraining`).  Sizes are read off the tensors; the numbers of
attention heads are not in them, and follow the published models (64 channels a head in both encoders, 8 heads in the
poolers and the text decoder) unless given.  To use a full model's text, give the folder of its text model's tokenizer.
"""

import argparse
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.modeling_utils import PreTrainedModel

from .configuration_melp import MelpConfig, MelpEcgConfig
from .feature_extraction_ecg import EcgFeatureExtractor
from .modeling_melp import MelpModel
from .modeling_melp_ecg import MelpEcgForPreTraining, MelpEcgModel
from .processing_ecg import EcgProcessor
from .tokenization_melp import as_report_tokenizer, special_token_settings

MELP_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")  # MIMIC-IV-ECG: aVF first

# Theirs -> ours, as regular expressions on whole keys; the first match wins.  None: knowingly dropped.
_ENCODER = [
    (r"ecg_encoder\.mask_emb", r"encoder.mask_embedding"),
    (r"ecg_encoder\.feature_extractor\.conv_layers\.(\d+)\.0\.weight", r"encoder.conv_blocks.\1.conv.weight"),
    (r"ecg_encoder\.feature_extractor\.conv_layers\.0\.2\.(weight|bias)", r"encoder.conv_blocks.0.norm.\1"),
    (r"ecg_encoder\.layer_norm\.(.+)", r"encoder.feature_norm.\1"),
    (r"ecg_encoder\.post_extract_proj\.(.+)", r"encoder.feature_projection.\1"),
    (r"ecg_encoder\.conv_pos\.pos_conv\.0\.(.+)", r"encoder.position_embedding.conv.\1"),
    (r"ecg_encoder\.encoder\.layer_norm\.(.+)", r"encoder.layer_norm.\1"),
    (r"ecg_encoder\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)", r"encoder.layers.\1.attention_norm.\2"),
    (r"ecg_encoder\.encoder\.layers\.(\d+)\.final_layer_norm\.(.+)", r"encoder.layers.\1.final_norm.\2"),
    (r"ecg_encoder\.encoder\.layers\.(\d+)\.(self_attn\..+|fc[12]\..+)", r"encoder.layers.\1.\2"),
    (r"bn\..+", None),  # never used
]
_PRETRAINING = [
    *_ENCODER,
    (r"ecg_encoder\.quantizer\.vars", r"quantizer.codevectors"),
    (r"ecg_encoder\.quantizer\.weight_proj\.(.+)", r"quantizer.code_projection.\1"),
    (r"ecg_encoder\.project_q\.(.+)", r"target_projection.\1"),
    (r"ecg_encoder\.final_proj\.(.+)", r"context_projection.\1"),
    (r"head\.proj\.weight", r"recording_projection.weight"),
    (r"logit_scale", r"logit_scale"),
]
_POOLER = [
    (r"query", r"query"),
    (r"ln_q\.(.+)", r"query_norm.\1"),
    (r"ln_k\.(.+)", r"context_norm.\1"),
    (r"attn\.([qkv])_proj_weight", r"attention.\1_proj.weight"),
    (r"attn\.in_proj_(weight|bias)", r"attention.{qkv}_proj.\1"),
    (r"attn\.out_proj\.(.+)", r"attention.out_proj.\1"),
]
_TOWER = [
    *_ENCODER,
    (r"ecg_encoder\.(quantizer|project_q|final_proj)\..+", None),  # masked prediction only
    (r"logit_scale", None),  # of the pretraining stage
    (r"proj_contrast", r"beat_projection.weight"),
    (r"ln_contrast\.(.+)", r"beat_norm.\1"),
    (r"ln_caption\.(.+)", r"caption_norm.\1"),
    *[(rf"attn_pool_contrast\.{theirs}", rf"beat_pooler.{ours}") for theirs, ours in _POOLER],
    *[(rf"attn_pool_caption\.{theirs}", rf"caption_pooler.{ours}") for theirs, ours in _POOLER],
]
_BLOCK = [
    (r"ln_1\.(.+)", r"attention_norm.\2"),
    (r"ln_1_kv\.(.+)", r"context_norm.\2"),
    (r"ln_2\.(.+)", r"feed_forward_norm.\2"),
    (r"attn\.in_proj_(weight|bias)", r"attention.{qkv}_proj.\2"),
    (r"attn\.out_proj\.(.+)", r"attention.out_proj.\2"),
    (r"mlp\.c_fc\.(.+)", r"fc1.\2"),
    (r"mlp\.c_proj\.(.+)", r"fc2.\2"),
]
_FULL = [
    (r"logit_scale", r"logit_scale"),
    *[(rf"ecg_encoder\.{theirs}", ours and f"ecg_model.{ours}") for theirs, ours in _TOWER],
    (r"lm_model\.bert\.(.+)", r"text_model.\1"),
    (r"lm_model\.cls\..+", None),  # the masked-language-model head
    (r"proj_t\.(.+)", r"text_projection.\1"),
    (r"sent_proj\.(.+)", r"sentence_projection.\1"),
    (r"text_decoder\.text_projection", r"text_decoder.vocabulary_projection.weight"),
    (r"text_decoder\.ln_final\.(.+)", r"text_decoder.final_norm.\1"),
    *[(rf"text_decoder\.resblocks\.(\d+)\.{t}", rf"text_decoder.layers.\1.self_block.{o}") for t, o in _BLOCK],
    *[(rf"text_decoder\.cross_attn\.(\d+)\.{t}", rf"text_decoder.layers.\1.cross_block.{o}") for t, o in _BLOCK],
]
_TRANSPOSED = re.compile(r"(ecg_encoder\.)?proj_contrast|text_decoder\.text_projection")  # theirs are x @ W


def rename_keys(
    state_dict: dict[str, torch.Tensor], table: list[tuple[str, str | None]]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors under our names in float32, and the keys that the table knowingly drops.

    Raises:
        ValueError: keys that the table does not know.
    """
    renamed, dropped, unknown = {}, [], []
    for key, tensor in state_dict.items():
        matches = ((re.fullmatch(pattern, key), replacement) for pattern, replacement in table)
        match, replacement = next((found for found in matches if found[0]), (None, None))
        if match is None:
            unknown.append(key)
            continue
        if replacement is None:
            dropped.append(key)
            continue
        tensor = tensor.float().T if _TRANSPOSED.fullmatch(key) else tensor.float()
        name = match.expand(replacement)
        if "{qkv}" in name:  # one packed matrix: rows of q, k, v
            renamed |= {name.replace("{qkv}", part): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            renamed[name] = tensor
    if unknown:
        raise ValueError(f"{len(unknown)} keys of the checkpoint are not MELP's: {', '.join(unknown)}")
    return {name: tensor.contiguous() for name, tensor in renamed.items()}, dropped


def _count(weights: dict[str, torch.Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})


def read_ecg_config(
    weights: dict[str, torch.Tensor], prefix: str = "", heads: int | None = None, pooler_heads: int = 8
):
    """`MelpEcgConfig` with the sizes of renamed weights whose names begin with `prefix`."""

    def shape(name: str) -> torch.Size:
        return weights[f"{prefix}{name}"].shape

    convolutions = [
        shape(f"encoder.conv_blocks.{i}.conv.weight") for i in range(_count(weights, f"{prefix}encoder.conv_blocks."))
    ]
    hidden_size, group_width, positions = shape("encoder.position_embedding.conv.parametrizations.weight.original1")
    sizes = {
        "num_leads": convolutions[0][1],
        "conv_dim": [channels for channels, _, _ in convolutions],
        "conv_kernel": [kernel for _, _, kernel in convolutions],
        "conv_stride": [kernel for _, _, kernel in convolutions],
        "num_conv_pos_embeddings": positions,
        "num_conv_pos_embedding_groups": hidden_size // group_width,
        "hidden_size": hidden_size,
        "num_hidden_layers": _count(weights, f"{prefix}encoder.layers."),
        "num_attention_heads": heads or max(1, hidden_size // 64),
        "intermediate_size": shape("encoder.layers.0.fc1.weight")[0],
        "num_pooler_heads": pooler_heads,
    }
    if f"{prefix}beat_pooler.query" in weights:
        sizes["num_beat_queries"], sizes["projection_dim"] = shape("beat_pooler.query")
        sizes["num_caption_queries"], sizes["caption_dim"] = shape("caption_pooler.query")
    else:
        codes, sizes["codevector_dim"] = shape("quantizer.codevectors")[1:]
        sizes["codevector_dim"] *= 2
        sizes["num_codevectors_per_group"] = codes // 2
        sizes["projection_dim"] = shape("recording_projection.weight")[0]
    return MelpEcgConfig(**sizes)


def read_config(
    weights: dict[str, torch.Tensor],
    heads: int | None = None,
    text_heads: int | None = None,
    decoder_heads: int = 8,
    pooler_heads: int = 8,
) -> MelpConfig:
    """`MelpConfig` with the sizes of a full model's renamed weights."""
    vocab_size, width = weights["text_model.embeddings.word_embeddings.weight"].shape
    max_positions = len(weights["text_model.embeddings.position_embeddings.weight"])
    return MelpConfig(
        ecg_config=read_ecg_config(weights, "ecg_model.", heads, pooler_heads),
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": width,
            "num_hidden_layers": _count(weights, "text_model.encoder.layer."),
            "num_attention_heads": text_heads or max(1, width // 64),
            "intermediate_size": len(weights["text_model.encoder.layer.0.intermediate.dense.bias"]),
            "max_position_embeddings": max_positions,
            "type_vocab_size": len(weights["text_model.embeddings.token_type_embeddings.weight"]),
        },
        decoder_num_hidden_layers=_count(weights, "text_decoder.layers."),
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=len(weights["text_decoder.layers.0.self_block.fc1.bias"]),
        projection_dim=len(weights["sentence_projection.bias"]),
        cls_position=min(127, max_positions - 1),
        max_text_length=min(127, max_positions - 1),
        bos_token_id=vocab_size - 1,  # the authors add [BOS] behind BERT's vocabulary
        decoder_start_token_id=vocab_size - 1,
    )


def convert(
    state_dict: dict[str, torch.Tensor],
    heads: int | None = None,
    text_heads: int | None = None,
    decoder_heads: int = 8,
    pooler_heads: int = 8,
) -> tuple[PreTrainedModel, list[str]]:
    """Build the model that a checkpoint holds.

    Returns:
        the model (`MelpModel`, `MelpEcgModel` or `MelpEcgForPreTraining`) and the keys left out on purpose.

    Raises:
        ValueError: keys unknown, missing, or of another shape, all listed.
    """
    if any(key.startswith("lm_model.") for key in state_dict):
        weights, dropped = rename_keys(state_dict, _FULL)
        config = read_config(weights, heads, text_heads, decoder_heads, pooler_heads)
        model: PreTrainedModel = MelpModel(config)
    elif all(key.startswith("ecg_encoder.") for key in state_dict):
        weights, dropped = rename_keys({key[len("ecg_encoder.") :]: t for key, t in state_dict.items()}, _TOWER)
        model = MelpEcgModel(read_ecg_config(weights, heads=heads, pooler_heads=pooler_heads))
    else:
        weights, dropped = rename_keys(state_dict, _PRETRAINING)
        model = MelpEcgForPreTraining(read_ecg_config(weights, heads=heads, pooler_heads=pooler_heads))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    wrong += [f"{name} has no place in the model" for name in weights.keys() - expected.keys()]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"the checkpoint does not fit {type(model).__name__}: {'; '.join(sorted(wrong))}")
    model.load_state_dict(weights)
    return model.eval(), dropped


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file or a PyTorch checkpoint (a Lightning one too), without running its pickle."""
    if path.suffix == ".safetensors":
        return load_file(path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint.get("state_dict", checkpoint)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help=".safetensors, .ckpt, .pt or .pth")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, help="folder with the text model's tokenizer (full checkpoints)")
    parser.add_argument("--heads", type=int, help="attention heads of the ECG encoder")
    parser.add_argument("--text-heads", type=int, help="attention heads of the text encoder")
    parser.add_argument("--decoder-heads", type=int, default=8, help="attention heads of the text decoder")
    parser.add_argument("--pooler-heads", type=int, default=8, help="attention heads of the poolers")
    args = parser.parse_args(arguments)

    model, dropped = convert(
        load_checkpoint(args.checkpoint), args.heads, args.text_heads, args.decoder_heads, args.pooler_heads
    )
    processor: EcgFeatureExtractor | EcgProcessor = EcgFeatureExtractor(
        lead_names=MELP_LEADS, sampling_rate=500, num_samples=5000, normalization="min_max"
    )
    if args.tokenizer is not None and isinstance(model, MelpModel):
        tokenizer = as_report_tokenizer(AutoTokenizer.from_pretrained(args.tokenizer), model.config.max_text_length)
        if len(tokenizer) != model.config.text_config.vocab_size:
            raise ValueError(
                f"{args.tokenizer} has {len(tokenizer)} tokens with [BOS], but the checkpoint's text model has "
                f"{model.config.text_config.vocab_size}: give the tokenizer that it was trained with"
            )
        for name, value in special_token_settings(tokenizer).items():
            setattr(model.config, name, value)
        processor = EcgProcessor(processor, tokenizer, lowercase=True, max_text_length=model.config.max_text_length)
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {args.output}")
    if dropped:
        print(f"left out on purpose (not used by this model): {', '.join(dropped)}")
    if isinstance(model, MelpModel) and args.tokenizer is None:
        print("no tokenizer: give --tokenizer FOLDER to make texts usable")


if __name__ == "__main__":
    main()
