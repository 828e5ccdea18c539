"""Relevancy equals the official definition, computed pair by pair."""

from __future__ import annotations

import ast
import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiervl_train.relevancy import Classes, Relevancy
from tests.paths import shared

SETS = st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=6)


def direct_relevancy(rows: Classes, columns: Classes) -> np.ndarray:
    """The dataset's `create_relevancy_matrix`: IoU of verb and of noun classes, averaged; no nouns at all give 0."""
    found = np.empty((len(rows), len(columns)))
    for i, (verb, nouns) in enumerate(zip(rows.verbs_N, rows.nouns, strict=True)):
        for j, (other_verb, other_nouns) in enumerate(zip(columns.verbs_N, columns.nouns, strict=True)):
            a, b = set(nouns.tolist()), set(other_nouns.tolist())
            overlap = len(a & b) / len(a | b) if a | b else 0.0
            found[i, j] = ((verb == other_verb) + overlap) / 2
    return found


@settings(max_examples=60, deadline=None)
@given(SETS, SETS, st.integers(0, 2))
def test_every_pair_has_the_official_relevancy(first: list[list[int]], second: list[list[int]], verbs: int) -> None:
    rows = Classes.of([i % (verbs + 1) for i in range(len(first))], first)
    columns = Classes.of([i % (verbs + 1) for i in range(len(second))], second)
    relevancy, direct = Relevancy(rows, columns), direct_relevancy(rows, columns)
    assert (relevancy.rows(0, len(rows)) == direct).all()
    assert (relevancy.T.rows(0, len(columns)) == direct.T).all() and relevancy.T.shape == direct.T.shape
    for row in range(len(rows)):
        assert (relevancy.rows(row, row + 1)[0] == direct[row]).all()


def test_items_without_nouns_have_relevancy_one_half_at_most() -> None:
    empty = Classes.of([3, 4], [[], []])
    assert Relevancy(empty, empty).rows(0, 2).tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_repeated_nouns_count_once_and_class_numbers_are_arbitrary() -> None:
    rows, columns = Classes.of([1], [[10**9, 10**9, -7]]), Classes.of([1], [[-7, 10**9]])
    assert Relevancy(rows, columns).rows(0, 5).tolist() == [[1.0]]


def test_columns_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 verb classes, but 1 lists"):
        Classes.of([1, 2], [[1]])


def test_the_published_training_sentences_have_the_official_relevancy() -> None:
    with (shared("epic100") / "EPIC_100_retrieval_train_sentence.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    nouns = [ast.literal_eval(row["noun_classes"]) for row in table]
    classes = Classes.of([int(row["verb_class"]) for row in table], nouns)
    some = np.random.default_rng(0).integers(0, len(table), 5)
    few = Classes.of(classes.verbs_N[some].tolist(), [classes.nouns[i].tolist() for i in some])
    found = Relevancy(classes, classes).rows_of(some)
    assert found.shape == (5, 15989) and (found == direct_relevancy(few, classes)).all()
