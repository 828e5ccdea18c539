"""Multi-instance retrieval of EPIC-KITCHENS-100: mAP and nDCG from video to text, from text to video, and their mean.

The definitions are those of the dataset's evaluation program ("Rescaling Egocentric Vision", 2021, section on
multi-instance retrieval; its `calculate_mAP` and `calculate_nDCG`, which come with Joint Part-of-Speech Embeddings and
which EgoVLP, HierVL, LaViLa and AVION use):

- mAP: items of relevancy 1 are relevant; AP = Σ over the ranks k of relevant items of p(k), over their number. The
  program's p(k) is the *sum of graded relevancies* of the first k items over k, not the share of relevant ones.
  `map` is that, as all published figures are (chance is 5.7 / 5.6 %); `strict_map` is the textbook precision (chance
  0.4 / 0.2 %).
- nDCG: gains are relevancies, rank k is divided by log2(k + 1), each query is cut at its number of items of
  relevancy > 0, and divided by the same of the ideal order.

Two deviations: ties give the expected value over their orders (`eval.metrics.ranking`; the program leaves them in the
order of its sort), and a query without a relevant item is not scored (the program divides by 0).

Shapes in names: V videos, S sentences, Q queries, M items to rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.metrics.ranking import Ranking
from hiervl_train.relevancy import Relevancy


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """The scores of each query of one direction, in percent; NaN for a query without a relevant item."""

    ap_Q: np.ndarray
    strict_ap_Q: np.ndarray
    ndcg_Q: np.ndarray
    tied_Q: np.ndarray  # bool: items of different relevancy tie, so that their order would matter
    best_Q: np.ndarray  # int64: the item ranked first (any of tied ones)

    @property
    def map(self) -> float:
        """The official mAP; NaN if no query has a relevant item."""
        return _mean(self.ap_Q)

    @property
    def strict_map(self) -> float:
        """The mAP of textbook precision."""
        return _mean(self.strict_ap_Q)

    @property
    def ndcg(self) -> float:
        """The nDCG; NaN if no query has an item of relevancy > 0."""
        return _mean(self.ndcg_Q)

    @property
    def tied(self) -> int:
        """The number of queries whose score would depend on the order of tied items."""
        return int(self.tied_Q.sum())

    @property
    def of(self) -> int:
        """The number of queries."""
        return len(self.ap_Q)

    @property
    def scored(self) -> int:
        """The number of queries with an item of relevancy 1, for which the mAP is defined."""
        return int(np.isfinite(self.ap_Q).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval:
    """Both directions."""

    video_to_text: Direction
    text_to_video: Direction

    @property
    def map(self) -> float:
        """The mean of both directions' mAP."""
        return (self.video_to_text.map + self.text_to_video.map) / 2

    @property
    def strict_map(self) -> float:
        """The mean of both directions' mAP of textbook precision."""
        return (self.video_to_text.strict_map + self.text_to_video.strict_map) / 2

    @property
    def ndcg(self) -> float:
        """The mean of both directions' nDCG."""
        return (self.video_to_text.ndcg + self.text_to_video.ndcg) / 2


def score_retrieval(sim_VS: np.ndarray, relevancy: Relevancy, *, block: int = 256) -> Retrieval:
    """Return the scores of both directions from similarities (V, S) and the relevancy of the same shape.

    `sim_VS` comes from `eval.metrics.similarity`: `cosine(video, text)`, or `dual_softmax(text, video, rows)`. `block`
    queries are scored at a time, which bounds memory. Raises `ValueError` if the shapes differ or are empty.
    """
    if sim_VS.shape != relevancy.shape:
        raise ValueError(f"similarities {sim_VS.shape}, but relevancy {relevancy.shape} of videos and sentences")
    return Retrieval(
        video_to_text=_score(lambda start, stop: sim_VS[start:stop], relevancy, block),
        text_to_video=_score(lambda start, stop: np.ascontiguousarray(sim_VS[:, start:stop].T), relevancy.T, block),
    )


def _score(scores: Callable[[int, int], np.ndarray], relevancy: Relevancy, block: int) -> Direction:
    queries, items = relevancy.shape
    if not items:
        raise ValueError("no items to rank")
    columns = {name: np.empty(queries) for name in ("ap_Q", "strict_ap_Q", "ndcg_Q")}
    tied_Q, best_Q = np.empty(queries, dtype=bool), np.empty(queries, dtype=np.int64)
    for start in range(0, queries, block):
        rows = slice(start, min(start + block, queries))
        relevancy_QM = relevancy.rows(rows.start, rows.stop)
        ranking = Ranking(scores(rows.start, rows.stop))
        gains_QM = ranking.arrange(relevancy_QM)
        relevant_QM = gains_QM == 1
        cut_Q = (gains_QM > 0).sum(axis=1)
        columns["ap_Q"][rows] = ranking.average_precision(relevant_QM, gains_QM)
        columns["strict_ap_Q"][rows] = ranking.average_precision(relevant_QM)
        columns["ndcg_Q"][rows] = _divide(ranking.discounted_gain(gains_QM, cut_Q), _ideal(relevancy_QM))
        tied_Q[rows], best_Q[rows] = ranking.depends_on_order(gains_QM), ranking.order_QM[:, 0]
    return Direction(tied_Q=tied_Q, best_Q=best_Q, **{name: 100 * values for name, values in columns.items()})


def _ideal(relevancy_QM: np.ndarray) -> np.ndarray:
    """Return the DCG (Q) of the ideal order; the zeros at its end add nothing, so no cut is needed."""
    descending_QM = -np.sort(-relevancy_QM, axis=1)
    dcg_Q: np.ndarray = (descending_QM / np.log2(np.arange(2, descending_QM.shape[1] + 2))).sum(axis=1)
    return dcg_Q


def _divide(a_Q: np.ndarray, b_Q: np.ndarray) -> np.ndarray:
    ratio_Q: np.ndarray = np.divide(a_Q, b_Q, out=np.full(len(a_Q), np.nan), where=b_Q > 0)
    return ratio_Q


def _mean(values_Q: np.ndarray) -> float:
    finite = values_Q[np.isfinite(values_Q)]
    return float(finite.mean()) if len(finite) else float("nan")
