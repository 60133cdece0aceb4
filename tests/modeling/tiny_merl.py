"""Tiny MERL models for tests, with weights that are the same wherever the test runs.

PYTHONPATH=. python tests/modeling/tiny_merl.py     writes the golden files anew
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import ecg_batch, fill, text_batch

from ecgformers.modeling.configuration_merl import MerlConfig
from ecgformers.modeling.modeling_merl import MerlModel

ENCODERS = ("resnet", "vit")
GOLDEN = Path(__file__).parent / "golden"


def tiny_config(encoder_type: str = "resnet", **kwargs) -> MerlConfig:
    text_config = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
    }
    sizes = {
        "text_config": text_config,
        "encoder_type": encoder_type,
        "num_positions": 75,
        "hidden_size": 12,
        "stem_size": 6,
        "hidden_sizes": (6, 8),
        "depths": (1, 2),
        "strides": (1, 2),
        "num_pooler_heads": 2,
        "patch_size": 10,
        "num_hidden_layers": 2,
        "intermediate_size": 20,
        "projection_dim": 16,
    }
    return MerlConfig(**(sizes | kwargs))


def tiny_model(encoder_type: str = "resnet", **kwargs) -> MerlModel:
    return fill(MerlModel(tiny_config(encoder_type, **kwargs)))


def ecg_samples(batch: int = 3, samples: int = 150, seed: int = 0) -> torch.Tensor:
    return ecg_batch(batch, samples=samples, seed=seed)


@torch.no_grad()
def golden_outputs(encoder_type: str) -> dict[str, torch.Tensor]:
    model = tiny_model(encoder_type)
    outputs = model(ecg_samples(), **text_batch(), return_loss=True)
    names = ("ecg_embeds", "text_embeds", "logits_per_ecg", "contrastive_loss", "unimodal_loss", "loss")
    tensors = {name: outputs[name].contiguous() for name in names}
    return tensors | {"pooler_output": outputs.ecg_model_output.pooler_output}


if __name__ == "__main__":
    for encoder in ENCODERS:
        save_file(golden_outputs(encoder), GOLDEN / f"merl_{encoder}.safetensors")
