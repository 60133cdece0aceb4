"""Turn EchoCLIP's open_clip checkpoint into a folder that `AutoModel.from_pretrained` loads.

    python -m ecgformers.modeling.converting.echo_clip --checkpoint FILE --output DIR [--tokenizer DIR]

FILE is `open_clip_pytorch_model.bin`, a `.pt` of open_clip's training or `.safetensors`: any open_clip model with a
ConvNeXt image tower and CLIP's own text tower.  Sizes are read off the tensors; the number of attention heads is not
in them, and is CLIP's (64 channels a head) unless given.  To use texts, give the folder of CLIP's tokenizer.

The authors' weights are under an academic, non-transferable licence: a converted folder is for your own use.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPProcessor

from ecgformers.modeling.configuration_echo_clip import EchoClipConfig
from ecgformers.modeling.converting.checkpoint import (
    KeyTable,
    count,
    fill_model,
    load_checkpoint,
    mark_license,
    print_summary,
    rename_keys,
    size,
)
from ecgformers.modeling.modeling_echo_clip import EchoClipModel

_STAGE, _THEIR_STAGE = r"vision_model.encoder.stages.\1", r"visual\.trunk\.stages\.(\d+)"
_LAYER, _THEIR_LAYER = r"text_model.encoder.layers.\1", r"transformer\.resblocks\.(\d+)"
_KEYS: KeyTable = [
    (r"visual\.trunk\.stem\.0\.(.+)", r"vision_model.embeddings.patch_embeddings.\1"),
    (r"visual\.trunk\.stem\.1\.(.+)", r"vision_model.embeddings.layernorm.\1"),
    (rf"{_THEIR_STAGE}\.downsample\.([01])\.(.+)", rf"{_STAGE}.downsampling_layer.\2.\3"),
    (rf"{_THEIR_STAGE}\.blocks\.(\d+)\.gamma", rf"{_STAGE}.layers.\2.layer_scale_parameter"),
    (rf"{_THEIR_STAGE}\.blocks\.(\d+)\.conv_dw\.(.+)", rf"{_STAGE}.layers.\2.dwconv.\3"),
    (rf"{_THEIR_STAGE}\.blocks\.(\d+)\.norm\.(.+)", rf"{_STAGE}.layers.\2.layernorm.\3"),
    (rf"{_THEIR_STAGE}\.blocks\.(\d+)\.mlp\.fc([12])\.(.+)", rf"{_STAGE}.layers.\2.pwconv\3.\4"),
    (r"visual\.trunk\.head\.norm\.(.+)", r"vision_model.layernorm.\1"),
    (r"visual\.head\.proj\.weight", r"visual_projection.weight"),
    (r"token_embedding\.weight", r"text_model.embeddings.token_embedding.weight"),
    (r"positional_embedding", r"text_model.embeddings.position_embedding.weight"),
    (rf"{_THEIR_LAYER}\.ln_([12])\.(.+)", rf"{_LAYER}.layer_norm\2.\3"),
    (rf"{_THEIR_LAYER}\.attn\.in_proj_(.+)", rf"{_LAYER}.self_attn.{{qkv}}_proj.\2"),
    (rf"{_THEIR_LAYER}\.attn\.out_proj\.(.+)", rf"{_LAYER}.self_attn.out_proj.\2"),
    (rf"{_THEIR_LAYER}\.mlp\.c_fc\.(.+)", rf"{_LAYER}.mlp.fc1.\2"),
    (rf"{_THEIR_LAYER}\.mlp\.c_proj\.(.+)", rf"{_LAYER}.mlp.fc2.\2"),
    (r"ln_final\.(.+)", r"text_model.final_layer_norm.\1"),
    (r"text_projection", r"text_projection.weight"),
    (r"logit_scale", r"logit_scale"),
    (r"attn_mask", None),  # the causal mask, which older versions of open_clip save
]


def _read_config(weights: Mapping[str, torch.Tensor], num_text_heads: int | None) -> EchoClipConfig:
    """Sizes of renamed weights."""

    stages = range(count(weights, "vision_model.encoder.stages."))
    vocab_size = size(weights, "text_model.embeddings.token_embedding.weight", 0)
    hidden_size = size(weights, "text_model.embeddings.token_embedding.weight", 1)
    return EchoClipConfig(
        vision_config={
            "num_channels": size(weights, "vision_model.embeddings.patch_embeddings.weight", 1),
            "patch_size": size(weights, "vision_model.embeddings.patch_embeddings.weight", 2),
            "num_stages": len(stages),
            "depths": [count(weights, f"vision_model.encoder.stages.{i}.layers.") for i in stages],
            "hidden_sizes": [
                size(weights, f"vision_model.encoder.stages.{i}.layers.0.dwconv.weight", 0) for i in stages
            ],
        },
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": count(weights, "text_model.encoder.layers."),
            "num_attention_heads": num_text_heads or max(1, hidden_size // 64),
            "intermediate_size": size(weights, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
            "max_position_embeddings": size(weights, "text_model.embeddings.position_embedding.weight", 0),
            "projection_dim": size(weights, "text_projection.weight", 0),
            "bos_token_id": vocab_size - 2,  # CLIP's last two tokens
            "eos_token_id": vocab_size - 1,
            "pad_token_id": 0,
        },
        projection_dim=size(weights, "visual_projection.weight", 0),
    )


def convert(
    state_dict: Mapping[str, torch.Tensor], num_text_heads: int | None = None
) -> tuple[EchoClipModel, list[str]]:
    """Build the model that an open_clip checkpoint holds.

    Args:
        state_dict: open_clip's keys and tensors.
        num_text_heads: attention heads of the text tower, by default one for 64 channels.

    Returns:
        the model in float32, in evaluation mode, and the keys left out on purpose.

    Raises:
        ValueError: keys missing, unknown or of the wrong shape, all listed.
    """
    weights, dropped, unknown = rename_keys(state_dict, _KEYS, transposed="text_projection")  # theirs is x @ W
    model = EchoClipModel(_read_config(weights, num_text_heads))
    fill_model(model, weights, unknown)
    return model, dropped


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help=".bin, .pt or .safetensors")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, help="folder with CLIP's tokenizer")
    parser.add_argument("--text-heads", type=int, help="attention heads of the text tower")
    args = parser.parse_args(arguments)

    tokenizer = None
    if args.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True)
    model, dropped = convert(load_checkpoint(args.checkpoint), args.text_heads)
    text_config = model.text_model.config
    if tokenizer is not None:
        if (len(tokenizer), tokenizer.eos_token_id) != (text_config.vocab_size, text_config.eos_token_id):
            raise ValueError(
                f"{args.tokenizer} has {len(tokenizer)} tokens, of which {tokenizer.eos_token_id} ends a text; the "
                f"checkpoint's text tower has {text_config.vocab_size} and {text_config.eos_token_id}: give the "
                "tokenizer that it was trained with"
            )
        tokenizer.model_max_length = text_config.max_position_embeddings

    # What open_clip does to a picture: shortest side to 224 by PIL's bicubic, centre crop, CLIP's mean and std.
    processor: CLIPImageProcessorPil | CLIPProcessor = CLIPImageProcessorPil()
    if tokenizer is not None:
        processor = CLIPProcessor(processor, tokenizer)
    mark_license(model, "not transferable", "EchoCLIP")
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print_summary(model, dropped, args.output, tokenizer is not None)


if __name__ == "__main__":
    main()
