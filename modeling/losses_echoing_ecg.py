"""PCME++ by itself, with the two numbers that it learns, and more about Gaussians.

EchoingECG's model has these numbers itself (`logit_scale`, `logit_bias`), so that this file does not travel with it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .gaussians_echoing_ecg import ProbabilisticMatchingOutput, pairwise_distance, probabilistic_matching_loss
from .losses_ecg import in_full_precision


class ProbabilisticMatchingLoss(nn.Module):
    """[`probabilistic_matching_loss`] as a module that learns the scale and the shift of its logits.

    Args:
        init_shift, init_negative_scale: first values of the two learned numbers, parameters of shape (1,).
        vib_beta, smoothness, contrast, distance, gather: see there.
    """

    def __init__(
        self,
        init_shift: float = 5.0,
        init_negative_scale: float = 5.0,
        vib_beta: float = 1e-4,
        smoothness: float = 0.1,
        contrast: float = 0.0,
        distance: str = "csd",
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.init_shift = init_shift
        self.init_negative_scale = init_negative_scale
        self.settings: dict[str, Any] = {
            "vib_beta": vib_beta,
            "smoothness": smoothness,
            "contrast": contrast,
            "distance": distance,
            "gather": gather,
        }
        self.shift = nn.Parameter(torch.tensor([float(init_shift)]))
        self.negative_scale = nn.Parameter(torch.tensor([float(init_negative_scale)]))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.shift, self.init_shift)
        nn.init.constant_(self.negative_scale, self.init_negative_scale)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())

    def forward(
        self, mean_a: Tensor, logvar_a: Tensor, mean_b: Tensor, logvar_b: Tensor, matched: Tensor | None = None
    ) -> ProbabilisticMatchingOutput:
        """Arguments as in [`probabilistic_matching_loss`]."""
        gaussians = mean_a, logvar_a, mean_b, logvar_b
        return probabilistic_matching_loss(*gaussians, self.negative_scale, self.shift, matched, **self.settings)


def study_gaussian(frame_embeds: torch.Tensor, eps: float = 1e-8) -> tuple[torch.Tensor, torch.Tensor]:
    """The Gaussian of an echo study: direction of the mean over its frames, log of the variance over its frames.

    Args:
        frame_embeds: (..., frames, dim), as the echo teacher gives them (unit norm).
        eps: added to the variance, which is 0 for a single frame.

    Returns:
        mean (..., dim), unit norm (zero stays zero), and log-variance (..., dim).
    """
    mean = frame_embeds.mean(-2)
    norm = mean.norm(dim=-1, keepdim=True)
    return mean / torch.where(norm > 0, norm, 1.0), (frame_embeds.var(-2, correction=0) + eps).log()


def match_probability(distances: Tensor, negative_scale: Tensor | float, shift: Tensor | float) -> Tensor:
    """Probability sigmoid(-negative_scale * d + shift) that two Gaussians at distance d match.

    This is what the loss trains.  The evaluation code of PCME++ has another score of the same name: the sum over all
    pairs of samples of sigmoid(2 (-negative_scale * |difference| + shift)), which is no probability.
    """
    return torch.sigmoid(shift - negative_scale * distances)


@in_full_precision
def hellinger_similarity(mean_a: Tensor, logvar_a: Tensor, mean_b: Tensor, logvar_b: Tensor) -> Tensor:
    """1 - Hellinger distance of diagonal Gaussians: 1 if they are equal, 0 if they do not overlap.

    Inputs (..., D) broadcast against each other, the result is (...).  The variances of a pair do not separate here:
    all pairs of N and M Gaussians, `hellinger_similarity(mean_a[:, None], ...)`, need memory for N * M * D numbers.
    """
    log_overlap = (logvar_a + logvar_b) / 4  # log of the Bhattacharyya coefficient, per dimension
    log_mean_variance = torch.logaddexp(logvar_a, logvar_b) - torch.log(logvar_a.new_tensor(2.0))
    log_overlap = log_overlap - log_mean_variance / 2 - (mean_a - mean_b).square() / (8 * log_mean_variance.exp())
    return 1 - torch.sqrt(-torch.expm1(log_overlap.sum(-1).clamp(max=0)))


__all__ = [
    "ProbabilisticMatchingLoss",
    "ProbabilisticMatchingOutput",
    "hellinger_similarity",
    "match_probability",
    "pairwise_distance",
    "probabilistic_matching_loss",
    "study_gaussian",
]
