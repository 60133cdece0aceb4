"""Stem and stages of a one-dimensional residual network, blind to padding (He et al. 2016, arXiv 1512.03385)."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .masking_ecg import masked_input

_MOMENTUM = 0.1  # of the running statistics


def _zero_padding(hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(batch, channels, time), 0 where `mask` (batch, 1, time) is False: padding must not leak into a convolution."""
    return hidden_states if mask is None else hidden_states.masked_fill(~mask, 0)


class ResidualBlock(GradientCheckpointingLayer):
    """Basic residual block: two convolutions of 3 taps, and a shortcut of 1 tap where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(channels, momentum=_MOMENTUM)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(channels, momentum=_MOMENTUM)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            convolution = nn.Conv1d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm1d(channels, momentum=_MOMENTUM))

    @property
    def gradient_checkpointing(self) -> bool:
        return getattr(self, "_gradient_checkpointing", False)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool):
        """A checkpointed block sees each batch twice: two updates of the running statistics with momentum m' equal one
        with m when (1 - m')^2 = 1 - m."""
        self._gradient_checkpointing = enable
        for norm in self.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.momentum = 1 - math.sqrt(1 - _MOMENTUM) if enable else _MOMENTUM

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, in_channels, time) -> (batch, channels, time / stride); `mask` is that of the result."""
        residual = self.shortcut(hidden_states)
        hidden_states = _zero_padding(F.relu(self.norm1(self.conv1(hidden_states))), mask)
        hidden_states = self.norm2(self.conv2(hidden_states))
        return _zero_padding(F.relu(hidden_states + residual), mask)


class ResidualStage(nn.Module):
    """Residual blocks of one width; the first one strides."""

    def __init__(self, in_channels: int, channels: int, depth: int, stride: int):
        super().__init__()
        self.stride = stride
        self.blocks = nn.ModuleList([ResidualBlock(in_channels, channels, stride)])
        self.blocks.extend(ResidualBlock(channels, channels, 1) for _ in range(depth - 1))

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, in_channels, time) -> (batch, channels, time / stride); `mask` is that of the result."""
        for block in self.blocks:
            hidden_states = block(hidden_states, mask)
        return hidden_states


class ResidualNetworkMixin:
    """Gives a module a stem and stages of its own, so that the names of its weights have no prefix for them."""

    stem_conv: nn.Conv1d
    stem_norm: nn.BatchNorm1d
    stages: nn.ModuleList

    def add_residual_network(
        self,
        num_leads: int,
        stem_size: int,
        hidden_sizes: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
    ):
        """To be called in `__init__`.

        Args:
            stem_size: channels of the first convolution (7 taps), which halves the time resolution.
            hidden_sizes, depths, strides: channels, residual blocks and stride of each stage.
        """
        self.stem_conv = nn.Conv1d(num_leads, stem_size, 7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm1d(stem_size, momentum=_MOMENTUM)
        in_channels = [stem_size, *hidden_sizes[:-1]]
        self.stages = nn.ModuleList(
            ResidualStage(*sizes) for sizes in zip(in_channels, hidden_sizes, depths, strides, strict=True)
        )

    def residual_features(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            input_values: (batch, leads, samples).
            lead_mask: (batch, leads), 0 for a lead to leave out (it becomes zero).
            sample_mask: (batch, samples), 0 for padding on the right, which then has no influence on the result.  (In
                training mode the batch statistics still count the padded steps, as zeros.)

        Returns:
            (batch, hidden_sizes[-1], time), where time is samples / 2 / strides, rounded up, and the mask
            (batch, time) of `sample_mask`.

        Raises:
            ValueError: not (batch, leads, samples) with as many leads as the stem takes.
        """
        input_values = masked_input(input_values, self.stem_conv.in_channels, lead_mask, sample_mask)
        mask = None if sample_mask is None else sample_mask[:, None].bool()  # (batch, 1, samples)
        hidden_states = self.stem_conv(input_values)

        # A step of the result is centred on a step of the input: a stride thins out steps and mask alike.
        mask = None if mask is None else mask[..., ::2]
        hidden_states = _zero_padding(F.relu(self.stem_norm(hidden_states)), mask)  # (batch, stem_size, samples / 2)
        for stage in self.stages:
            mask = None if mask is None else mask[..., :: stage.stride]
            hidden_states = stage(hidden_states, mask)  # (batch, hidden_sizes[index], time)
        return hidden_states, None if mask is None else mask[:, 0]
