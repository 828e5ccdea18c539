"""Bootstrap intervals of scores, and paired tests of two runs on the same items; all seeded, all in numpy.

(Not `statistics.py`: `python eval/x.py` puts this folder first on the path, and torch imports the standard library's.)

Percentile bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. An interval is over
the items of the benchmark, the model being what it is: it says nothing of another training run.

Shapes in names: N items, B resamples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES, LEVEL = 2000, 0.95
_CHUNK = 1 << 22  # random numbers at a time
_CACHED = 1 << 15  # counts at a time, where a statistic goes over them many times: they stay in the processor's cache
_FEW = 64  # distinct values of items that are drawn by their counts
_EXACT_FLIPS = 16  # differing items whose signs are all tried: 65,536 ways

Test = Literal["exact McNemar", "exact sign flips", "sign flips", "none differ"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where the score of another sample of items would lie, at the level asked for."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two runs on the same items: B less A."""

    difference: float  # of the means
    low: float  # of the paired bootstrap
    high: float
    p: float  # two-sided: how often chance alone would make as great a difference
    test: Test  # which test p is of
    items: int
    better: int  # items that B did better
    worse: int


def interval_of_mean(
    values_N: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval | None:
    """Return the interval of the mean of items; None for fewer than 2. The order of the items does not matter."""
    return interval_of_average([values_N], seed=seed, resamples=resamples, level=level)


def interval_of_average(
    parts: Sequence[Sequence[float] | np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Return the interval of the unweighted mean of the parts' means, each part resampled on its own.

    So is the average of video-to-text and text-to-video. None where a part has fewer than 2 items.
    """
    values = [_finite(part) for part in parts]
    if not values or min(map(len, values)) < 2:
        return None
    rng = np.random.default_rng(seed)
    return _percentiles(np.mean([_means(part, resamples, rng) for part in values], axis=0), level)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    items: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Return the interval of a statistic that is no mean of items; None for fewer than 2 items.

    `statistic` takes how often each item was drawn, int64 (B, N), and returns the values (B); resamples in which it
    is NaN (as where no class is left) are not counted, and None is returned where it always is. The interval is moved
    by the bootstrap's own estimate of its bias: an average precision rises when items are drawn twice, as copies of a
    hit stand side by side, and an interval that is not moved may even leave out the score itself.
    """
    if items < 2:
        return None
    rng = np.random.default_rng(seed)
    found = []
    for size in _chunks(resamples, items, _CACHED):
        drawn = rng.integers(0, items, (size, items)) + items * np.arange(size)[:, None]
        found.append(statistic(np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items)))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    point = float(statistic(np.ones((1, items), dtype=np.int64))[0])
    if not len(values) or not math.isfinite(point):
        return None
    return _percentiles(values - (values.mean() - point), level)


def compare_paired(
    a_N: Sequence[float] | np.ndarray,
    b_N: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Paired:
    """Return how run B differs from run A, item by item in the same order; at least one item is needed.

    The interval is a paired bootstrap of the differences. The test is McNemar's exact one where all items are right or
    wrong (each side has one value for right, one for wrong: 0 and 100), otherwise random (for few differing items: all)
    flips of the signs of the differences.
    """
    a_N, b_N = _finite(a_N), _finite(b_N)
    if len(a_N) != len(b_N) or not len(a_N):
        raise ValueError(f"{len(a_N)} and {len(b_N)} items: the same ones are expected, and at least one")
    differences = b_N - a_N
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    rng = np.random.default_rng(seed)
    interval = _percentiles(_means(differences, resamples, rng), level)
    test: Test
    if not better + worse:
        p, test = 1.0, "none differ"
    elif _is_binary(a_N, b_N):
        p, test = mcnemar(better, worse), "exact McNemar"
    elif better + worse <= _EXACT_FLIPS:
        p, test = _all_flips(differences[differences != 0]), "exact sign flips"
    else:
        p, test = _random_flips(differences[differences != 0], max(resamples, 9999), rng), "sign flips"
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
    """Return the exact two-sided p of McNemar's test: 2·P(X ≤ min(better, worse)), X binomial over both with ½."""
    n, least = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    k = np.arange(1, least + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))]) - n * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def _means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the means of resamples of the values."""
    distinct, counts = np.unique(values, return_counts=True)  # sorted: the order of the items does not matter
    if len(distinct) <= _FEW:  # right or wrong: how often each value is drawn says it all
        return rng.multinomial(len(values), counts / len(values), size=resamples) @ distinct / len(values)
    ordered = np.sort(values)
    return np.concatenate(
        [
            ordered[rng.integers(0, len(ordered), (size, len(ordered)))].mean(axis=1)
            for size in _chunks(resamples, len(ordered))
        ]
    )


def _chunks(resamples: int, items: int, numbers: int = _CHUNK) -> list[int]:
    """Return how many resamples to make at a time, so that memory stays small."""
    if resamples < 1:
        raise ValueError(f"resamples = {resamples}: at least 1 is needed")
    size = max(1, numbers // items)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _percentiles(values: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: between 0 and 1 is expected")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))


def _is_binary(a_N: np.ndarray, b_N: np.ndarray) -> bool:
    """Return whether all items of both are one of 0 and one other value."""
    return len(np.setdiff1d(np.union1d(a_N, b_N), [0.0])) <= 1


def _all_flips(differences: np.ndarray) -> float:
    """Return the share of all ways to sign the differences whose sum is at least as far from 0."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(differences))))
    return float(_reaches(signs @ differences, differences).mean())


def _random_flips(differences: np.ndarray, flips: int, rng: np.random.Generator) -> float:
    """Return the same of random ways, the one at hand counted among them, so that p is never 0."""
    ordered = np.sort(differences)
    reached = 0
    for size in _chunks(flips, len(ordered)):
        signs = rng.integers(0, 2, (size, len(ordered)), dtype=np.int8) * 2.0 - 1.0
        reached += int(_reaches(signs @ ordered, ordered).sum())
    return (reached + 1) / (flips + 1)


def _reaches(sums: np.ndarray, differences: np.ndarray) -> np.ndarray:
    slack = 1e-9 * np.abs(differences).sum()  # sums that are equal but for rounding reach it
    return np.abs(sums) >= abs(differences.sum()) - slack


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"item {bad[0]}: {array[bad[0]]} is no score; leave out what was not scored")
    return array
