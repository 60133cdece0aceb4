"""Which rows of a batch belong together, over all processes."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .losses_ecg import gather_with_gradient


def matched_by_id(
    ids_a: Tensor | Sequence[str],
    ids_b: Tensor | Sequence[str] | None = None,
    gather: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """Match matrix (N, M) bool: which rows of side a belong with which rows of side b.

    Pairs with equal ids match: equal report texts, ECGs of one echo study, recordings of one patient.  Texts are
    compared exactly as given.

    Args:
        ids_a, ids_b: one id per row, both an integer tensor or both texts; `ids_b` defaults to `ids_a`.
        device: where the matrix is to live when the ids are no tensors (with NCCL: this process' GPU).

    Raises:
        TypeError: for an id that is no text, such as None, which would match every other unknown one.
    """
    codes_a = _id_codes(ids_a, device)
    codes_b = codes_a if ids_b is None else _id_codes(ids_b, device)
    if gather:
        codes_a, codes_b = gather_with_gradient(codes_a), gather_with_gradient(codes_b)
    return codes_a[:, None] == codes_b


def _id_codes(ids: Tensor | Sequence[str], device: torch.device | str | None) -> Tensor:
    """64-bit codes, the same in every process, so that no text has to be sent to another."""
    if isinstance(ids, Tensor):
        return ids
    for row, value in enumerate(ids):
        if not isinstance(value, str):
            raise TypeError(f"id {row} is {value!r}, not a text: give a row of unknown identity an id of its own")
    digests = (hashlib.blake2b(value.encode(), digest_size=8).digest() for value in ids)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], device=device)
