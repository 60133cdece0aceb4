"""Pooling over time: learned queries that attend (MELP), a class token that attends (MERL), GPO (EchoingECG)."""

import math

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from .attention_ecg import MultiHeadAttention
from .masking_ecg import count_steps, length_mask


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
        attention_mask = create_bidirectional_mask(self.config, query, mask, encoder_hidden_states=context)
        return self.attention(query, context, attention_mask=attention_mask)[0]


class AttentionPool(nn.Module):
    """A class token that attends over a sequence and itself, as CLIP pools a picture (Radford et al. 2021, arXiv
    2103.00020) and MERL an ECG.  As in MERL, the class token gets the first position twice.

    Args:
        config: the model's config; its `_attn_implementation` picks the attention kernel.
        num_positions: time steps at most.
        embed_dim: width of the sequence.
        num_heads: attention heads.
        output_dim: width of the result.
    """

    def __init__(self, config: PreTrainedConfig, num_positions: int, embed_dim: int, num_heads: int, output_dim: int):
        super().__init__()
        self.config = config
        self.class_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + num_positions, embed_dim))
        self.attention = MultiHeadAttention(config, embed_dim, num_heads)
        self.projection = nn.Linear(embed_dim, output_dim)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (batch, time, embed_dim).
            mask: (batch, time), 1 = valid.

        Returns:
            (batch, output_dim), and, where the attention kernel gives them, the weights of the class token's attention
            to itself and to each step (batch, num_heads, 1, 1 + time).

        Raises:
            ValueError: more time steps than positions.
        """
        batch, time, _ = hidden_states.shape
        positions = self.position_embedding[:, : 1 + time]
        if positions.shape[1] <= time:
            raise ValueError(f"{time} time steps are more than the {positions.shape[1] - 1} that have a position")
        first = (self.class_token + positions[:, :1]).expand(batch, -1, -1)
        context = torch.cat([first, hidden_states], dim=1) + positions  # (batch, 1 + time, embed_dim)
        query = context[:, :1]
        mask = None if mask is None else nn.functional.pad(mask, (1, 0), value=1)
        attention_mask = create_bidirectional_mask(self.config, query, mask, encoder_hidden_states=context)
        pooled, weights = self.attention(query, context, attention_mask=attention_mask)
        return self.projection(pooled[:, 0]), weights


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
            scores = scores.masked_fill(~length_mask(lengths, length), -torch.inf)
        return scores.softmax(dim=-1)

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`features` (batch, time, channels), `mask` (batch, time), 1 = valid -> (batch, channels).

        Raises:
            ValueError: a row of `mask` has no valid step.
        """
        length = features.shape[1]
        lengths = None
        if mask is not None:
            lengths = count_steps(mask)
            features = features.masked_fill(~mask.bool()[..., None], -torch.inf)  # padding sorts last
        features = features.sort(dim=1, descending=True).values
        if lengths is not None:
            features = features.masked_fill(~length_mask(lengths, length)[..., None], 0)
        weights = self.rank_weights(length, lengths)[..., None]  # (batch or 1, time, 1)
        return (weights * features).sum(dim=1).to(features.dtype)
