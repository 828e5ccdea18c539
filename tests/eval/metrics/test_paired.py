"""Paired tests find no difference where there is none, and depend on the seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.paired import compare_paired, mcnemar


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25))
def test_mcnemar_is_the_exact_two_sided_binomial_test(better: int, worse: int) -> None:
    n = better + worse
    direct = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(better, worse) + 1)) / 2**n)
    assert mcnemar(better, worse) == pytest.approx(direct)


def test_mcnemar_holds_for_many_items() -> None:
    assert mcnemar(20_000, 20_000) == 1
    assert mcnemar(20_000, 19_000) == pytest.approx(4.2e-7, rel=0.1)  # normal approximation: z = 5.06


def test_runs_that_agree_on_every_item_have_p_1() -> None:
    found = compare_paired([0, 100, 100], [0, 100, 100])
    assert (found.difference, found.low, found.high, found.p, found.test) == (0, 0, 0, 1, "none differ")


def test_the_test_depends_on_the_kind_of_scores() -> None:
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
def test_few_p_values_are_small_without_a_difference_and_nearly_all_with_one(binary: bool) -> None:
    rng = np.random.default_rng(8)

    def run(shift: float) -> np.ndarray:
        return 100.0 * (rng.random(150) < 0.5 + shift) if binary else rng.normal(shift * 10, 1, 150)

    same = [compare_paired(run(0), run(0), resamples=200).p for _ in range(100)]
    other = [compare_paired(run(0), run(0.3), resamples=200).p for _ in range(20)]
    assert np.mean(np.array(same) < 0.05) < 0.12 and np.mean(np.array(other) < 0.05) > 0.9
    assert np.mean(np.array(same) > 0.5) > 0.3


def test_the_paired_interval_contains_the_difference_and_is_narrow() -> None:
    rng = np.random.default_rng(9)
    a = rng.normal(50, 20, 400)
    b = a + rng.normal(1, 2, 400)
    found = compare_paired(a, b)
    assert found.low < found.difference < found.high and found.high - found.low < 1
    swapped = compare_paired(b, a)
    assert swapped.difference == -found.difference and swapped.p == pytest.approx(found.p, abs=1e-3)


def test_different_numbers_of_items_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 items"):
        compare_paired([1, 2], [1])
