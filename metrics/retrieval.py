"""How well similarities find what belongs together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

QUERIES_A_BLOCK = 512


def match_ranks(similarity: ArrayLike, matches: ArrayLike) -> np.ndarray:
    """The rank of every query's best match: 1 + the number of candidates that are no match and at least as similar.

    A tie counts against the match, so that constant similarities find nothing.

    Args:
        similarity: (queries, candidates).
        matches: (queries, candidates), True where candidate and query belong together; a query may have several.

    Returns:
        (queries,), NaN for a query without a match.

    Raises:
        ValueError: shapes that differ, or similarities that are not finite.
    """
    similarity, matches = np.asarray(similarity), np.asarray(matches, dtype=bool)
    if similarity.shape != matches.shape or similarity.ndim != 2:
        raise ValueError(
            f"similarity and matches must both be (queries, candidates): {similarity.shape} and {matches.shape}"
        )
    if not np.isfinite(similarity).all():
        query, candidate = np.argwhere(~np.isfinite(similarity))[0]
        raise ValueError(f"query {query}, candidate {candidate}: the similarity is {similarity[query, candidate]}")
    ranks = np.full(len(similarity), np.nan)
    for start in range(0, len(similarity), QUERIES_A_BLOCK):
        block = slice(start, start + QUERIES_A_BLOCK)
        best = np.where(matches[block], similarity[block], -np.inf).max(1, initial=-np.inf, keepdims=True)
        rank = 1 + (~matches[block] & (similarity[block] >= best)).sum(1)
        ranks[block] = np.where(matches[block].any(1), rank, np.nan)
    return ranks


def recall_at_k(ranks: ArrayLike, k: int, weights: ArrayLike | None = None) -> np.ndarray:
    """Share of the queries whose best match is among the first `k`; queries without a match are left out.

    Args:
        ranks: (queries,), from `match_ranks`.
        weights: (queries,) or (resamples, queries).

    Returns:
        () or (resamples,), NaN where no query has a match.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    weights = np.ones(len(ranks)) if weights is None else np.asarray(weights)
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ (ranks <= k)) / (weights @ ~np.isnan(ranks)))


def equal_texts(queries: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
    """(queries, candidates), True where the texts are the same but for case and spacing: equal reports are matches."""
    first, second = (np.array([" ".join(text.lower().split()) for text in texts]) for texts in (queries, candidates))
    _, index = np.unique(np.concatenate([first, second]), return_inverse=True)
    return index[: len(first), None] == index[None, len(first) :]
