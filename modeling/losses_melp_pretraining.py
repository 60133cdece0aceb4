"""Losses and random choices of MELP's stage without labels; see `losses_ecg` for what they share with all others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .averages_ecg import mean_over_processes
from .losses_ecg import contrastive_loss, in_full_precision
from .pairing_ecg import matched_by_id


@in_full_precision
def cmsc_loss(
    embeds_a: Tensor,
    embeds_b: Tensor,
    patient_ids: Tensor | Sequence[str],
    logit_scale: Tensor | float,
    gather: bool = True,
) -> Tensor:
    """Contrastive multi-segment coding (CLOCS, Kiyasseh et al., ICML 2021): a patient's segments attract each other.

    Every second segment of the same patient, also of another recording, is an equally weighted positive of a first
    segment, and the other way round.

    Args:
        embeds_a, embeds_b: (recordings, dim), first and second segment of each recording; L2-normalised here.
        patient_ids: one per recording, an integer tensor or texts.
        logit_scale: factor of the cosines, 1 / temperature (not its logarithm).
    """
    matched = matched_by_id(patient_ids, gather=gather, device=embeds_a.device)
    embeds_a, embeds_b = F.normalize(embeds_a, dim=-1), F.normalize(embeds_b, dim=-1)
    return contrastive_loss(embeds_a, embeds_b, logit_scale, gather, matched)


@in_full_precision
def masked_contrastive_logits(
    context: Tensor, targets: Tensor, negative_indices: Tensor, temperature: float = 0.1
) -> Tensor:
    """Logits (batch, time, 1 + negatives) of telling each step's target (index 0) from its negatives.

    A negative that equals the target gets -inf.  Arguments as in [`masked_contrastive_loss`].
    """
    cosines = F.normalize(context, dim=-1) @ F.normalize(targets, dim=-1).mT  # (batch, time, time)
    negatives = cosines.gather(-1, negative_indices)
    codes = targets.detach().flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(targets.shape[:2])
    negative_codes = codes.gather(1, negative_indices.flatten(1)).view_as(negative_indices)
    negatives = negatives.masked_fill(negative_codes == codes[..., None], -torch.inf)
    return torch.cat([cosines.diagonal(dim1=1, dim2=2)[..., None], negatives], dim=-1) / temperature


@in_full_precision
def masked_contrastive_loss(
    context: Tensor,
    targets: Tensor,
    negative_indices: Tensor,
    mask: Tensor,
    temperature: float = 0.1,
    gather: bool = True,
) -> Tensor:
    """Contrastive loss of wav2vec 2.0 (Baevski et al., NeurIPS 2020, eq. 3), the mean over all masked steps.

    Args:
        context: (batch, time, dim), projected output of the encoder on the masked signal.
        targets: (batch, time, dim), projected quantised features.
        negative_indices: (batch, time, negatives) time steps of the same record, see [`sample_negative_indices`].
        mask: (batch, time), 1 for a masked step; the others do not count.
    """
    logits = masked_contrastive_logits(context, targets, negative_indices, temperature)[mask.bool()]
    return mean_over_processes(torch.logsumexp(logits, -1) - logits[:, 0], gather)


def sample_span_mask(
    batch: int,
    time: int,
    mask_prob: float = 0.65,
    mask_length: int = 10,
    min_spans: int = 2,
    lengths: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Mask (batch, time) bool of random, possibly overlapping spans (wav2vec 2.0, section 3.1).

    Each record gets floor(mask_prob * length / mask_length + U(0, 1)) spans, at least `min_spans`, with different
    starts, so about 1 - exp(-mask_prob) of its steps are masked.  For an augmentation that depends on the record
    alone, call it record by record (batch 1) with a generator seeded by the record.

    Args:
        lengths: (batch,) steps of each record that are no padding; default all.

    Raises:
        ValueError: for a record too short to hold `min_spans` spans.
    """
    lengths = torch.full((batch,), time, device=device) if lengths is None else lengths.to(device)
    if lengths.min() < mask_length + min_spans - 1:
        raise ValueError(f"{int(lengths.min())} steps cannot hold {min_spans} different spans of {mask_length} steps")
    starts = lengths[:, None] - mask_length + 1  # (batch, 1) possible starts
    spans = mask_prob * lengths[:, None] / mask_length + torch.rand(batch, 1, generator=generator, device=device)
    spans = spans.long().clamp(min=min_spans).minimum(starts)
    noise = torch.rand(batch, time, generator=generator, device=device)
    noise = noise.masked_fill(torch.arange(time, device=device) >= starts, torch.inf)
    is_start = noise.argsort(-1).argsort(-1) < spans
    return F.max_pool1d(F.pad(is_start.float(), (mask_length - 1, 0)), mask_length, stride=1).bool()


def sample_negative_indices(
    mask: Tensor, num_negatives: int = 100, generator: torch.Generator | None = None
) -> Tensor:
    """For every masked step `num_negatives` **other** masked steps of its record, uniform with replacement.

    Args:
        mask: (batch, time), 1 for a masked step.

    Returns:
        (batch, time, num_negatives) time indices; 0 where the step is not masked.

    Raises:
        ValueError: for a record with fewer than two masked steps.
    """
    mask = mask.bool()
    counts = mask.sum(-1)
    if counts.min() < 2:
        raise ValueError(f"record {int(counts.argmin())} of the batch has fewer than two masked steps")
    masked_first = (~mask).long().argsort(dim=-1, stable=True)  # the masked steps in order, then the others
    draws = torch.rand(*mask.shape, num_negatives, generator=generator, device=mask.device)
    ranks = (draws * (counts - 1)[:, None, None]).long()
    ranks += ranks >= (mask.cumsum(-1) - 1)[..., None]  # leave the step itself out
    indices = masked_first.gather(-1, ranks.flatten(1)).view_as(ranks)
    return indices.masked_fill(~mask[..., None], 0)
