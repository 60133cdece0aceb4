"""The mean over all processes."""

import torch
from torch import Tensor

from .losses_ecg import gather_with_gradient


def mean_over_processes(values: Tensor, gather: bool) -> Tensor:
    """Mean of all values, those of the other processes included, whose numbers of values may differ."""
    total_and_count = torch.stack([values.sum(), values.new_tensor(values.numel())])[None]  # (1, 2)
    if gather:
        total_and_count = gather_with_gradient(total_and_count)  # (processes, 2)
    total, count = total_and_count.sum(0)
    return total / count
