"""Tiny EchoingECG models for tests, with weights that are the same wherever the test runs.

PYTHONPATH=. python tests/modeling/tiny_echoing_ecg.py     writes the golden file anew
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import ecg_batch, fill, text_batch

from ecgformers.modeling.configuration_echoing_ecg import EchoingEcgConfig
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel

GOLDEN = Path(__file__).parent / "golden" / "echoing_ecg.safetensors"


def tiny_config(**kwargs) -> EchoingEcgConfig:
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
        "stem_size": 6,
        "hidden_sizes": (6, 8, 10, 12),
        "depths": (1, 2, 1, 1),
        "projection_dim": 16,
        "pooling_size": 8,
    }
    return EchoingEcgConfig(**(sizes | kwargs))


def tiny_model(**kwargs) -> EchoingEcgModel:
    return fill(EchoingEcgModel(tiny_config(**kwargs)), keep=("logit_",))


@torch.no_grad()
def golden_outputs() -> dict[str, torch.Tensor]:
    model = tiny_model()
    outputs = model(ecg_batch(samples=250), **text_batch(), return_loss=True)
    names = ("ecg_embeds", "ecg_logvar", "text_embeds", "text_logvar", "logits_per_ecg")
    losses = ("loss", "match_loss", "pseudo_positive_loss", "vib_loss")
    tensors = {name: outputs[name].contiguous() for name in (*names, *losses)}
    sample_mask = (torch.arange(250) < torch.tensor([250, 101, 3])[:, None]).long()
    padded = model.get_ecg_features(ecg_batch(samples=250), sample_mask=sample_mask)
    return tensors | {"padded_ecg_embeds": padded.ecg_embeds, "padded_ecg_logvar": padded.ecg_logvar}


if __name__ == "__main__":
    save_file(golden_outputs(), GOLDEN)
