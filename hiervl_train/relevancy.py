"""Relevancy of EPIC-KITCHENS-100's videos and sentences, computed from class columns for the requested rows only.

relevancy(i, j) = ([same verb class] + IoU of noun-class sets) / 2, as the dataset's own `create_relevancy_matrix`
(EPIC-KITCHENS-100, "Multi-Instance Retrieval") computes it. There the IoU of two empty sets is 0, so that an item
without nouns has relevancy ½ at most, even to itself.

Shapes in names: N rows, M columns, O noun classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Classes:
    """Verb class and set of noun classes of N items."""

    verbs_N: NDArray[np.int64]
    nouns: tuple[NDArray[np.int64], ...]  # of each item, each class once

    @classmethod
    def of(cls, verb_classes: Sequence[int], noun_classes: Sequence[Sequence[int]]) -> Classes:
        """Return the classes of items; a noun that occurs twice counts once."""
        if len(verb_classes) != len(noun_classes):
            raise ValueError(f"{len(verb_classes)} verb classes, but {len(noun_classes)} lists of noun classes")
        nouns = tuple(np.unique(np.asarray(classes, dtype=np.int64)) for classes in noun_classes)
        return cls(verbs_N=np.asarray(verb_classes, dtype=np.int64), nouns=nouns)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.verbs_N)

    @cached_property
    def noun_classes_O(self) -> NDArray[np.int64]:
        """The noun classes that any item has, ascending."""
        return np.unique(np.concatenate([*self.nouns, np.empty(0, np.int64)]))

    @cached_property
    def has_noun_ON(self) -> NDArray[np.uint8]:
        """Which items have which noun class, in the order of `noun_classes_O`."""
        multi_hot_ON = np.zeros((len(self.noun_classes_O), len(self.nouns)), np.uint8)
        for number, classes in enumerate(self.nouns):
            multi_hot_ON[np.searchsorted(self.noun_classes_O, classes), number] = 1
        return multi_hot_ON

    @cached_property
    def noun_counts_N(self) -> NDArray[np.int64]:
        """The number of noun classes of each item."""
        return np.array([len(classes) for classes in self.nouns], np.int64)


class Relevancy:
    """The relevancy matrix (N, M) of two lists of items, of which only the requested rows are computed.

    Relevancy(videos, sentences).rows_of([3])  # (1, M): how relevant each sentence is to video 3
    """

    def __init__(self, rows: Classes, columns: Classes) -> None:
        self.shape = (len(rows), len(columns))
        self._rows, self._columns = rows, columns

    @property
    def T(self) -> Relevancy:
        """The transposed matrix; nothing is copied."""
        return Relevancy(self._columns, self._rows)

    def rows(self, start: int, stop: int) -> NDArray[np.float64]:
        """Return rows `start … stop − 1`; 1 exactly where verb and nouns are equal and there are nouns."""
        return self.rows_of(range(start, min(stop, self.shape[0])))

    def rows_of(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the rows of these items."""
        relevancy = np.empty((len(indices), self.shape[1]))
        for row, index in enumerate(indices):
            relevancy[row] = self._row(index)
        return relevancy

    def _row(self, index: int) -> NDArray[np.float64]:
        nouns, columns = self._rows.nouns[index], self._columns
        _, known, _ = np.intersect1d(columns.noun_classes_O, nouns, assume_unique=True, return_indices=True)
        shared_M = columns.has_noun_ON[known].sum(axis=0, dtype=np.int64)
        union_M = columns.noun_counts_N + len(nouns) - shared_M
        overlap_M = np.divide(shared_M, union_M, out=np.zeros(len(union_M)), where=union_M > 0)
        same_verb_M = columns.verbs_N == self._rows.verbs_N[index]
        relevancy_M: NDArray[np.float64] = (same_verb_M + overlap_M) / 2
        return relevancy_M
