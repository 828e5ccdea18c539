"""Multiple-choice questions: a tie counts 1/k, missing options are counted, shuffled windows are never in order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.mcq import score_questions, shuffle_options


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
def test_accuracy_is_that_of_a_random_best_option(questions: list[tuple[list[float], int, str]]) -> None:
    scores, answers, groups = (list(column) for column in zip(*questions, strict=True))
    result = score_questions(np.array(scores), answers, groups)
    for group in set(groups):
        inside = [q for q in questions if q[2] == group]
        whole = [q for q in inside if not any(map(math.isnan, q[0]))]
        found = result.groups[group]
        assert (found.items, found.of) == (len(whole), len(inside))
        expected = [direct_score(options, answer) for options, answer, _ in whole]
        assert found.accuracy == pytest.approx(np.mean(expected)) if whole else math.isnan(found.accuracy)
        assert found.tied == sum(0 < score < 100 for score in expected)
        random = [100 / len(options) for options, _, _ in whole]
        assert found.chance == pytest.approx(np.mean(random)) if whole else math.isnan(found.chance)
    for row, (options, answer, _) in enumerate(questions):
        if any(map(math.isnan, options)):
            assert math.isnan(result.score_Q[row]) and result.predicted_Q[row] == -1
        else:
            assert result.score_Q[row] == pytest.approx(direct_score(options, answer))
            assert options[result.predicted_Q[row]] == max(options)


def test_scores_do_not_depend_on_the_order_of_questions_or_options() -> None:
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
    (group,) = score_questions(np.zeros((10, 5)), [0] * 10, ["inter"] * 10).groups.values()
    assert group.accuracy == group.chance == pytest.approx(20) and group.tied == 10


def test_questions_may_have_fewer_options_than_others() -> None:
    scores = np.array([[0.1, 0.9, 7.0], [0.5, 0.1, math.nan], [0.1, 0.2, 0.3]])
    result = score_questions(scores, [1, 0, 2], ["shuffle"] * 3, counts_Q=[2, 2, 3])
    assert result.score_Q.tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("answers", "counts", "message"),
    [
        ([5], None, "question 0: answer 5, of 3"),
        ([-1], None, "answer -1"),
        ([2], [2], "answer 2"),
        ([0], [4], "options 4"),
    ],
)
def test_an_answer_that_is_not_an_option_is_refused(answers: list[int], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_questions(np.zeros((1, 3)), answers, ["inter"], counts)


def test_no_questions_have_no_groups() -> None:
    assert score_questions(np.zeros((0, 5)), [], []).groups == {}


@pytest.mark.parametrize(
    ("windows", "options", "made"), [(2, 5, 2), (3, 5, 5), (3, 9, 6), (4, 5, 5), (16, 5, 5), (7, 40, 40)]
)
def test_shuffled_options_are_distinct_orders_with_the_identity_at_the_answer(
    windows: int, options: int, made: int
) -> None:
    for name in map(str, range(20)):
        question = shuffle_options(windows, options, 0, name)
        orders = [tuple(order) for order in question.orders_OW.tolist()]
        assert len(orders) == len(set(orders)) == made and question.wanted == options
        assert all(sorted(order) == list(range(windows)) for order in orders)
        assert orders.index(tuple(range(windows))) == question.answer


def test_a_shuffle_depends_on_seed_and_question_and_answers_are_anywhere() -> None:
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
def test_too_few_windows_or_options_are_refused(windows: int, options: int) -> None:
    with pytest.raises(ValueError, match=r"(windows|options) = \d+: "):
        shuffle_options(windows, options, 0, "a")
