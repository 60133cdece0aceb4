"""Pooling over time: learned queries that attend (MELP), and the generalised pooling operator (EchoingECG)."""

import math

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from .attention_ecg import MultiHeadAttention


class AttentionalPooler(nn.Module):
    """Learned queries that attend over a sequence, as in CoCa (Yu et al. 2022, section 3.2).

    Args:
        config: the model's config; its `_attn_implementation` picks the attention kernel.
        num_queries: how many vectors come out.
        embed_dim: their width.
        num_heads: attention heads.
        context_dim: width of the sequence.
    """

    def __init__(self, config: PreTrainedConfig, num_queries: int, embed_dim: int, num_heads: int, context_dim: int):
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.empty(num_queries, embed_dim))
        self.query_norm = nn.LayerNorm(embed_dim)
        self.context_norm = nn.LayerNorm(context_dim)
        self.attention = MultiHeadAttention(config, embed_dim, num_heads, key_dim=context_dim)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, time, context_dim) and its mask (batch, time), 1 = valid -> (batch, num_queries, embed_dim)."""
        query = self.query_norm(self.query).expand(len(hidden_states), -1, -1)
        context = self.context_norm(hidden_states)
        mask = create_bidirectional_mask(self.config, query, mask, encoder_hidden_states=context)
        return self.attention(query, context, attention_mask=mask)[0]


class GeneralizedPooling(nn.Module):
    """Generalised pooling operator, GPO (Chen et al., CVPR 2021, arXiv 2011.04305).

    Every channel is sorted over time and summed with one weight a rank.  The weights are learned but depend on the
    number of valid steps alone: a bidirectional GRU reads sinusoidal codes of the ranks and scores them.  So the
    operator can be anything from maximum to mean pooling, and where the padding lies does not matter.

    Args:
        size: width of the rank codes and of the GRU.
        temperature: of the softmax over ranks.
    """

    def __init__(self, size: int = 32, temperature: float = 0.1):
        super().__init__()
        self.size = size
        self.temperature = temperature
        self.gru = nn.GRU(size, size, batch_first=True, bidirectional=True)
        self.score = nn.Linear(size, 1, bias=False)

    def rank_codes(self, length: int) -> torch.Tensor:
        """(length, size), sines at the even and cosines at the odd places."""
        device = self.score.weight.device
        exponents = torch.arange(0, self.size, 2, device=device, dtype=torch.float32)
        frequencies = torch.exp(exponents * (-math.log(10000.0) / self.size))
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(self.score.weight.dtype)

    def rank_weights(self, length: int, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Weights (batch or 1, length) of the ranks, of which the first `lengths` (batch,) count; each row sums to 1.

        In half precision the weights are float32: a softmax this sharp needs it.
        """
        codes = self.rank_codes(length)[None]  # (1, length, size)
        if lengths is None:
            states, _ = self.gru(codes)
        else:  # packed, the backward direction starts at each row's own last rank
            codes = codes.expand(len(lengths), -1, -1)
            packed = pack_padded_sequence(codes, lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=length)
        forward, backward = states.chunk(2, dim=-1)  # (batch, length, size)
        scores = self.score((forward + backward) / 2).squeeze(-1)  # (batch, length)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.temperature
        if lengths is not None:
            scores = scores.masked_fill(_beyond(lengths, length), -torch.inf)
        return scores.softmax(dim=-1)

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`features` (batch, time, channels), `mask` (batch, time), 1 = valid -> (batch, channels).

        Raises:
            ValueError: a row of `mask` has no valid step.
        """
        length = features.shape[1]
        lengths = None
        if mask is not None:
            mask = mask.bool()
            lengths = mask.sum(dim=1)
            if (lengths == 0).any():
                rows = (lengths == 0).nonzero().flatten().tolist()
                raise ValueError(f"rows {rows} of the mask have no valid step: there is nothing to pool")
            features = features.masked_fill(~mask[..., None], -torch.inf)  # padding sorts last
        features = features.sort(dim=1, descending=True).values
        if lengths is not None:
            features = features.masked_fill(_beyond(lengths, length)[..., None], 0)
        weights = self.rank_weights(length, lengths)[..., None]  # (batch or 1, time, 1)
        return (weights * features).sum(dim=1).to(features.dtype)


def _beyond(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(batch,) -> (batch, size), True from each length on."""
    return torch.arange(size, device=lengths.device) >= lengths[:, None]
