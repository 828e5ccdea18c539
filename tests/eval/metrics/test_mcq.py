"""Multiple-choice questions: a tie counts 1/k, what is missing is counted, and shuffled windows are never in order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.mcq import score_questions, shuffle_options
from eval.metrics.similarity import option_similarities


def direct_score(scores: list[float], answer: int) -> float:
    """The chance, in percent, that a best option drawn at random is the right one."""
    best = [option for option, score in enumerate(scores) if score == max(scores)]
    return 100 / len(best) if answer in best else 0.0


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda options: st.lists(
            st.tuples(
                st.lists(st.sampled_from([-1.0, 0.0, 0.5, math.nan]), min_size=options, max_size=options),
                st.integers(0, options - 1),
                st.sampled_from(["inter", "intra", "summary"]),
            ),
            min_size=1,
            max_size=8,
        )
    )
)
def test_accuracy_is_that_of_a_best_option_drawn_at_random(questions: list[tuple[list[float], int, str]]) -> None:
    scores, answers, groups = (list(column) for column in zip(*questions, strict=True))
    marks = score_questions(np.array(scores), answers, groups)
    for group in set(groups):
        inside = [q for q in questions if q[2] == group]
        whole = [q for q in inside if not any(map(math.isnan, q[0]))]
        found = marks.groups[group]
        assert (found.items, found.of) == (len(whole), len(inside))
        expected = [direct_score(options, answer) for options, answer, _ in whole]
        assert found.accuracy == pytest.approx(np.mean(expected)) if whole else math.isnan(found.accuracy)
        assert found.tied == sum(0 < score < 100 for score in expected)
        random = [100 / len(options) for options, _, _ in whole]
        assert found.chance == pytest.approx(np.mean(random)) if whole else math.isnan(found.chance)
    for row, (options, answer, _) in enumerate(questions):
        if any(map(math.isnan, options)):
            assert math.isnan(marks.score_Q[row]) and marks.predicted_Q[row] == -1
        else:
            assert marks.score_Q[row] == pytest.approx(direct_score(options, answer))
            assert options[marks.predicted_Q[row]] == max(options)


def test_marks_do_not_depend_on_the_order_of_questions_or_options() -> None:
    rng = np.random.default_rng(0)
    scores, answers = rng.integers(0, 3, (50, 5)).astype(float), rng.integers(0, 5, 50)
    groups = [("inter", "intra")[i % 2] for i in range(50)]
    first = score_questions(scores, answers, groups)
    questions, options = rng.permutation(50), rng.permutation(5)
    places = np.argsort(options)
    second = score_questions(scores[questions][:, options], places[answers[questions]], [groups[i] for i in questions])
    assert (second.score_Q == first.score_Q[questions]).all()
    assert {name: score.tied for name, score in second.groups.items()} == {
        name: score.tied for name, score in first.groups.items()
    }


def test_equal_scores_for_all_options_are_at_chance() -> None:
    marks = score_questions(np.zeros((10, 5)), [0] * 10, ["inter"] * 10)
    assert marks.groups["inter"].accuracy == pytest.approx(20) and marks.groups["inter"].tied == 10


def test_questions_may_have_fewer_options_than_others() -> None:
    scores = np.array([[0.1, 0.9, 7.0], [0.5, 0.1, math.nan], [0.1, 0.2, 0.3]])
    marks = score_questions(scores, [1, 0, 2], ["shuffle"] * 3, counts_Q=[2, 2, 3])
    assert marks.score_Q.tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("answers", "counts", "message"),
    [
        ([5], None, "question 0: answer 5, of 3"),
        ([-1], None, "answer -1"),
        ([2], [2], "answer 2"),
        ([0], [4], "options 4"),
    ],
)
def test_an_answer_that_is_no_option_is_refused_and_named(answers: list[int], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_questions(np.zeros((1, 3)), answers, ["inter"], counts)


def test_no_questions_at_all_have_no_groups() -> None:
    assert score_questions(np.zeros((0, 5)), [], []).groups == {}


def test_options_are_scored_by_cosine_and_absent_ones_are_not() -> None:
    rng = np.random.default_rng(1)
    queries, clips = rng.standard_normal((1300, 6)), rng.standard_normal((9, 6))
    choices = rng.integers(-1, 9, (1300, 4))
    found = option_similarities(queries, clips, choices)
    for query, option in itertools.product((0, 511, 512, 1299), range(4)):
        clip = choices[query, option]
        direct = queries[query] @ clips[clip] / np.linalg.norm(queries[query]) / np.linalg.norm(clips[clip])
        assert math.isnan(found[query, option]) if clip < 0 else found[query, option] == pytest.approx(direct)
    with pytest.raises(ValueError, match="question 1, option 0: clip 9 of 9"):
        option_similarities(queries[:2], clips, np.array([[0], [9]]))


def test_options_with_equal_embeddings_tie() -> None:
    rng = np.random.default_rng(2)
    clips = np.repeat(rng.standard_normal((1, 255)), 4, axis=0) * np.array([[1.0], [1.0], [3.0], [0.1]])
    found = option_similarities(rng.standard_normal((40, 255)), clips, np.tile(np.arange(4), (40, 1)))
    assert (found == found[:, :1]).all()


@pytest.mark.parametrize(
    ("windows", "options", "made"), [(2, 5, 2), (3, 5, 5), (3, 9, 6), (4, 5, 5), (16, 5, 5), (7, 40, 40)]
)
def test_shuffled_options_are_distinct_orders_with_the_right_one_at_the_answer(
    windows: int, options: int, made: int
) -> None:
    for name in map(str, range(20)):
        question = shuffle_options(windows, options, 0, name)
        orders = [tuple(order) for order in question.orders_OW.tolist()]
        assert len(orders) == len(set(orders)) == made and question.wanted == options
        assert all(sorted(order) == list(range(windows)) for order in orders)
        assert orders.index(tuple(range(windows))) == question.answer


def test_a_shuffle_is_a_function_of_seed_and_question_and_answers_stand_anywhere() -> None:
    def made(seed: int, name: str) -> list[list[int]]:
        return shuffle_options(16, 5, seed, name).orders_OW.tolist()

    assert made(0, "a") == made(0, "a") and made(0, "a") != made(1, "a") and made(0, "a") != made(0, "b")
    places = [shuffle_options(4, 5, 0, str(i)).answer for i in range(500)]
    assert min(places.count(place) for place in range(5)) > 60
    firsts = [shuffle_options(3, 2, 0, str(i)).orders_OW.tolist() for i in range(500)]
    wrong = [tuple(map(tuple, orders)) for orders in firsts]
    counts = [sum(order in orders for orders in wrong) for order in itertools.permutations(range(3))]
    assert counts[0] == 500 and min(counts[1:]) > 60  # every wrong order is as likely


@pytest.mark.parametrize(("windows", "options"), [(1, 5), (0, 5), (4, 1), (9, 10**6)])
def test_what_cannot_be_shuffled_is_refused(windows: int, options: int) -> None:
    with pytest.raises(ValueError, match=r"(windows|options) = \d+: "):
        shuffle_options(windows, options, 0, "a")
