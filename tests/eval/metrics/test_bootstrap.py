"""Intervals cover what they should, tests find no difference where there is none, and both depend on the seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.bootstrap import bootstrap, compare_paired, interval_of_average, interval_of_mean, mcnemar
from eval.metrics.classification import class_average_precision, mean_ap_of_counts


def test_an_interval_is_that_of_resampling_item_by_item() -> None:
    values = np.random.default_rng(0).exponential(20, 300)
    found = interval_of_mean(values, resamples=4000)
    rng = np.random.default_rng(1)
    direct = [np.mean([values[rng.integers(300)] for _ in range(300)]) for _ in range(1500)]
    assert found is not None
    assert [found.low, found.high] == pytest.approx(np.quantile(direct, [0.025, 0.975]), abs=0.4)


@pytest.mark.parametrize("right", [0.5, 0.9])
def test_intervals_of_right_and_wrong_answers_cover_the_true_accuracy_about_as_often_as_they_say(right: float) -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(400):
        found = interval_of_mean(100.0 * (rng.random(200) < right), seed=seed, resamples=500)
        assert found is not None
        covered += found.low <= 100 * right <= found.high
    assert 0.90 < covered / 400 < 0.985


def test_an_interval_depends_on_the_seed_and_not_on_the_order_of_items() -> None:
    rng = np.random.default_rng(3)
    for values in (rng.random(150), 100.0 * (rng.random(150) < 0.3)):
        first = interval_of_mean(values, seed=5)
        assert first == interval_of_mean(rng.permutation(values), seed=5)
        assert first is not None
        assert first.low < values.mean() < first.high
    assert interval_of_mean(rng.random(150), seed=5) != interval_of_mean(rng.random(150), seed=6)


def test_one_item_has_no_interval_and_equal_items_have_one_of_no_width() -> None:
    assert interval_of_mean([50.0]) is None and interval_of_mean([]) is None
    assert interval_of_average([[1.0, 2.0], [3.0]]) is None and bootstrap(lambda counts: counts[:, 0], 1) is None
    found = interval_of_mean([100.0] * 7)
    assert found is not None and (found.low, found.high) == (100, 100)


def test_the_interval_of_an_average_weighs_its_parts_equally_however_long_they_are() -> None:
    rng = np.random.default_rng(4)
    long, short = rng.normal(0, 1, 5000), rng.normal(10, 5, 50)
    found = interval_of_average([long, short])
    assert found is not None
    assert found.low < (long.mean() + short.mean()) / 2 < found.high
    spread = math.hypot(long.std() / math.sqrt(5000), short.std() / math.sqrt(50)) / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * spread, rel=0.1)


def test_the_bootstrap_of_a_mean_ap_draws_videos_and_takes_off_the_bias_of_copies() -> None:
    rng = np.random.default_rng(5)
    labels = rng.random((80, 6)) < 0.3
    scores = labels + rng.standard_normal((80, 6))
    found = bootstrap(mean_ap_of_counts(scores, labels), 80, resamples=400)
    rows = [rng.integers(0, 80, 80) for _ in range(400)]
    direct = np.array([class_average_precision(scores[drawn], labels[drawn]).map for drawn in rows])
    moved = direct - direct.mean() + class_average_precision(scores, labels).map
    assert found is not None
    assert [found.low, found.high] == pytest.approx(np.quantile(moved, [0.025, 0.975]), abs=1.5)


def test_intervals_of_a_mean_ap_cover_what_other_videos_give_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(6)

    def videos() -> tuple[np.ndarray, np.ndarray]:
        labels = rng.random((60, 8)) < 0.15
        return 1.5 * labels + rng.standard_normal((60, 8)), labels

    true = np.mean([class_average_precision(*videos()).map for _ in range(600)])
    found = [bootstrap(mean_ap_of_counts(*videos()), 60, seed=seed, resamples=200) for seed in range(150)]
    covered = np.mean([interval is not None and interval.low <= true <= interval.high for interval in found])
    assert 0.85 < covered < 0.99


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25))
def test_mcnemar_is_the_exact_two_sided_binomial_test(better: int, worse: int) -> None:
    n = better + worse
    direct = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(better, worse) + 1)) / 2**n)
    assert mcnemar(better, worse) == pytest.approx(direct)


def test_mcnemar_holds_for_many_items() -> None:
    assert mcnemar(20_000, 20_000) == 1
    assert mcnemar(20_000, 19_000) == pytest.approx(4.2e-7, rel=0.1)  # normal approximation: z = 5.06


def test_runs_that_agree_on_every_item_do_not_differ() -> None:
    found = compare_paired([0, 100, 100], [0, 100, 100])
    assert (found.difference, found.low, found.high, found.p, found.test) == (0, 0, 0, 1, "none differ")


def test_the_test_follows_from_the_kind_of_scores() -> None:
    assert compare_paired([0, 100, 0], [100, 100, 100]).test == "exact McNemar"
    few = compare_paired([0, 20, 30, 100], [10, 40, 60, 100])
    assert few.test == "exact sign flips" and few.p == pytest.approx(2 / 8)  # all three up: 2 of 8 ways are as far
    assert (few.better, few.worse, few.items, few.difference) == (3, 0, 4, 15)
    rng = np.random.default_rng(6)
    assert compare_paired(rng.random(50), rng.random(50)).test == "sign flips"


def test_random_flips_agree_with_all_flips() -> None:
    rng = np.random.default_rng(7)
    differences = rng.normal(0.4, 1, 16)
    exact = compare_paired(np.zeros(17), np.append(differences, 0))
    noise = compare_paired(np.zeros(18), np.concatenate([differences, [1e-9, -1e-9]]))
    assert (exact.test, noise.test) == ("exact sign flips", "sign flips")
    assert noise.p == pytest.approx(exact.p, abs=0.02)


@pytest.mark.parametrize("binary", [True, False])
def test_where_nothing_differs_few_p_are_small_and_where_it_does_nearly_all_are(binary: bool) -> None:
    rng = np.random.default_rng(8)

    def run(shift: float) -> np.ndarray:
        return 100.0 * (rng.random(150) < 0.5 + shift) if binary else rng.normal(shift * 10, 1, 150)

    same = [compare_paired(run(0), run(0), resamples=200).p for _ in range(100)]
    other = [compare_paired(run(0), run(0.3), resamples=200).p for _ in range(20)]
    assert np.mean(np.array(same) < 0.05) < 0.12 and np.mean(np.array(other) < 0.05) > 0.9
    assert np.mean(np.array(same) > 0.5) > 0.3


def test_the_paired_interval_holds_the_difference_and_is_narrower_than_two_unpaired_ones() -> None:
    rng = np.random.default_rng(9)
    a = rng.normal(50, 20, 400)
    b = a + rng.normal(1, 2, 400)
    found = compare_paired(a, b)
    assert found.low < found.difference < found.high and found.high - found.low < 1
    swapped = compare_paired(b, a)
    assert swapped.difference == -found.difference and swapped.p == pytest.approx(found.p, abs=1e-3)


def test_what_is_no_score_is_refused() -> None:
    with pytest.raises(ValueError, match="item 1: nan is no score"):
        interval_of_mean([1.0, math.nan, 2.0])
    with pytest.raises(ValueError, match="2 and 1 items"):
        compare_paired([1, 2], [1])
    with pytest.raises(ValueError, match="level = 1"):
        interval_of_mean([1.0, 2.0], level=1)
    with pytest.raises(ValueError, match="resamples = 0"):
        interval_of_mean(np.arange(100.0), resamples=0)
