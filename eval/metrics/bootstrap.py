"""Bootstrap confidence intervals of scores: seeded, in numpy.

(Not `statistics.py`: `python eval/x.py` puts this folder's parent first on the path, and torch imports the standard
library's `statistics`.)

Percentile bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. An interval is over
the items of the benchmark for a fixed model; it does not cover the variance of training.

Shapes in names: N items, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES, LEVEL = 2000, 0.95
_CHUNK = 1 << 22  # random numbers per chunk, which bounds memory
_CACHED_CHUNK = 1 << 15  # counts per chunk for a statistic that passes over them many times: fits the CPU's cache
_FEW_VALUES = 64  # up to so many distinct values, resamples are drawn as multinomial counts


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval, in the unit of the score."""

    low: float
    high: float


def interval_of_mean(
    values_N: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval | None:
    """Return the interval of the mean of items' values; None for fewer than 2 items.

    The order of the items does not matter. Raises `ValueError` for values that are not finite.

        interval_of_mean([100.0, 0.0, 100.0])  # Interval(low=0.0, high=100.0)
    """
    return interval_of_average([values_N], seed=seed, resamples=resamples, level=level)


def interval_of_average(
    parts: Sequence[Sequence[float] | np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Return the interval of the unweighted mean of the parts' means, such as of video-to-text and text-to-video.

    Each part is resampled independently. None if a part has fewer than 2 items.
    """
    values = [finite_values(part) for part in parts]
    if not values or min(map(len, values)) < 2:
        return None
    rng = np.random.default_rng(seed)
    return percentiles(np.mean([resampled_means(part, resamples, rng) for part in values], axis=0), level)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    items: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Return the interval of a statistic that is not a mean of items; None for fewer than 2 items.

    `statistic` maps the number of times each item is drawn, int64 (B, N), to values (B). Resamples for which it is NaN
    (no class is left, for instance) are ignored; None is returned if all are. The interval is shifted by the
    bootstrap's own estimate of its bias: average precision rises when items are drawn twice, as copies of a hit are
    adjacent, and without the shift an interval might not contain the score itself.
    """
    if items < 2:
        return None
    rng = np.random.default_rng(seed)
    chunks = []
    for size in chunk_sizes(resamples, items, _CACHED_CHUNK):
        drawn = rng.integers(0, items, (size, items)) + items * np.arange(size)[:, None]
        chunks.append(statistic(np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items)))
    values = np.concatenate(chunks)
    values = values[np.isfinite(values)]
    point = float(statistic(np.ones((1, items), dtype=np.int64))[0])
    if not len(values) or not math.isfinite(point):
        return None
    return percentiles(values - (values.mean() - point), level)


def interval_by_cluster(
    values_N: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    statistic: Literal["mean", "median"] = "mean",
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Return the interval of the mean or median of items that come in clusters, such as the captions of a video.

    Whole clusters are drawn, since items of one cluster are alike. None for fewer than 2 clusters; the order of the
    items does not matter.
    """
    values = finite_values(values_N)
    names, code_N = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    order = np.lexsort((code_N, values))
    values, code_N = values[order], code_N[order]
    sums_C = np.bincount(code_N, weights=values, minlength=len(names))
    sizes_C = np.bincount(code_N, minlength=len(names))
    rng = np.random.default_rng(seed)
    found = []
    for size in chunk_sizes(resamples, max(len(values), len(names))):
        draws_BC = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        if statistic == "mean":
            found.append((draws_BC @ sums_C) / (draws_BC @ sizes_C))
        else:
            found.append(_weighted_medians(values, draws_BC[:, code_N]))
    return percentiles(np.concatenate(found), level)


def _weighted_medians(sorted_N: np.ndarray, counts_BN: np.ndarray) -> np.ndarray:
    """Return the medians (B) of sorted values, each taken `counts` times."""
    ends_BN = counts_BN.cumsum(axis=1)
    totals_B = ends_BN[:, -1]
    lower = (ends_BN > ((totals_B - 1) // 2)[:, None]).argmax(axis=1)
    upper = (ends_BN > (totals_B // 2)[:, None]).argmax(axis=1)
    medians_B: np.ndarray = (sorted_N[lower] + sorted_N[upper]) / 2
    return medians_B


def resampled_means(values_N: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the means (B) of resamples of the values; their order does not matter."""
    distinct, counts = np.unique(values_N, return_counts=True)
    if len(distinct) <= _FEW_VALUES:
        draws_BV = rng.multinomial(len(values_N), counts / len(values_N), size=resamples)
        means_B: np.ndarray = draws_BV @ distinct / len(values_N)
        return means_B
    ordered = np.sort(values_N)
    return np.concatenate(
        [
            ordered[rng.integers(0, len(ordered), (size, len(ordered)))].mean(axis=1)
            for size in chunk_sizes(resamples, len(ordered))
        ]
    )


def chunk_sizes(resamples: int, items: int, numbers: int = _CHUNK) -> list[int]:
    """Return the numbers of resamples to draw at a time, so that a chunk has at most `numbers` numbers."""
    if resamples < 1:
        raise ValueError(f"resamples = {resamples}: at least 1 is needed")
    size = max(1, numbers // items)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def percentiles(values_B: np.ndarray, level: float) -> Interval:
    """Return the central interval that holds a share `level` of the values."""
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must be between 0 and 1")
    low, high = np.quantile(values_B, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))


def finite_values(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return values in float64; raise `ValueError` if one of them is not finite."""
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"item {bad[0]}: {array[bad[0]]} is not a score; leave out items that were not scored")
    return array
