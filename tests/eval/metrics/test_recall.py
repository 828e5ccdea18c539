"""Recall and ranks, compared with sorting the items in every order of ties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.recall import FirstHits, first_hits


def hits(sim: np.ndarray, relevant: np.ndarray) -> FirstHits:
    return first_hits(lambda a, b: sim[a:b], lambda a, b: relevant[a:b], queries=len(sim))


def by_all_orders(scores: list[int], relevant: list[bool]) -> list[int]:
    """Return the rank of the first relevant item in each order of the items that ranks higher scores first."""
    ranks = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            ranks.append(next(rank for rank, item in enumerate(order, 1) if relevant[item]))
    return ranks


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(lambda i: any(r for _, r in i))
)
def test_ties_count_as_the_mean_over_their_orders(items: list[tuple[int, bool]]) -> None:
    scores, relevant = map(list, zip(*items, strict=True))
    found = hits(np.array([scores], float), np.array([relevant]))
    ranks = by_all_orders(scores, relevant)
    assert found.ranks()[0] == pytest.approx(np.mean(ranks))
    for k in (1, 2, 5, 10):
        assert found.recall(k)[0] == pytest.approx(100 * np.mean([rank <= k for rank in ranks]))
    assert found.chance(2) == pytest.approx(
        100 * np.mean([rank <= 2 for rank in by_all_orders([0] * len(scores), relevant)])
    )


def test_many_queries_are_scored_like_each_one_alone() -> None:
    rng = np.random.default_rng(0)
    sim, relevant = rng.normal(size=(600, 40)), rng.random((600, 40)) < 0.05
    relevant[:, 0] |= ~relevant.any(axis=1)
    expected = [1 + int(((s > s[r].max()) & ~r).sum()) for s, r in zip(sim, relevant, strict=True)]
    assert hits(sim, relevant).ranks().tolist() == expected


def test_collapsed_embeddings_score_chance() -> None:
    found = hits(np.zeros((50, 50)), np.eye(50, dtype=bool))
    assert [found.recall(k).mean() for k in (1, 5, 10)] == pytest.approx([2, 10, 20])
    assert found.recall(5).mean() == pytest.approx(found.chance(5)) and found.is_tied_Q.all()


def test_a_query_without_a_right_answer_is_an_error() -> None:
    with pytest.raises(ValueError, match="query 1 has no relevant item"):
        hits(np.zeros((2, 3)), np.array([[True, False, False], [False, False, False]]))
