"""Average precision and discounted cumulative gain of rankings; ties give the expected value over their orders.

The official programs leave tied items in the order of their sort, so a model whose embeddings collapsed can get any
score. The mean over all orders of tied items (McSherry and Najork, "Computing information retrieval performance
measures efficiently in the presence of tied scores", 2008) equals theirs if nothing ties, and does not depend on the
order of items.

Shapes in names: Q queries, M items. Ranks count from 1.
"""

from __future__ import annotations

import numpy as np


class Ranking:
    """The items of each query, highest score first, and which of them tie."""

    def __init__(self, scores_QM: np.ndarray) -> None:
        """Sort the items; a score of −inf ranks last, NaN raises `ValueError`."""
        scores_QM = np.asarray(scores_QM, dtype=np.float64)
        if np.isnan(scores_QM).any():
            raise ValueError(f"query {np.argwhere(np.isnan(scores_QM))[0][0]}: a score is NaN")
        self.order_QM = np.argsort(-scores_QM, axis=1)
        in_order = np.take_along_axis(scores_QM, self.order_QM, axis=1)
        self._ties_QM = in_order[:, 1:] == in_order[:, :-1]  # with the item before
        self._tied = np.flatnonzero(self._ties_QM.any(axis=1))  # queries
        if len(self._tied):
            self._first, self._last = _runs(self._ties_QM[self._tied])

    def arrange(self, values_QM: np.ndarray) -> np.ndarray:
        """Return the items' values (Q, M) in the order of the ranking."""
        ranked_QM: np.ndarray = np.take_along_axis(values_QM, self.order_QM, axis=1)
        return ranked_QM

    def depends_on_order(self, values_QM: np.ndarray) -> np.ndarray:
        """Return for which queries (Q) items with different values tie; values as `arrange` returns them."""
        depends_Q: np.ndarray = (self._ties_QM & (values_QM[:, 1:] != values_QM[:, :-1])).any(axis=1)
        return depends_Q

    def average_precision(self, relevant_QM: np.ndarray, gains_QM: np.ndarray | None = None) -> np.ndarray:
        """Return the average precision (Q): the mean of p(k) over the ranks k of relevant items; NaN without any.

        p(k) is the sum of the gains of the first k items, divided by k. Without gains it is the precision; with gains,
        those of relevant items must be 1. Both arguments as `arrange` returns them.
        """
        gains_QM = relevant_QM.astype(np.float64) if gains_QM is None else gains_QM
        ranks_M = np.arange(1, gains_QM.shape[1] + 1)
        terms_QM = np.where(relevant_QM, np.cumsum(gains_QM, axis=1) / ranks_M, 0.0)
        if len(self._tied):
            terms_QM[self._tied] = self._expected_terms(relevant_QM[self._tied], gains_QM[self._tied], ranks_M)
        with np.errstate(invalid="ignore"):
            ap_Q: np.ndarray = terms_QM.sum(axis=1) / relevant_QM.sum(axis=1)
        return ap_Q

    def discounted_gain(self, gains_QM: np.ndarray, cut_Q: np.ndarray) -> np.ndarray:
        """Return the DCG (Q): Σ gain / log2(rank + 1) over the first `cut_Q` ranks; gains as `arrange` returns them."""
        ranks_M = np.arange(1, gains_QM.shape[1] + 1)
        if len(self._tied):
            means = self._sums(gains_QM[self._tied]) / (self._last - self._first + 1)
            gains_QM = gains_QM.copy()
            gains_QM[self._tied] = means
        dcg_Q: np.ndarray = np.where(ranks_M <= cut_Q[:, None], gains_QM / np.log2(ranks_M + 1), 0.0).sum(axis=1)
        return dcg_Q

    def _expected_terms(self, relevant: np.ndarray, gains: np.ndarray, ranks_M: np.ndarray) -> np.ndarray:
        """Return the expected p(k)·[item k is relevant] of queries with ties.

        In a run of n items, r of them relevant, their gains summing to G, before which gains sum to R: rank j of the
        run is relevant with probability r/n; then the j − 1 before it have on average (G − 1)/(n − 1) each.
        """
        count = self._last - self._first + 1
        hits, total = self._sums(relevant.astype(np.float64)), self._sums(gains)
        before = np.take_along_axis(np.cumsum(gains, axis=1), self._last, axis=1) - total
        others = np.where(count > 1, (total - 1) / np.maximum(count - 1, 1), 0.0)
        inside = ranks_M - 1 - self._first
        terms: np.ndarray = hits / count * (before + 1 + inside * others) / ranks_M
        return terms

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Return, at each rank, the sum of the values of its run of ties."""
        cumulated = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
        ends = np.take_along_axis(cumulated, self._last + 1, axis=1)
        sums: np.ndarray = ends - np.take_along_axis(cumulated, self._first, axis=1)
        return sums


def _runs(ties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns where the run of ties of each column begins and ends."""
    columns = np.arange(ties.shape[1] + 1)
    edge = np.zeros((len(ties), 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, ties], axis=1), 0, columns), axis=1)
    ends = np.where(np.concatenate([ties, edge], axis=1), len(columns), columns)
    return first, np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
