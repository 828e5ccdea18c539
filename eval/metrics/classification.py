"""Scores of classification: Charades-Ego's mean AP over classes, top-k accuracy, and confusion counts.

The AP of a class of Charades-Ego is the mean, over the videos that show it, of the precision at their ranks; videos
without any label rank last (the Charades evaluation program, `charades_map` of the release). A class that no video
shows has no AP: the mean is over the other classes (the release's is then NaN). Tied scores give the expected value
over their orders (see `eval.metrics.ranking`; the release's depends on its sort).

Shapes in names: N videos, C classes, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics.ranking import Ranking


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassAP:
    """The average precision of each class."""

    ap_C: np.ndarray  # percent; NaN for a class that no video shows
    tied_C: np.ndarray  # bool: videos that show the class tie with videos that do not
    unlabelled: int  # videos without labels, ranked last

    @property
    def map(self) -> float:
        """The mean over the classes that any video shows; NaN if there are none."""
        shown = self.ap_C[np.isfinite(self.ap_C)]
        return float(shown.mean()) if len(shown) else float("nan")

    @property
    def scored(self) -> int:
        """The number of classes that any video shows."""
        return int(np.isfinite(self.ap_C).sum())

    @property
    def empty(self) -> list[int]:
        """The classes that no video shows."""
        return np.flatnonzero(~np.isfinite(self.ap_C)).tolist()

    @property
    def tied(self) -> int:
        """The number of classes whose AP would depend on the order of tied videos."""
        return int(self.tied_C.sum())


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Return which video shows which class (N, C), bool; raise `ValueError` for a class out of range."""
    is_label_NC = np.zeros((len(labels), classes), dtype=bool)
    for row, shown in enumerate(labels):
        wrong = [label for label in shown if not 0 <= label < classes]
        if wrong:
            raise ValueError(f"video {row}: class {wrong[0]} of {classes}")
        is_label_NC[row, list(shown)] = True
    return is_label_NC


def class_average_precision(scores_NC: np.ndarray, is_label_NC: np.ndarray) -> ClassAP:
    """Return the AP of each class from scores (N, C) of videos and classes, and the labels (N, C), bool."""
    scores_CN, labels_CN, unlabelled = _queries(scores_NC, is_label_NC)
    ranking = Ranking(scores_CN)
    relevant_CN = ranking.arrange(labels_CN)
    return ClassAP(
        ap_C=100 * ranking.average_precision(relevant_CN),
        tied_C=ranking.depends_on_order(relevant_CN),
        unlabelled=unlabelled,
    )


def mean_ap_of_counts(scores_NC: np.ndarray, is_label_NC: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from the number of times each video is drawn (B, N) to the mean AP (percent) of the sample (B).

    It equals `class_average_precision` of the sample with each video repeated as often as it is drawn: copies tie, and
    ties are averaged over their orders in closed form. Its use is in `eval.metrics.bootstrap.bootstrap`.
    """
    scores_CN, labels_CN, _ = _queries(scores_NC, is_label_NC)
    orders, runs = [], []
    for scores in scores_CN[labels_CN.any(axis=1)]:
        order = np.argsort(-scores, kind="stable")
        descending = scores[order]
        orders.append(order)
        runs.append(np.concatenate([[0], np.flatnonzero(descending[1:] != descending[:-1]) + 1]).astype(np.int64))
    shown_CN = labels_CN[labels_CN.any(axis=1)]
    videos = scores_CN.shape[1]
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, videos + 1))])

    def statistic(counts_BN: np.ndarray) -> np.ndarray:
        total_B, classes_B = np.zeros(len(counts_BN)), np.zeros(len(counts_BN), dtype=np.int64)
        for order, starts, shown in zip(orders, runs, shown_CN, strict=True):
            drawn = counts_BN[:, order]
            size, hits = drawn, drawn * shown[order]
            if len(starts) < len(order):
                size, hits = np.add.reduceat(size, starts, axis=1), np.add.reduceat(hits, starts, axis=1)
            after, found = np.cumsum(size, axis=1), np.cumsum(hits, axis=1)
            before, found_before = after - size, found - hits
            # As in Ranking: Σ over a run's ranks of (hits before + 1 + others · (j − 1)) / rank, times hits / size.
            others = np.where(size > 1, (hits - 1) / np.maximum(size - 1, 1), 0.0)
            inverse = harmonic[after] - harmonic[before]
            precise = size * others + (found_before + 1 - others * (before + 1)) * inverse
            terms = np.where(hits > 0, hits / np.maximum(size, 1) * precise, 0.0)
            positives = found[:, -1]
            total_B += np.where(positives > 0, terms.sum(axis=1) / np.maximum(positives, 1), 0.0)
            classes_B += positives > 0
        with np.errstate(invalid="ignore"):
            return 100 * total_B / classes_B

    return statistic


def top_k(scores_NC: np.ndarray, labels_N: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """Return for each video (N) the probability, in percent, that its label is among the k best classes.

    It is 0 or 100 unless classes tie around rank k, in which case they are in random order. Raises `ValueError` for a
    label out of range or a score that is NaN.
    """
    scores_NC, labels_N = np.asarray(scores_NC, dtype=np.float64), _labels(labels_N, np.shape(scores_NC)[1])
    if k < 1:
        raise ValueError(f"k = {k}: at least 1 is needed")
    if len(scores_NC) != len(labels_N) or np.isnan(scores_NC).any():
        raise ValueError(f"scores {scores_NC.shape} of {len(labels_N)} labels, or a score is NaN")
    own = scores_NC[np.arange(len(labels_N)), labels_N][:, None]
    better, equal = (scores_NC > own).sum(axis=1), (scores_NC == own).sum(axis=1)
    return np.asarray(100 * np.clip((k - better) / equal, 0.0, 1.0))


def confusion(
    labels_N: Sequence[int] | np.ndarray, predicted_N: Sequence[int] | np.ndarray, classes: int
) -> np.ndarray:
    """Return how often each class (row) was classified as each class (column): int64 (C, C)."""
    labels_N, predicted_N = _labels(labels_N, classes), _labels(predicted_N, classes)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels_N, predicted_N), 1)
    return counts


def _queries(scores_NC: np.ndarray, is_label_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return scores and labels (C, N) of classes as queries, unlabelled videos at −inf, and their number."""
    scores_NC, is_label_NC = np.asarray(scores_NC, dtype=np.float64), np.asarray(is_label_NC, dtype=bool)
    if scores_NC.shape != is_label_NC.shape or not len(scores_NC):
        raise ValueError(
            f"scores {scores_NC.shape} and labels {is_label_NC.shape}: equal shapes and at least one video are needed"
        )
    is_unlabelled_N = np.logical_not(is_label_NC.any(axis=1))
    scores_NC = np.where(is_unlabelled_N[:, None], -np.inf, scores_NC)
    return np.ascontiguousarray(scores_NC.T), np.ascontiguousarray(is_label_NC.T), int(is_unlabelled_N.sum())


def _labels(labels_N: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    labels = np.asarray(labels_N, dtype=np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise ValueError(f"video {outside[0]}: class {labels[outside[0]]} of {classes}")
    return labels
