"""What the tests of several models share: weights and inputs that are the same wherever they run."""

import numpy as np
import torch


def fill(model: torch.nn.Module, keep: tuple[str, ...] = ()) -> torch.nn.Module:
    """Weights from one frozen NumPy stream a tensor, in the order of the names; those that begin with `keep` stay."""
    with torch.no_grad():
        for index, (name, tensor) in enumerate(sorted(model.state_dict().items())):
            noise = np.random.RandomState(index).randn(*tensor.shape)
            scale = noise / np.sqrt(max(1, np.prod(tensor.shape[1:]))) if tensor.ndim > 1 else 0.1 * noise
            is_norm = tensor.ndim == 1 and name.endswith(("weight", "running_var"))
            if tensor.is_floating_point() and not name.startswith(keep):
                tensor.copy_(torch.from_numpy(np.asarray(scale + is_norm)))
    return model.eval()


def ecg_batch(batch: int = 3, samples: int = 240, leads: int = 12, seed: int = 0) -> torch.Tensor:
    """(batch, leads, samples), a random walk."""
    noise = np.random.RandomState(seed).randn(batch, leads, samples)
    return torch.from_numpy(noise.cumsum(-1).astype(np.float32) / 10)


def text_batch() -> dict[str, torch.Tensor]:
    """Three texts of 7, 4 and 9 tokens."""
    input_ids = torch.from_numpy(np.random.RandomState(1).randint(1, 20, (3, 9)))
    attention_mask = (torch.arange(9) < torch.tensor([7, 4, 9])[:, None]).long()
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}
