"""Groups of labels, such as the superclasses of ECG statements."""

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F


def membership(labels: Sequence[str], groups: Mapping[str, Sequence[str]]) -> torch.Tensor:
    """(labels, groups), 1 where a label belongs to a group."""
    return torch.tensor([[float(label in members) for members in groups.values()] for label in labels])


def log_none(logits: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
    """Logarithm of the probability that no label of a group is true, were labels independent.

    (..., labels) and (labels, groups) -> (..., groups); so a group's probability is `1 - exp` of it.
    """
    return -F.softplus(logits) @ membership
