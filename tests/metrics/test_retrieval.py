"""Recall@k with several matches a query, ties and queries without a match."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgformers.metrics.retrieval import equal_texts, match_ranks, recall_at_k


def test_rank_of_the_best_match():
    similarity = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.7], [0.3, 0.2, 0.1]])
    matches = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0]])
    ranks = match_ranks(similarity, matches)
    np.testing.assert_array_equal(ranks, [1, 2, np.nan])
    assert recall_at_k(ranks, 1) == 0.5  # of the two queries that have a match
    assert recall_at_k(ranks, 2) == 1
    np.testing.assert_array_equal(recall_at_k(ranks, 1, np.array([[1, 0, 5], [0, 2, 1]])), [1, 0])


def test_constant_similarities_find_nothing():
    ranks = match_ranks(np.ones((4, 4)), np.eye(4))
    assert recall_at_k(ranks, 3) == 0
    assert recall_at_k(ranks, 4) == 1


@given(
    st.integers(1, 6).flatmap(lambda n: st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=n, max_size=n))
)
def test_rank_against_sorting(row):
    similarity, matches = (np.array(values) for values in zip(*row, strict=True))
    order = sorted(range(len(row)), key=lambda i: (-similarity[i], matches[i]))  # among equals the match comes last
    expected = next((place for place, i in enumerate(order, 1) if matches[i]), np.nan)
    if not np.isnan(expected):  # a match that ties with another match does not push it back
        expected -= sum(matches[i] for i in order[: int(expected) - 1])
    np.testing.assert_array_equal(match_ranks(similarity[None], matches[None]), [expected])


def test_blocks_of_queries(monkeypatch):
    rng = np.random.default_rng(0)
    similarity, matches = rng.normal(size=(10, 8)), rng.random((10, 8)) < 0.3
    expected = match_ranks(similarity, matches)
    monkeypatch.setattr("ecgformers.metrics.retrieval.QUERIES_A_BLOCK", 3)
    np.testing.assert_array_equal(match_ranks(similarity, matches), expected)


def test_equal_reports_are_matches():
    matches = equal_texts(["Sinus rhythm.", "AF"], ["af", "sinus  rhythm.", "sinus rhythm", "AF "])
    np.testing.assert_array_equal(matches, [[0, 1, 0, 0], [1, 0, 0, 1]])


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        match_ranks(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="query 0, candidate 1: the similarity is nan"):
        match_ranks([[0.0, np.nan]], [[1, 0]])
