"""Gaussians side by side: how far they are from each other, and the loss that teaches which belong together (PCME++).

See `losses_ecg` for what the loss shares with all others.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput

from .losses_ecg import contrastive_loss, gather_with_gradient, in_full_precision

MAX_KL_DIVERGENCE = 10_000.0


@in_full_precision
def pairwise_distance(
    mean_a: Tensor, logvar_a: Tensor, mean_b: Tensor, logvar_b: Tensor, distance: str = "csd"
) -> Tensor:
    """Distances (N, M) between diagonal Gaussians, in O(N M + (N + M) D) memory.

    - "csd": closed-form sampled distance |mu_a - mu_b|^2 + sum(var_a + var_b), the expected squared distance of two
      samples (PCME++, Chun, ICLR 2024, arXiv 2305.18171); its variance part is a row term plus a column term.
    - "wdist": squared 2-Wasserstein distance |mu_a - mu_b|^2 + |sigma_a - sigma_b|^2.

    Args:
        mean_a, logvar_a: (N, D) means and log-variances.
        mean_b, logvar_b: (M, D).
    """
    if distance == "csd":
        x, y = mean_a, mean_b
        rows, columns = logvar_a.exp().sum(-1), logvar_b.exp().sum(-1)
    elif distance == "wdist":
        x, y = torch.cat([mean_a, (logvar_a / 2).exp()], -1), torch.cat([mean_b, (logvar_b / 2).exp()], -1)
        rows, columns = x.new_zeros(len(x)), y.new_zeros(len(y))
    else:
        raise ValueError(f"distance must be 'csd' or 'wdist', not {distance!r}")
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x . y, about a common centre, where less is lost to cancellation
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    rows, columns = rows + x.square().sum(-1), columns + y.square().sum(-1)
    distances = torch.addmm(columns, x, y.T, alpha=-2) + rows[:, None]
    with torch.no_grad():  # rounding below zero; out of the graph, so that gradients stay exact
        distances.clamp_(min=0)
    return distances


@dataclass
class ProbabilisticMatchingOutput(ModelOutput):
    """Output of [`probabilistic_matching_loss`]; the parts are unweighted.

    Attributes:
        loss: match_loss + smoothness * pseudo_positive_loss + vib_beta * vib_loss + contrast * contrastive_loss.
        match_loss: binary cross-entropy against the match matrix, both directions.
        pseudo_positive_loss: the same against the match matrix with pseudo-positives.
        vib_loss: KL divergence to N(0, I), both sides.
        contrastive_loss: symmetric InfoNCE of the unit means, their cosines times 2 * negative_scale as in the logits
            (but not training it); the matches of a row, or column, share it equally.  None without `contrast`.
        logits: (N, M) -negative_scale * distance + shift.
        num_pseudo_positives: entries of the match matrix that pseudo-positives changed, both directions.
    """

    loss: Tensor | None = None
    match_loss: Tensor | None = None
    pseudo_positive_loss: Tensor | None = None
    vib_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    logits: Tensor | None = None
    num_pseudo_positives: Tensor | None = None


@in_full_precision
def probabilistic_matching_loss(
    mean_a: Tensor,
    logvar_a: Tensor,
    mean_b: Tensor,
    logvar_b: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    matched: Tensor | None = None,
    vib_beta: float = 1e-4,
    smoothness: float = 0.1,
    contrast: float = 0.0,
    distance: str = "csd",
    gather: bool = True,
) -> ProbabilisticMatchingOutput:
    """Matching of Gaussian embeddings (PCME++, Chun, ICLR 2024, arXiv 2305.18171; EchoingECG's loss).

    logits = -logit_scale * d + logit_bias, binary cross-entropy against the match matrix for both directions;
    pseudo-positives: every candidate that scores at least as high as a row's (first) true match is given its label;
    VIB: KL divergence to N(0, I), the mean over all elements, left out for a side where it exceeds 10,000.
    Beyond PCME++, `contrast` above 0 adds InfoNCE of the means; the variances still learn from the matching alone.

    Args:
        mean_a, logvar_a: (N, D) means and log-variances of one side (ECGs).
        mean_b, logvar_b: (M, D) those of the other (texts, echo studies).
        logit_scale, logit_bias: what turns distances into logits.
        matched: (N, M) 1 where a row of a belongs with a row of b, or soft labels; by default row i with row i.  With
            several processes, N and M are the rows of all of them: [`matched_by_id`] makes such a matrix.
        vib_beta: weight of the KL divergence.
        smoothness: weight of the loss on pseudo-positives.
        contrast: weight of InfoNCE; PCME++ has none.
        distance: "csd" or "wdist", see [`pairwise_distance`].
        gather: take the batch of all processes.

    Raises:
        ValueError: when `matched` has another shape, or is missing though N and M differ.
    """
    if gather:
        mean_a, logvar_a = gather_with_gradient(mean_a), gather_with_gradient(logvar_a)
        mean_b, logvar_b = gather_with_gradient(mean_b), gather_with_gradient(logvar_b)
    logits = logit_bias - logit_scale * pairwise_distance(mean_a, logvar_a, mean_b, logvar_b, distance)
    if matched is None and len(mean_a) == len(mean_b):
        matched = torch.eye(len(mean_a), device=logits.device)
    if matched is None or matched.shape != logits.shape:
        given = "missing" if matched is None else f"of shape {tuple(matched.shape)}"
        raise ValueError(f"the match matrix is {given}, the rows of all processes need {tuple(logits.shape)}")
    matched = matched.to(logits)

    match_loss = 2 * F.binary_cross_entropy_with_logits(logits, matched)
    added_ab = _pseudo_positives(logits, matched)
    added_ba = _pseudo_positives(logits.T, matched.T).T
    # the cross-entropy of logit x and target y is softplus(x) - x y: what is added to y is taken off times x
    pseudo_loss = match_loss - (logits * (added_ab + added_ba)).mean()
    vib_loss = _kl_divergence(mean_a, logvar_a) + _kl_divergence(mean_b, logvar_b)
    loss = match_loss + smoothness * pseudo_loss + vib_beta * vib_loss
    contrastive = None
    if contrast:
        # |x - y|^2 = 2 - 2 x . y between unit vectors: what of the logits the means decide
        contrastive = contrastive_loss(mean_a, mean_b, 2 * logit_scale.detach(), gather=False, matched=matched)
        loss = loss + contrast * contrastive
    return ProbabilisticMatchingOutput(
        loss=loss,
        match_loss=match_loss,
        pseudo_positive_loss=pseudo_loss,
        vib_loss=vib_loss,
        contrastive_loss=contrastive,
        logits=logits,
        num_pseudo_positives=added_ab.count_nonzero() + added_ba.count_nonzero(),
    )


def _kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence to N(0, I), the mean over all elements; 0 where it has exploded."""
    divergence = (mean.square() + logvar.exp() - logvar - 1).mean() / 2
    return torch.where(divergence > MAX_KL_DIVERGENCE, 0.0, divergence)


def _pseudo_positives(logits: Tensor, matched: Tensor) -> Tensor:
    """What to add to the targets so that all that scores at least as high as a row's first match takes its label."""
    label, first = matched.max(-1, keepdim=True)
    return (logits >= logits.gather(-1, first)) * (label - matched)
