"""Classification scores equal slow, direct implementations of the official definitions, ties and empty classes too."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eval.metrics.classification import class_average_precision, confusion, mean_ap_of_counts, multi_hot, top_k


def direct_ap(shown: list[bool]) -> float:
    """The Charades program's AP of one class, from best to worst video."""
    precisions = [sum(shown[: rank + 1]) / (rank + 1) for rank, is_shown in enumerate(shown) if is_shown]
    return sum(precisions) / len(precisions)


def expected_ap(scores: list[float], shown: list[bool]) -> float:
    """The mean of it over all orders of the videos that the scores allow."""
    found = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            found.append(direct_ap([shown[i] for i in order]))
    return float(np.mean(found))


CASES = st.integers(1, 5).flatmap(
    lambda videos: st.tuples(
        arrays(float, (videos, 3), elements=st.sampled_from([-1.0, 0.0, 0.5])), arrays(bool, (videos, 3))
    )
)


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_the_ap_of_a_class_is_the_mean_over_the_orders_of_the_tied_with_unlabelled_videos_last(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, labels = case
    found = class_average_precision(scores, labels)
    put_last = np.where(labels.any(axis=1)[:, None], scores, -np.inf)
    for number in range(3):
        if labels[:, number].any():
            direct = expected_ap(put_last[:, number].tolist(), labels[:, number].tolist())
            assert found.ap_C[number] == pytest.approx(100 * direct)
        else:
            assert np.isnan(found.ap_C[number]) and number in found.empty
    assert found.scored == 3 - len(found.empty) and found.unlabelled == (~labels.any(axis=1)).sum()
    assert found.map == pytest.approx(np.nanmean(found.ap_C)) if found.scored else np.isnan(found.map)


def test_the_mean_ap_is_the_released_one_where_nothing_ties_and_no_class_is_empty() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((60, 11)), rng.random((60, 11)) < 0.2
    labels[:3] = False
    labels[3] = True
    fixed = np.where(labels.any(axis=1)[:, None], scores, -np.inf)
    direct = [direct_ap(labels[np.argsort(-fixed[:, c]), c].tolist()) for c in range(11)]
    found = class_average_precision(scores, labels)
    assert found.map == pytest.approx(100 * np.mean(direct)) and found.tied == 0
    order = rng.permutation(60)
    assert class_average_precision(scores[order], labels[order]).map == pytest.approx(found.map)


def test_equal_scores_for_all_videos_tie_every_class_that_not_all_show() -> None:
    labels = multi_hot([[0, 2], [0], [0, 1], [0]], 4)
    found = class_average_precision(np.full((4, 4), 0.3), labels)
    assert found.tied == 2 and found.empty == [3] and found.ap_C[0] == 100


@settings(max_examples=60, deadline=None)
@given(CASES, st.integers(0, 1000))
def test_drawing_a_video_twice_scores_as_two_videos_of_the_same_scores(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    scores, labels = case
    scores, labels = scores[:4], labels[:4]
    if not labels.any():
        return
    counts = np.random.default_rng(seed).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=3)
    found = mean_ap_of_counts(scores, labels)(counts)
    for drawn, value in zip(counts, found, strict=True):
        direct = class_average_precision(np.repeat(scores, drawn, axis=0), np.repeat(labels, drawn, axis=0)).map
        assert value == pytest.approx(direct, nan_ok=True)


def test_labels_out_of_range_name_the_video() -> None:
    with pytest.raises(ValueError, match="video 1: class 157 of 157"):
        multi_hot([[0], [3, 157]], 157)
    with pytest.raises(ValueError, match="video 2: class -1 of 5"):
        top_k(np.zeros((3, 5)), [0, 4, -1], 1)


@settings(max_examples=60, deadline=None)
@given(arrays(float, (3, 4), elements=st.sampled_from([0.0, 0.5, 1.0])), st.integers(1, 6))
def test_top_k_is_the_chance_that_the_label_is_among_the_first_k_in_a_random_order_of_ties(
    scores: np.ndarray, k: int
) -> None:
    labels = [0, 3, 1]
    found = top_k(scores, labels, k)
    for row, label in enumerate(labels):
        orders = [
            order
            for order in itertools.permutations(range(4))
            if all(scores[row][a] >= scores[row][b] for a, b in itertools.pairwise(order))
        ]
        assert found[row] == pytest.approx(100 * np.mean([label in order[:k] for order in orders]))


def test_a_confusion_counts_the_label_by_row_and_the_guess_by_column() -> None:
    assert confusion([0, 0, 2, 2, 2], [0, 1, 2, 0, 0], 3).tolist() == [[1, 1, 0], [0, 0, 0], [2, 0, 1]]
    with pytest.raises(ValueError, match="video 0: class 3 of 3"):
        confusion([0], [3], 3)
