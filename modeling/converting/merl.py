"""Turn a MERL checkpoint of the authors into a folder that `AutoModel.from_pretrained` loads.

    python -m ecgformers.modeling.converting.merl --checkpoint FILE --output DIR [--tokenizer DIR]

It takes a whole model, with a ResNet or a ViT for ECGs.  Sizes are read off the tensors; the numbers of attention
heads are not in them, and follow the published models (64 channels a head; 4 heads in the ResNet's pooling) unless
given.  To use texts, give the folder of the text model's tokenizer (MedCPT's query encoder).
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ecgformers.modeling.configuration_merl import MerlConfig
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
from ecgformers.modeling.modeling_merl import MerlModel
from ecgformers.modeling.processing_ecg import EcgProcessor

_LAYER, _THEIR_LAYER = r"ecg_model.layers.\1", r"ecg_encoder\.block(\d+)"
_KEYS: KeyTable = [
    (r"logit_scale", r"logit_scale"),
    (r"lm_model\.(.+)", r"text_model.\1"),
    (r"proj_t\.(.+)", r"text_projection.\1"),
    (r"linear1\.(.+)", r"view_projections.0.\1"),
    (r"linear2\.(.+)", r"view_projections.1.\1"),
    # the ResNet
    *with_prefix(r"ecg_encoder\.", "ecg_model.", RESIDUAL_NETWORK),
    (r"ecg_encoder\.linear\..+", None),  # its classifier, never used
    (r"downconv\.(.+)", r"ecg_model.feature_projection.\1"),
    (r"att_pool_head\.cls_token", r"ecg_model.attention_pool.class_token"),
    (r"att_pool_head\.positional_embedding", r"ecg_model.attention_pool.position_embedding"),
    (r"att_pool_head\.mhsa\.in_proj_(.+)", r"ecg_model.attention_pool.attention.{qkv}_proj.\1"),
    (r"att_pool_head\.mhsa\.out_proj\.(.+)", r"ecg_model.attention_pool.attention.out_proj.\1"),
    (r"att_pool_head\.c_proj\.(.+)", r"ecg_model.attention_pool.projection.\1"),
    # the ViT
    (r"ecg_encoder\.to_patch_embedding\.(.+)", r"ecg_model.patch_embedding.\1"),
    (r"ecg_encoder\.pos_embedding", r"ecg_model.position_embedding"),
    (rf"{_THEIR_LAYER}\.attn\.norm\.(.+)", rf"{_LAYER}.attention_norm.\2"),
    (rf"{_THEIR_LAYER}\.attn\.fn\.to_qkv\.(.+)", rf"{_LAYER}.attention.{{qkv}}_proj.\2"),
    (rf"{_THEIR_LAYER}\.attn\.fn\.to_out\.0\.(.+)", rf"{_LAYER}.attention.out_proj.\2"),
    (rf"{_THEIR_LAYER}\.ff\.norm\.(.+)", rf"{_LAYER}.feed_forward_norm.\2"),
    (rf"{_THEIR_LAYER}\.ff\.fn\.net\.0\.(.+)", rf"{_LAYER}.fc1.\2"),
    (rf"{_THEIR_LAYER}\.ff\.fn\.net\.3\.(.+)", rf"{_LAYER}.fc2.\2"),
    (r"ecg_encoder\.norm\.(.+)", r"ecg_model.norm.\1"),
    (r"proj_e\.(.+)", r"ecg_model.projection.\1"),
]


def _read_config(
    weights: Mapping[str, torch.Tensor], heads: int | None, text_heads: int | None, pooler_heads: int
) -> MerlConfig:
    """Sizes of renamed weights."""
    sizes: dict[str, Any]
    if "ecg_model.stem_conv.weight" in weights:
        sizes = {
            "encoder_type": "resnet",
            "num_positions": size(weights, "ecg_model.attention_pool.position_embedding", 1) - 1,
            "hidden_size": size(weights, "ecg_model.feature_projection.weight", 0),
            "num_pooler_heads": pooler_heads,
            **residual_network_sizes(weights, "ecg_model."),
        }
    else:
        hidden_size = size(weights, "ecg_model.patch_embedding.weight", 0)
        sizes = {
            "encoder_type": "vit",
            "num_leads": size(weights, "ecg_model.patch_embedding.weight", 1),
            "patch_size": size(weights, "ecg_model.patch_embedding.weight", 2),
            "num_positions": size(weights, "ecg_model.position_embedding", 1),
            "hidden_size": hidden_size,
            "num_hidden_layers": count(weights, "ecg_model.layers."),
            "num_attention_heads": heads or max(1, hidden_size // 64),
            "intermediate_size": size(weights, "ecg_model.layers.0.fc1.weight", 0),
        }
    projection_dim = size(weights, "view_projections.0.weight", 0)
    return MerlConfig(
        text_config=bert_sizes(weights, "text_model.", text_heads), projection_dim=projection_dim, **sizes
    )


def convert(
    state_dict: Mapping[str, torch.Tensor],
    heads: int | None = None,
    text_heads: int | None = None,
    pooler_heads: int = 4,
) -> tuple[MerlModel, list[str]]:
    """Build the model that a checkpoint holds.

    Args:
        state_dict: the authors' keys and tensors.
        heads, text_heads: attention heads of the ViT and of the text tower, by default one for 64 channels.
        pooler_heads: attention heads of the ResNet's pooling.

    Returns:
        the model in float32, in evaluation mode, and the keys left out on purpose.

    Raises:
        ValueError: keys missing, unknown or of the wrong shape, all listed.
    """
    weights, dropped, unknown = rename_keys(state_dict, _KEYS)
    model = MerlModel(_read_config(weights, heads, text_heads, pooler_heads))
    fill_model(model, weights, unknown)
    return model, dropped


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help=".safetensors, .ckpt, .pt or .pth")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, help="folder with the text model's tokenizer")
    parser.add_argument("--heads", type=int, help="attention heads of the ViT")
    parser.add_argument("--text-heads", type=int, help="attention heads of the text tower")
    parser.add_argument("--pooler-heads", type=int, default=4, help="attention heads of the ResNet's pooling")
    args = parser.parse_args(arguments)

    model, dropped = convert(load_checkpoint(args.checkpoint), args.heads, args.text_heads, args.pooler_heads)
    config, text_config = model.config, model.config.text_config
    check_leads(config.num_leads, MELP_LEADS)
    step = config.patch_size if config.encoder_type == "vit" else 2 * math.prod(config.strides)
    processor: EcgFeatureExtractor | EcgProcessor = EcgFeatureExtractor(  # MERL was trained on the data of MELP
        lead_names=MELP_LEADS,
        sampling_rate=500,
        num_samples=min(5000, config.num_positions * step),
        normalization="min_max",
    )
    if args.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True)
        check_tokenizer(tokenizer, text_config.vocab_size)
        processor = EcgProcessor(
            processor, tokenizer, lowercase=True, max_text_length=text_config.max_position_embeddings
        )
    mark_license(model, "mit", "MERL")
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print_summary(model, dropped, args.output, args.tokenizer is not None)


if __name__ == "__main__":
    main()
