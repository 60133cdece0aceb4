"""Zero-shot answers from the similarities of echo frames (or one ECG) with prompts (Christensen et al. 2024)."""

from collections.abc import Sequence

import torch


def zero_shot_score(similarities: torch.Tensor) -> torch.Tensor:
    """Score of a finding: the mean over all frames and all prompts that describe it.

    Args:
        similarities: (..., frames, prompts), cosine similarities.

    Returns:
        (...), higher where the finding is likelier; no probability.
    """
    return similarities.mean((-2, -1))


def zero_shot_value(
    similarities: torch.Tensor, values: torch.Tensor | Sequence[float], kept: float = 0.2
) -> torch.Tensor:
    """Value of a measurement: prompts state candidates ("ejection fraction is 55 %" ... for 0 to 100, in one or more
    wordings), each frame ranks them, and the first ranks vote.

    Per frame the candidates are sorted from the most to the least similar; the k-th ranked values are averaged over
    the frames; of these averages the first `kept` part is taken, and its median (the lower one of two middle ones).

    Args:
        similarities: (..., frames, candidates), or with -distances of a single Gaussian (..., 1, candidates).
        values: (candidates,), what each prompt states.
        kept: the part of the ranks that counts.

    Returns:
        (...), in the unit of `values`, in float32 at least.

    Raises:
        ValueError: so few candidates that `kept` of them is less than one (fewer than 5 for 0.2), or not as many
            values as candidates.
    """
    candidates = similarities.shape[-1]
    values = torch.as_tensor(values, device=similarities.device)
    if values.shape != (candidates,):
        raise ValueError(f"values has shape {[*values.shape]}, but the similarities are of {candidates} candidates")
    num_kept = int(kept * candidates)
    if num_kept < 1:
        raise ValueError(
            f"{candidates} candidates are too few: of the ranks the first {kept:.0%} count, which is less than one"
        )
    ranked = similarities.argsort(dim=-1, descending=True, stable=True)[..., :num_kept]
    values = values.to(torch.promote_types(similarities.dtype, torch.float32))
    return values[ranked].mean(-2).median(-1).values


__all__ = ["zero_shot_score", "zero_shot_value"]
