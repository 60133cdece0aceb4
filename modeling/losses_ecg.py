"""What all training losses share, and the contrast of matched rows.

Every loss is computed in float32 (float64 inputs stay float64) and outside autocast, whatever the precision of the
model.  With `gather=True` (the default) and torch.distributed initialised, the batch is that of **all** processes:
each returns the loss of the whole batch, and the mean of their gradients, which is what DDP and FSDP apply, is the
gradient a single process would get from the whole batch.  All processes must then call the loss together.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run `function` outside autocast, its half-precision tensors raised to float32."""

    def raise_precision(value: Any) -> Any:
        is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if is_half else value

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(
                *map(raise_precision, args),  # type: ignore[arg-type]
                **{name: raise_precision(value) for name, value in kwargs.items()},  # type: ignore[arg-type]
            )

    return wrapper


class _GatherWithGradient(torch.autograd.Function):
    """all_gather whose backward sums what every process' loss says about this process' rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        world_size, rank = dist.get_world_size(), dist.get_rank()
        shape = torch.tensor(tensor.shape, device=tensor.device)
        shapes = [torch.empty_like(shape) for _ in range(world_size)]
        dist.all_gather(shapes, shape)
        padded = tensor.new_zeros(torch.stack(shapes).amax(0).tolist())
        padded[tuple(slice(size) for size in tensor.shape)] = tensor
        parts = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(parts, padded)
        sizes = [int(shape[0]) for shape in shapes]
        start = sum(sizes[:rank])
        ctx.own = (slice(start, start + sizes[rank]), *(slice(size) for size in tensor.shape[1:]))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[ctx.own]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the (rows, ...) tensors of all processes, in rank order; gradients flow back to each.

    Processes may hold different numbers of rows; other dimensions are zero-padded to the largest of any process.  With
    one process, or without torch.distributed, the tensor itself is returned.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    return _GatherWithGradient.apply(tensor)


@in_full_precision
def contrastive_loss(
    ecg_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    gather: bool = True,
    matched: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE between matched rows (CLIP, Radford et al. 2021; MELP's rhythm level, arXiv 2506.21803).

    Args:
        ecg_embeds, text_embeds: (batch, dim), L2-normalised.
        logit_scale: factor of the cosines, 1 / temperature (not its logarithm).
        matched: (rows, columns) of all processes, 1 where a row of one belongs to a row of the other; the matches of a
            row, or column, share it equally.  By default row i belongs to row i.
    """
    if gather:
        ecg_embeds, text_embeds = gather_with_gradient(ecg_embeds), gather_with_gradient(text_embeds)
    return symmetric_cross_entropy(logit_scale * ecg_embeds @ text_embeds.T, matched)


def symmetric_cross_entropy(logits: Tensor, matched: Tensor | None = None) -> Tensor:
    """Cross-entropy of (rows, columns) in both directions; `matched` as in [`contrastive_loss`]."""
    if matched is None:
        of_rows = of_columns = torch.arange(len(logits), device=logits.device)
    else:
        matched = matched.to(logits)
        of_rows, of_columns = F.normalize(matched, p=1.0, dim=-1), F.normalize(matched.T, p=1.0, dim=-1)
    return (F.cross_entropy(logits, of_rows) + F.cross_entropy(logits.T, of_columns)) / 2
