"""Signs that a contrastive training has gone wrong, cheap enough for every step."""

import math
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from ecgformers.modeling.losses_ecg import gather_with_gradient


class CollapseError(RuntimeError):
    """Both towers give every input nearly the same embedding: nothing is learned any more."""


def embedding_spread(embeds: torch.Tensor) -> float:
    """1 - |mean of the unit vectors|^2 of (batch, dim): 0 when all are equal, near 1 when they are spread out."""
    mean = F.normalize(embeds.detach().float(), dim=-1).mean(0)
    return 1.0 - mean.square().sum().item()


@dataclass
class CollapseWatch:
    """Raises `CollapseError` when embeddings stay together and the loss stays at chance.

    Args:
        least_spread: spread below which a tower has collapsed.
        tolerance: how near ln(batch) the contrastive loss must be, as a fraction.
        patience: so many checks in a row.
    """

    least_spread: float = 0.02
    tolerance: float = 0.03
    patience: int = 30
    suspicious: int = field(default=0, init=False)

    def check(self, ecg_spread: float, text_spread: float, contrastive_loss: float, batch: int):
        """One step's figures after the warm-up, during which any run looks like this; the batch is that of all
        processes."""
        at_chance = abs(contrastive_loss - math.log(batch)) < self.tolerance * math.log(batch)
        collapsed = min(ecg_spread, text_spread) < self.least_spread
        self.suspicious = self.suspicious + 1 if at_chance and collapsed else 0
        if self.suspicious >= self.patience:
            raise CollapseError(
                f"for {self.patience} steps the embeddings have had a spread of {ecg_spread:.4f} (ECG) and "
                f"{text_spread:.4f} (text), and the contrastive loss {contrastive_loss:.3f} is that of chance, "
                f"ln {batch} = {math.log(batch):.3f}: lower loop.learning_rate or raise loop.warmup_steps"
            )


def check_gather(accelerator: Accelerator):
    """Make sure that the losses see the rows of every process, and that gradients come back to each.

    Raises:
        RuntimeError: they do not; training would silently use fewer negatives.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    rows = torch.full((2, 1), float(rank), device=accelerator.device, requires_grad=True)
    gathered = gather_with_gradient(rows)
    expected = torch.arange(processes, device=accelerator.device).repeat_interleave(2)[:, None].float()
    if gathered.shape != expected.shape or not torch.equal(gathered.detach(), expected):
        raise RuntimeError(
            f"process {rank} of {processes} sees rows {gathered.flatten().tolist()} of a batch that has "
            f"{expected.flatten().tolist()}: negatives of other processes are lost"
        )
    gathered.sum().backward()
    if rows.grad is None or not torch.equal(rows.grad, torch.full_like(rows.grad, float(processes))):
        raise RuntimeError(f"process {rank} of {processes}: gradients do not come back through the gathered batch")
