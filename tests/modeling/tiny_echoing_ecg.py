"""Tiny EchoingECG models for tests, with weights that are the same wherever the test runs.

PYTHONPATH=. python tests/modeling/tiny_echoing_ecg.py     writes the golden file anew
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

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


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """One frozen NumPy stream a tensor, in the order of the names; scaled to keep activations near 1."""
    with torch.no_grad():
        for index, (name, tensor) in enumerate(sorted(model.state_dict().items())):
            if tensor.is_floating_point() and not name.startswith("matching_loss."):
                noise = torch.from_numpy(np.random.RandomState(index).randn(*tensor.shape))
                if tensor.ndim > 1:
                    tensor.copy_(noise / tensor[0].numel() ** 0.5)
                else:  # scales and variances near 1, offsets near 0
                    tensor.copy_(0.1 * noise.abs() + 1 if name.endswith(("weight", "running_var")) else 0.1 * noise)
    return model.eval()


def tiny_model(**kwargs) -> EchoingEcgModel:
    return fill(EchoingEcgModel(tiny_config(**kwargs)))


def ecg_batch(batch: int = 3, samples: int = 250, leads: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(batch, leads, samples)).float()


def text_batch() -> dict[str, torch.Tensor]:
    """Three texts of 7, 4 and 9 tokens."""
    input_ids = torch.from_numpy(np.random.RandomState(1).randint(1, 20, (3, 9)))
    attention_mask = (torch.arange(9) < torch.tensor([7, 4, 9])[:, None]).long()
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}


@torch.no_grad()
def golden_outputs() -> dict[str, torch.Tensor]:
    model = tiny_model()
    outputs = model(ecg_batch(), **text_batch(), return_loss=True)
    names = ("ecg_embeds", "ecg_logvar", "text_embeds", "text_logvar", "logits_per_ecg")
    losses = ("loss", "match_loss", "pseudo_positive_loss", "vib_loss")
    tensors = {name: outputs[name].contiguous() for name in (*names, *losses)}
    sample_mask = (torch.arange(250) < torch.tensor([250, 101, 3])[:, None]).long()
    padded = model.get_ecg_features(ecg_batch(), sample_mask=sample_mask)
    return tensors | {"padded_ecg_embeds": padded.ecg_embeds, "padded_ecg_logvar": padded.ecg_logvar}


if __name__ == "__main__":
    save_file(golden_outputs(), GOLDEN)
