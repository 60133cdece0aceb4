"""Turn a MELP checkpoint of the authors into a folder that `AutoModel.from_pretrained` loads.

    python -m ecgformers.modeling.converting.melp --checkpoint FILE --output DIR [--tokenizer DIR]

It takes the published safetensors file (ECG tower, `MelpEcgModel`; a ResNet in the place of wav2vec 2.0 too), a full
Lightning checkpoint (`MelpModel`) and a checkpoint of the ECG pretraining stage (`MelpEcgForPreTraining`).  Sizes are
read off the tensors; the numbers of attention heads are not in them, and follow the published models (64 channels a
head in both encoders, 8 heads in the poolers and the text decoder) unless given.  To use a full model's
text, give the folder of its text model's tokenizer.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.modeling_utils import PreTrainedModel

from ecgformers.modeling.configuration_melp import MelpConfig
from ecgformers.modeling.configuration_melp_ecg import MelpEcgConfig, MelpPretrainingConfig
from ecgformers.modeling.converting.checkpoint import (
    MELP_LEADS,
    RESIDUAL_NETWORK,
    KeyTable,
    bert_sizes,
    check_leads,
    check_tokenizer,
    count,
    fill_model,
    load_checkpoint,
    mark_license,
    print_summary,
    rename_keys,
    residual_network_sizes,
    size,
    with_prefix,
)
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.modeling_melp_ecg import MelpEcgModel
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.modeling.tokenization_melp import as_report_tokenizer, special_token_settings

_ENCODER: KeyTable = [
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
_PRETRAINING: KeyTable = [
    *_ENCODER,
    (r"ecg_encoder\.quantizer\.vars", r"quantizer.codevectors"),
    (r"ecg_encoder\.quantizer\.weight_proj\.(.+)", r"quantizer.code_projection.\1"),
    (r"ecg_encoder\.project_q\.(.+)", r"target_projection.\1"),
    (r"ecg_encoder\.final_proj\.(.+)", r"context_projection.\1"),
    (r"head\.proj\.weight", r"recording_projection.weight"),
    (r"logit_scale", r"logit_scale"),
]
_POOLER: KeyTable = [
    (r"query", r"query"),
    (r"ln_q\.(.+)", r"query_norm.\1"),
    (r"ln_k\.(.+)", r"context_norm.\1"),
    (r"attn\.([qkv])_proj_weight", r"attention.\1_proj.weight"),
    (r"attn\.in_proj_(weight|bias)", r"attention.{qkv}_proj.\1"),
    (r"attn\.out_proj\.(.+)", r"attention.out_proj.\1"),
]
_TOWER: KeyTable = [
    *_ENCODER,
    *with_prefix(r"model\.", "encoder.", RESIDUAL_NETWORK),
    (r"model\.linear\..+", None),  # a ResNet's classifier, never used
    (r"downconv\.(.+)", r"encoder.feature_projection.\1"),
    (r"ecg_encoder\.(quantizer|project_q|final_proj)\..+", None),  # masked prediction only
    (r"logit_scale", None),  # of the pretraining stage
    (r"proj_contrast", r"beat_projection.weight"),
    (r"ln_contrast\.(.+)", r"beat_norm.\1"),
    (r"ln_caption\.(.+)", r"caption_norm.\1"),
    *with_prefix(r"attn_pool_contrast\.", "beat_pooler.", _POOLER),
    *with_prefix(r"attn_pool_caption\.", "caption_pooler.", _POOLER),
]
_BLOCK: KeyTable = [
    (r"ln_1\.(.+)", r"attention_norm.\2"),
    (r"ln_1_kv\.(.+)", r"context_norm.\2"),
    (r"ln_2\.(.+)", r"feed_forward_norm.\2"),
    (r"attn\.in_proj_(weight|bias)", r"attention.{qkv}_proj.\2"),
    (r"attn\.out_proj\.(.+)", r"attention.out_proj.\2"),
    (r"mlp\.c_fc\.(.+)", r"fc1.\2"),
    (r"mlp\.c_proj\.(.+)", r"fc2.\2"),
]
_FULL: KeyTable = [
    (r"logit_scale", r"logit_scale"),
    *with_prefix(r"ecg_encoder\.", "ecg_model.", _TOWER),
    (r"lm_model\.bert\.(.+)", r"text_model.\1"),
    (r"lm_model\.cls\..+", None),  # the masked-language-model head
    (r"proj_t\.(.+)", r"text_projection.\1"),
    (r"sent_proj\.(.+)", r"sentence_projection.\1"),
    (r"text_decoder\.text_projection", r"text_decoder.vocabulary_projection.weight"),
    (r"text_decoder\.ln_final\.(.+)", r"text_decoder.final_norm.\1"),
    *[(rf"text_decoder\.resblocks\.(\d+)\.{t}", rf"text_decoder.layers.\1.self_block.{o}") for t, o in _BLOCK],
    *[(rf"text_decoder\.cross_attn\.(\d+)\.{t}", rf"text_decoder.layers.\1.cross_block.{o}") for t, o in _BLOCK],
]
_TRANSPOSED = r"(ecg_encoder\.)?proj_contrast|text_decoder\.text_projection"  # theirs are x @ W


def read_ecg_config(
    weights: Mapping[str, torch.Tensor], prefix: str = "", heads: int | None = None, pooler_heads: int = 8
) -> MelpEcgConfig:
    """`MelpEcgConfig` with the sizes of renamed weights whose names begin with `prefix`."""
    encoder = f"{prefix}encoder."
    sizes: dict[str, Any] = {"num_pooler_heads": pooler_heads}
    if f"{encoder}stem_conv.weight" in weights:
        sizes |= {"encoder_type": "resnet", **residual_network_sizes(weights, encoder)}
        sizes["hidden_size"] = size(weights, f"{encoder}feature_projection.weight", 0)
    else:
        blocks = [f"{encoder}conv_blocks.{i}.conv.weight" for i in range(count(weights, f"{encoder}conv_blocks."))]
        positions = f"{encoder}position_embedding.conv.parametrizations.weight.original1"
        hidden_size = size(weights, positions, 0)
        sizes |= {
            "num_leads": size(weights, f"{encoder}conv_blocks.0.conv.weight", 1),
            "conv_dim": [size(weights, block, 0) for block in blocks],
            "conv_kernel": [size(weights, block, 2) for block in blocks],
            "conv_stride": [size(weights, block, 2) for block in blocks],
            "num_conv_pos_embeddings": size(weights, positions, 2),
            "num_conv_pos_embedding_groups": hidden_size // size(weights, positions, 1),
            "hidden_size": hidden_size,
            "num_hidden_layers": count(weights, f"{encoder}layers."),
            "num_attention_heads": heads or max(1, hidden_size // 64),
            "intermediate_size": size(weights, f"{encoder}layers.0.fc1.weight", 0),
        }
    if f"{prefix}quantizer.codevectors" in weights:
        groups = MelpPretrainingConfig.num_codevector_groups
        sizes["num_codevectors_per_group"] = size(weights, f"{prefix}quantizer.codevectors", 1) // groups
        sizes["codevector_dim"] = size(weights, f"{prefix}quantizer.codevectors", 2) * groups
        sizes["projection_dim"] = size(weights, f"{prefix}recording_projection.weight", 0)
    else:
        for fields, query in (
            (("num_beat_queries", "projection_dim"), f"{prefix}beat_pooler.query"),
            (("num_caption_queries", "caption_dim"), f"{prefix}caption_pooler.query"),
        ):
            sizes |= {field: size(weights, query, axis) for axis, field in enumerate(fields)}
    return MelpEcgConfig(**sizes)


def read_config(
    weights: Mapping[str, torch.Tensor],
    heads: int | None = None,
    text_heads: int | None = None,
    decoder_heads: int = 8,
    pooler_heads: int = 8,
) -> MelpConfig:
    """`MelpConfig` with the sizes of a full model's renamed weights."""
    text_config = bert_sizes(weights, "text_model.", text_heads)
    last_position, bos_token_id = text_config["max_position_embeddings"] - 1, text_config["vocab_size"] - 1
    return MelpConfig(
        ecg_config=read_ecg_config(weights, "ecg_model.", heads, pooler_heads),
        text_config=text_config,
        decoder_num_hidden_layers=count(weights, "text_decoder.layers."),
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=size(weights, "text_decoder.layers.0.self_block.fc1.weight", 0),
        projection_dim=size(weights, "sentence_projection.weight", 0),
        cls_position=min(127, last_position),
        max_text_length=min(127, last_position),
        bos_token_id=bos_token_id,  # the authors add [BOS] behind BERT's vocabulary
        decoder_start_token_id=bos_token_id,
    )


