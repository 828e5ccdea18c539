"""Recall at k and median rank of retrieval, with ties at their expected value.

A query is answered by the best ranked of its relevant items. Where that ties with others, the order is taken as random:
a model whose embeddings collapsed scores chance, whatever the order of the items.

Shapes in names: Q queries, M items to rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

KS = (1, 5, 10)
_BLOCK = 256  # queries at a time, which bounds memory


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstHits:
    """Where the best relevant item of each query stands, all int64 (Q)."""

    before_Q: np.ndarray  # irrelevant items with a higher score
    wrong_Q: np.ndarray  # irrelevant items that tie with it
    right_Q: np.ndarray  # relevant items that tie with it, itself included
    relevant_Q: np.ndarray  # relevant items in all
    items: int  # M

    def recall(self, k: int) -> np.ndarray:
        """Return the probability in percent that a relevant item is among the first `k`, (Q)."""
        free_Q = np.clip(k - self.before_Q, 0, None)  # places that the tied items compete for
        return 100 * (1 - _none_among(free_Q, self.wrong_Q, self.right_Q))

    def ranks(self) -> np.ndarray:
        """Return the expected rank of the best relevant item, from 1, (Q)."""
        ranks_Q: np.ndarray = self.before_Q + (self.wrong_Q + self.right_Q + 1) / (self.right_Q + 1)
        return ranks_Q

    def chance(self, k: int) -> float:
        """Return the mean recall at `k` of random scores, in percent."""
        free_Q = np.full(len(self.relevant_Q), min(k, self.items))
        return float(100 * (1 - _none_among(free_Q, self.items - self.relevant_Q, self.relevant_Q)).mean())

    @property
    def is_tied_Q(self) -> np.ndarray:
        """Whether a query's answer depends on the order of ties."""
        tied_Q: np.ndarray = self.wrong_Q > 0
        return tied_Q


def first_hits(
    scores: Callable[[int, int], np.ndarray], relevant: Callable[[int, int], np.ndarray], *, queries: int
) -> FirstHits:
    """Return where each query's best relevant item stands.

    `scores(start, stop)` and `relevant(start, stop)` return those rows of (Q, M) matrices, which are never held whole.
    Raises `ValueError` for a query without a relevant item.
    """
    parts = list(_blocks(scores, relevant, queries))
    before, wrong, right, total = (np.concatenate(column) for column in zip(*(part[:4] for part in parts), strict=True))
    return FirstHits(before_Q=before, wrong_Q=wrong, right_Q=right, relevant_Q=total, items=parts[0][4])


def _blocks(
    scores: Callable[[int, int], np.ndarray], relevant: Callable[[int, int], np.ndarray], queries: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]]:
    if not queries:
        raise ValueError("no queries")
    for start in range(0, queries, _BLOCK):
        stop = min(start + _BLOCK, queries)
        sim_QM, is_right_QM = scores(start, stop), relevant(start, stop)
        if not is_right_QM.any(axis=1).all():
            raise ValueError(f"query {start + int(np.argmin(is_right_QM.any(axis=1)))} has no relevant item")
        best_Q1 = np.where(is_right_QM, sim_QM, -np.inf).max(axis=1, keepdims=True)
        is_tied_QM = sim_QM == best_Q1
        yield (
            ((sim_QM > best_Q1) & ~is_right_QM).sum(axis=1),
            (is_tied_QM & ~is_right_QM).sum(axis=1),
            (is_tied_QM & is_right_QM).sum(axis=1),
            is_right_QM.sum(axis=1),
            sim_QM.shape[1],
        )


def _none_among(free_Q: np.ndarray, wrong_Q: np.ndarray, right_Q: np.ndarray) -> np.ndarray:
    """Return the probability that the first `free` of `wrong + right` items in random order are all wrong, (Q)."""
    none_Q = np.ones(len(free_Q))
    for place in range(int(free_Q.max(initial=0))):
        is_free_Q = place < free_Q
        left_Q = wrong_Q + right_Q - place
        factor_Q = np.where(left_Q > 0, np.maximum(wrong_Q - place, 0) / np.maximum(left_Q, 1), 0.0)
        none_Q = np.where(is_free_Q, none_Q * factor_Q, none_Q)
    return none_Q
