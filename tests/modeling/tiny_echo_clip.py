"""Tiny EchoCLIP models for tests, with weights that are the same wherever the test runs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from ecgformers.modeling.configuration_echo_clip import EchoClipConfig
from ecgformers.modeling.modeling_echo_clip import EchoClipModel


def tiny_tokenizer() -> CLIPTokenizer:
    words = ["severe", "stenosis", "normal", "ejection", "fraction"]
    letters = sorted(set("".join(words)))
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def tiny_config(**kwargs) -> EchoClipConfig:
    vocab_size = len(tiny_tokenizer())
    text_config = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "projection_dim": 8,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": 0,
    }
    vision_config = {"depths": (1, 1, 2, 1), "hidden_sizes": (4, 6, 8, 10)}
    return EchoClipConfig(**{"text_config": text_config, "vision_config": vision_config, "projection_dim": 8} | kwargs)


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """One frozen NumPy stream a tensor, in the order of the names; scaled to keep activations near 1."""
    with torch.no_grad():
        for index, (name, tensor) in enumerate(sorted(model.state_dict().items())):
            if not tensor.ndim:  # the logit scale
                continue
            noise = torch.from_numpy(np.random.RandomState(index).randn(*tensor.shape))
            if tensor.ndim > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(0.1 * noise.abs() + 1 if name.endswith(("weight", "scale_parameter")) else 0.1 * noise)
    return model.eval()


def tiny_model(**kwargs) -> EchoClipModel:
    return fill(EchoClipModel(tiny_config(**kwargs)))


def tiny_processor() -> CLIPProcessor:
    """For frames of 64 x 64."""
    sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    return CLIPProcessor(CLIPImageProcessorPil(**sizes), tiny_tokenizer())


def save_tiny(folder: Path) -> EchoClipModel:
    """A folder as the converter writes it."""
    model = tiny_model()
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return model


def frame_batch(frames: int = 5, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(frames, 3, size, size)).float()


def text_batch() -> torch.Tensor:
    end = len(tiny_tokenizer()) - 1
    return torch.tensor([[end - 1, 3, 5, 2, end, 0], [end - 1, 7, end, 0, 0, 0]])


def open_clip_layout(model: EchoClipModel) -> dict[str, torch.Tensor]:
    """The weights under open_clip's names, written down independently of the converter."""
    ours = model.state_dict()
    theirs = {
        "positional_embedding": ours["text_model.embeddings.position_embedding.weight"],
        "text_projection": ours["text_projection.weight"].T.contiguous(),
        "logit_scale": ours["logit_scale"],
        "token_embedding.weight": ours["text_model.embeddings.token_embedding.weight"],
        "visual.head.proj.weight": ours["visual_projection.weight"],
    }
    theirs |= dict(_pair("visual.trunk.stem.0", "vision_model.embeddings.patch_embeddings", ours))
    theirs |= dict(_pair("visual.trunk.stem.1", "vision_model.embeddings.layernorm", ours))
    theirs |= dict(_pair("visual.trunk.head.norm", "vision_model.layernorm", ours))
    theirs |= dict(_pair("ln_final", "text_model.final_layer_norm", ours))
    for stage, depth in enumerate(model.config.vision_config.depths):
        their_stage, our_stage = f"visual.trunk.stages.{stage}", f"vision_model.encoder.stages.{stage}"
        for part in range(2 if stage else 0):
            theirs |= dict(_pair(f"{their_stage}.downsample.{part}", f"{our_stage}.downsampling_layer.{part}", ours))
        for block in range(depth):
            their_block, our_block = f"{their_stage}.blocks.{block}", f"{our_stage}.layers.{block}"
            theirs[f"{their_block}.gamma"] = ours[f"{our_block}.layer_scale_parameter"]
            names = {"conv_dw": "dwconv", "norm": "layernorm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
            for their_part, our_part in names.items():
                theirs |= dict(_pair(f"{their_block}.{their_part}", f"{our_block}.{our_part}", ours))
    for layer in range(model.config.text_config.num_hidden_layers):
        their_layer, our_layer = f"transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            packed = [ours[f"{our_layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            theirs[f"{their_layer}.attn.in_proj_{kind}"] = torch.cat(packed)
        names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
        names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
        for their_part, our_part in names.items():
            theirs |= dict(_pair(f"{their_layer}.{their_part}", f"{our_layer}.{our_part}", ours))
    return {name: tensor.clone() for name, tensor in theirs.items()}


def _pair(theirs: str, ours: str, weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for kind in ("weight", "bias"):
        yield f"{theirs}.{kind}", weights[f"{ours}.{kind}"]