def convert(
    state_dict: Mapping[str, torch.Tensor],
    heads: int | None = None,
    text_heads: int | None = None,
    decoder_heads: int = 8,
    pooler_heads: int = 8,
) -> tuple[PreTrainedModel, list[str]]:
    """Build the model that a checkpoint holds.

    Args:
        state_dict: the authors' keys and tensors.
        heads, text_heads: attention heads of ECG and text encoder, by default one for 64 channels.
        decoder_heads, pooler_heads: attention heads of text decoder and poolers.

    Returns:
        the model (`MelpModel`, `MelpEcgModel` or `MelpEcgForPreTraining`) and the keys left out on purpose.

    Raises:
        ValueError: keys unknown, missing, or of another shape, all listed.
    """
    model: PreTrainedModel
    if any(key.startswith("lm_model.") for key in state_dict):
        weights, dropped, unknown = rename_keys(state_dict, _FULL, _TRANSPOSED)
        model = MelpModel(read_config(weights, heads, text_heads, decoder_heads, pooler_heads))
    else:
        is_tower = all(key.startswith("ecg_encoder.") for key in state_dict)
        if is_tower:
            state_dict = {key.removeprefix("ecg_encoder."): tensor for key, tensor in state_dict.items()}
        weights, dropped, unknown = rename_keys(state_dict, _TOWER if is_tower else _PRETRAINING, _TRANSPOSED)
        config = read_ecg_config(weights, heads=heads, pooler_heads=pooler_heads)
        model = MelpEcgModel(config) if is_tower else MelpEcgForPreTraining(config)
    fill_model(model, weights, unknown)
    return model, dropped


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
    check_leads(getattr(model.config, "ecg_config", model.config).num_leads, MELP_LEADS)
    processor: EcgFeatureExtractor | EcgProcessor = EcgFeatureExtractor(
        lead_names=MELP_LEADS, sampling_rate=500, num_samples=5000, normalization="min_max"
    )
    if args.tokenizer is not None and isinstance(model, MelpModel):
        tokenizer = as_report_tokenizer(
            AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True), model.config.max_text_length
        )
        check_tokenizer(tokenizer, model.config.text_config.vocab_size)
        for name, value in special_token_settings(tokenizer).items():
            setattr(model.config, name, value)
        processor = EcgProcessor(processor, tokenizer, lowercase=True, max_text_length=model.config.max_text_length)
    mark_license(model, "apache-2.0", "MELP")
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print_summary(model, dropped, args.output, args.tokenizer is not None or not isinstance(model, MelpModel))


if __name__ == "__main__":
    main()
