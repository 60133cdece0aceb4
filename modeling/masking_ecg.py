"""What the ECG towers do with `lead_mask` and `sample_mask`."""

import torch


def masked_input(
    input_values: torch.Tensor,
    num_leads: int,
    lead_mask: torch.Tensor | None = None,
    sample_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The input with zeros for whatever the masks leave out.

    Args:
        input_values: (batch, leads, samples).
        num_leads: what the model takes.
        lead_mask: (batch, leads), 0 for a lead to leave out.
        sample_mask: (batch, samples), 0 for padding.

    Raises:
        ValueError: the input is not (batch, num_leads, samples).
    """
    shape = tuple(input_values.shape)
    if len(shape) != 3 or shape[1] != num_leads:
        raise ValueError(f"input_values must be (batch, {num_leads} leads, samples), not {shape}")
    if lead_mask is not None:
        input_values = input_values.masked_fill(lead_mask[..., None] == 0, 0)
    if sample_mask is not None:
        input_values = input_values.masked_fill(sample_mask[:, None] == 0, 0)
    return input_values


def length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(batch,) -> (batch, size), True below each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mean_over_time(hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the valid steps: (batch, time, width) and its mask (batch, time), 1 = valid -> (batch, width).

    Raises:
        ValueError: a row of the mask has no valid step.
    """
    if mask is None:
        return hidden_states.mean(1)
    steps = count_steps(mask)[:, None].to(hidden_states.dtype)
    return (hidden_states * mask[..., None].to(hidden_states.dtype)).sum(1) / steps


def count_steps(mask: torch.Tensor) -> torch.Tensor:
    """Valid steps of each row: (batch, time) -> (batch,).

    Raises:
        ValueError: a row has none, such as a recording shorter than one step of the model.
    """
    steps = mask.bool().sum(-1)
    if (steps == 0).any():
        rows = (steps == 0).nonzero().flatten().tolist()
        raise ValueError(f"rows {rows} of the mask have no valid step: there is nothing to pool")
    return steps
