"""Generalised pooling: against a loop over rows and ranks, and the properties that any such pooling has."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ecgformers.modeling.modeling_echoing_ecg import GeneralizedPooling


@pytest.fixture(scope="module")
def pooling() -> GeneralizedPooling:
    torch.manual_seed(0)
    return GeneralizedPooling(8).double().eval().requires_grad_(False)


def right_mask(lengths: list[int], size: int) -> torch.Tensor:
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def pooled_by_hand(pooling: GeneralizedPooling, features: np.ndarray) -> np.ndarray:
    """One row (time, channels), step by step as the paper has it."""
    codes = np.zeros((len(features), pooling.size))
    for rank in range(len(features)):
        for i in range(0, pooling.size, 2):
            angle = np.float32(rank) / 10000 ** (i / pooling.size)
            codes[rank, i : i + 2] = np.sin(angle), np.cos(angle)
    states = np.zeros((len(features), pooling.size))
    for suffix, ranks in (("l0", range(len(features))), ("l0_reverse", reversed(range(len(features))))):
        cell = nn.GRUCell(pooling.size, pooling.size).double()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data = getattr(pooling.gru, f"{name}_{suffix}").data
        state = torch.zeros(1, pooling.size, dtype=torch.float64)
        for rank in ranks:
            state = cell(torch.from_numpy(codes[rank : rank + 1]), state)
            states[rank] += state[0].detach().numpy() / 2
    scores = np.exp(states @ pooling.score.weight[0].numpy() / 0.1)
    return np.sum(np.sort(features, axis=0)[::-1] * (scores / scores.sum())[:, None], axis=0)


def test_rows_of_different_lengths_equal_a_loop(pooling):
    features, lengths = torch.randn(4, 9, 5, dtype=torch.float64), [9, 1, 4, 7]
    pooled = pooling(features, right_mask(lengths, 9))
    for row, length in enumerate(lengths):
        expected = pooled_by_hand(pooling, features[row, :length].numpy())
        np.testing.assert_allclose(pooled[row], expected, atol=1e-7)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_padding_and_order_have_no_influence(pooling, lengths, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    size = max(lengths) + extra
    features = torch.randn(len(lengths), size, 3, generator=generator, dtype=torch.float64)
    mask = right_mask(lengths, size)
    pooled = pooling(features, mask)
    for row, length in enumerate(lengths):
        valid = features[row : row + 1, :length]
        torch.testing.assert_close(pooled[row : row + 1], pooling(valid))
        assert (pooled[row] <= valid.amax((0, 1)) + 1e-9).all()
        assert (pooled[row] >= valid.amin((0, 1)) - 1e-9).all()
    order = torch.randperm(size, generator=generator)
    torch.testing.assert_close(pooling(features[:, order], mask[:, order]), pooled)
    torch.testing.assert_close(pooling(features.masked_fill(~mask[..., None], torch.nan), mask), pooled)


def test_an_integer_mask_of_ones_changes_nothing(pooling):
    features = torch.randn(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(pooling(features, torch.ones(2, 6, dtype=torch.long)), pooling(features))


def test_gradients():
    torch.manual_seed(0)
    pooling = GeneralizedPooling(4).double()
    features = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    mask = right_mask([5, 2], 5)
    assert torch.autograd.gradcheck(lambda x: pooling(x, mask), features)
    pooling(features, mask).sum().backward()
    assert (features.grad[1, 2:] == 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in pooling.parameters())


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 5e-2), (torch.float16, 5e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize("masked", [True, False])
def test_other_precisions(pooling, dtype, tolerance, masked):
    features = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(0)).double()
    mask = right_mask([40, 13, 2], 40) if masked else None
    expected = pooling(features, mask)
    other = GeneralizedPooling(8).to(dtype)
    other.load_state_dict(pooling.state_dict())
    pooled = other(features.to(dtype), mask)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_row_without_steps_is_refused(pooling):
    with pytest.raises(ValueError, match=r"rows \[1\] of the mask have no valid step"):
        pooling(torch.randn(2, 3, 4, dtype=torch.float64), right_mask([3, 0], 3))
