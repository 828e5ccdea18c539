"""Relevancy of EPIC-KITCHENS-100's videos and sentences, computed from class columns for the rows that are asked for.

relevancy(video i, sentence j) = ([verb classes equal] + IoU of noun-class sets) / 2, as the dataset's own
`create_relevancy_matrix` (EPIC-KITCHENS-100, "Multi-Instance Retrieval") makes it. There an IoU of two empty sets
is 0, so an item without nouns has relevancy ½ at most, to itself too.

Shapes in names: N rows, M columns, O noun classes that occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Classes:
    """Verb class and set of noun classes of N items."""

    verbs_N: np.ndarray  # int64
    nouns: tuple[np.ndarray, ...]  # of each item, int64, each class once

    @classmethod
    def of(cls, verb_classes: Sequence[int], noun_classes: Sequence[Sequence[int]]) -> Classes:
        """Return the classes of items; a noun that is named twice counts once."""
        if len(verb_classes) != len(noun_classes):
            raise ValueError(f"{len(verb_classes)} verb classes, but {len(noun_classes)} lists of noun classes")
        nouns = tuple(np.unique(np.asarray(classes, dtype=np.int64)) for classes in noun_classes)
        return cls(verbs_N=np.asarray(verb_classes, dtype=np.int64), nouns=nouns)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.verbs_N)


class Relevancy:
    """The relevancy matrix (N, M) of two lists of items, of which no more exists than is asked for."""

    def __init__(self, rows: Classes, columns: Classes) -> None:
        """Index the noun classes of both lists."""
        known = np.unique(np.concatenate([*rows.nouns, *columns.nouns, np.empty(0, np.int64)]))
        self.shape = (len(rows), len(columns))
        self._verbs_N, self._verbs_M = rows.verbs_N, columns.verbs_N
        self._nouns_NO, self._nouns_MO = _multi_hot(rows.nouns, known), _multi_hot(columns.nouns, known)

    @property
    def T(self) -> Relevancy:
        """The same with rows and columns exchanged; nothing is copied."""
        other = object.__new__(Relevancy)
        other.shape = (self.shape[1], self.shape[0])
        other._verbs_N, other._verbs_M = self._verbs_M, self._verbs_N
        other._nouns_NO, other._nouns_MO = self._nouns_MO, self._nouns_NO
        return other

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start … stop − 1` in float64; 1 exactly where verb and nouns are the same and not none."""
        return self.rows_of(np.arange(start, min(stop, self.shape[0])))

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows of these items, in float64."""
        nouns_NO = self._nouns_NO[indices]
        shared = (nouns_NO @ self._nouns_MO.T).astype(np.float64)  # counts below 2²⁴ are exact in float32
        union = nouns_NO.sum(axis=1)[:, None] + self._nouns_MO.sum(axis=1) - shared
        overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        overlap += self._verbs_N[indices][:, None] == self._verbs_M
        overlap /= 2
        return overlap


def _multi_hot(nouns: Sequence[np.ndarray], known: np.ndarray) -> np.ndarray:
    hot = np.zeros((len(nouns), len(known)), dtype=np.float32)
    lengths = [len(classes) for classes in nouns]
    flat = np.concatenate([*nouns, np.empty(0, np.int64)])
    hot[np.repeat(np.arange(len(nouns)), lengths), np.searchsorted(known, flat)] = 1
    return hot
