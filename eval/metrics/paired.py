"""Paired significance tests of two runs on the same items: exact McNemar and sign flips, seeded, in numpy.

Shapes in names: N items.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.metrics.bootstrap import LEVEL, RESAMPLES, chunk_sizes, finite_values, percentiles, resampled_means

_MAX_EXACT_FLIPS = 16  # up to so many differing items, all 2ⁿ signs are tried
_MIN_RANDOM_FLIPS = 9999

Test = Literal["exact McNemar", "exact sign flips", "sign flips", "none differ"]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The difference of two runs, B − A, on the same items."""

    difference: float  # of the means
    low: float  # bootstrap interval of the difference
    high: float
    p: float  # two-sided p-value
    test: Test  # that p is from
    items: int
    better: int  # items with a higher score in B
    worse: int  # items with a lower score in B


def compare_paired(
    a_N: Sequence[float] | np.ndarray,
    b_N: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Paired:
    """Return how run B differs from run A; both give the scores of the same items in the same order.

    The interval is a paired bootstrap of the differences. The test is McNemar's exact one if every item is right or
    wrong (0 or one other value), otherwise a permutation test over the signs of the differences: exact for few
    differing items, random for many. Raises `ValueError` for no items or for different numbers of items.

        compare_paired([0.0, 100.0, 0.0], [100.0, 100.0, 100.0]).p  # 0.5
    """
    a_N, b_N = finite_values(a_N), finite_values(b_N)
    if len(a_N) != len(b_N) or not len(a_N):
        raise ValueError(f"{len(a_N)} and {len(b_N)} items: both runs need the same items, at least one")
    differences = b_N - a_N
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    rng = np.random.default_rng(seed)
    interval = percentiles(resampled_means(differences, resamples, rng), level)
    test: Test
    if not better + worse:
        p, test = 1.0, "none differ"
    elif _is_binary(a_N, b_N):
        p, test = mcnemar(better, worse), "exact McNemar"
    elif better + worse <= _MAX_EXACT_FLIPS:
        p, test = _all_flips(differences[differences != 0]), "exact sign flips"
    else:
        p, test = _random_flips(differences[differences != 0], max(resamples, _MIN_RANDOM_FLIPS), rng), "sign flips"
    return Paired(
        difference=float(differences.mean()),
        low=interval.low,
        high=interval.high,
        p=p,
        test=test,
        items=len(a_N),
        better=better,
        worse=worse,
    )


def mcnemar(better: int, worse: int) -> float:
    """Return the exact two-sided p of McNemar's test: 2·P(X ≤ min(better, worse)), X ~ Binomial(better + worse, ½)."""
    n, least = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    k = np.arange(1, least + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))]) - n * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def _is_binary(a_N: np.ndarray, b_N: np.ndarray) -> bool:
    """Return whether all values are 0 or one other value."""
    return len(np.setdiff1d(np.union1d(a_N, b_N), [0.0])) <= 1


def _all_flips(differences: np.ndarray) -> float:
    """Return the share of all sign combinations whose sum is at least as far from 0 as the observed one."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(differences))))
    return float(_is_as_extreme(signs @ differences, differences).mean())


def _random_flips(differences: np.ndarray, flips: int, rng: np.random.Generator) -> float:
    """Return the same share of random sign combinations and the observed one, so that p is never 0."""
    ordered = np.sort(differences)
    extreme = 0
    for size in chunk_sizes(flips, len(ordered)):
        signs = rng.integers(0, 2, (size, len(ordered)), dtype=np.int8) * 2.0 - 1.0
        extreme += int(_is_as_extreme(signs @ ordered, ordered).sum())
    return (extreme + 1) / (flips + 1)


def _is_as_extreme(sums: np.ndarray, differences: np.ndarray) -> np.ndarray:
    tolerance = 1e-9 * np.abs(differences).sum()  # for rounding
    is_extreme: np.ndarray = np.abs(sums) >= abs(differences.sum()) - tolerance
    return is_extreme
