"""Multi-head attention through transformers' attention interface (eager, sdpa, flash), with a key-value cache."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain scaled dot-product attention of (batch, heads, length, head_dim) tensors; returns its weights too."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(nn.functional.dropout(weights, p=dropout, training=module.training), value)
    return output.transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """Self-attention, or cross-attention when `forward` is given `key_value_states`.

    Args:
        config: the model's config; its `_attn_implementation` picks the kernel.
        embed_dim: width of the queries and of the output.
        num_heads: number of heads; must divide `embed_dim`.
        key_dim: width of the keys' and values' input (default: `embed_dim`).
        layer_idx: this layer's place in the key-value cache.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        embed_dim: int,
        num_heads: int,
        key_dim: int | None = None,
        dropout: float = 0.0,
        is_causal: bool = False,
        layer_idx: int = 0,
    ):
        super().__init__()
        key_dim = key_dim or embed_dim
        self.config = config
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.is_causal = is_causal
        self.layer_idx = layer_idx
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(key_dim, embed_dim)
        self.v_proj = nn.Linear(key_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:2], -1, self.head_dim).transpose(1, 2)  # (batch, heads, length, head_dim)

    def _keys_and_values(
        self, states: torch.Tensor, is_cross: bool, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(cache, EncoderDecoderCache):
            if is_cross and cache.is_updated.get(self.layer_idx):
                layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
                return layer.keys, layer.values
            if is_cross:
                cache.is_updated[self.layer_idx] = True
            cache = cache.cross_attention_cache if is_cross else cache.self_attention_cache
        key, value = self._split_heads(self.k_proj(states)), self._split_heads(self.v_proj(states))
        return (key, value) if cache is None else cache.update(key, value, self.layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`hidden_states` (batch, queries, embed_dim), `key_value_states` (batch, keys, key_dim) ->
        output (batch, queries, embed_dim) and the weights where the kernel gives them."""
        is_cross = key_value_states is not None
        context = hidden_states if key_value_states is None else key_value_states
        query = self._split_heads(self.q_proj(hidden_states))
        key, value = self._keys_and_values(context, is_cross, past_key_values)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=self.is_causal and attention_mask is None and query.shape[2] > 1,
            **kwargs,
        )
        return self.out_proj(output.reshape(*hidden_states.shape[:2], -1)), weights
