"""Intervals cover the true score about as often as they claim, and depend on the seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.metrics.bootstrap import bootstrap, interval_by_cluster, interval_of_average, interval_of_mean
from eval.metrics.classification import class_average_precision, mean_ap_of_counts


def test_an_interval_is_that_of_resampling_item_by_item() -> None:
    values = np.random.default_rng(0).exponential(20, 300)
    found = interval_of_mean(values, resamples=4000)
    rng = np.random.default_rng(1)
    direct = [np.mean([values[rng.integers(300)] for _ in range(300)]) for _ in range(1500)]
    assert found is not None
    assert [found.low, found.high] == pytest.approx(np.quantile(direct, [0.025, 0.975]), abs=0.4)


@pytest.mark.parametrize("right", [0.5, 0.9])
def test_intervals_of_an_accuracy_cover_the_true_one_about_as_often_as_claimed(right: float) -> None:
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


def test_one_item_has_no_interval_and_equal_items_have_one_of_zero_width() -> None:
    assert interval_of_mean([50.0]) is None and interval_of_mean([]) is None
    assert interval_of_average([[1.0, 2.0], [3.0]]) is None and bootstrap(lambda counts: counts[:, 0], 1) is None
    found = interval_of_mean([100.0] * 7)
    assert found is not None and (found.low, found.high) == (100, 100)


def test_the_interval_of_an_average_weights_its_parts_equally() -> None:
    rng = np.random.default_rng(4)
    long, short = rng.normal(0, 1, 5000), rng.normal(10, 5, 50)
    found = interval_of_average([long, short])
    assert found is not None
    assert found.low < (long.mean() + short.mean()) / 2 < found.high
    spread = math.hypot(long.std() / math.sqrt(5000), short.std() / math.sqrt(50)) / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * spread, rel=0.1)


def test_the_bootstrap_of_a_mean_ap_draws_videos_and_corrects_its_bias() -> None:
    rng = np.random.default_rng(5)
    labels = rng.random((80, 6)) < 0.3
    scores = labels + rng.standard_normal((80, 6))
    found = bootstrap(mean_ap_of_counts(scores, labels), 80, resamples=400)
    rows = [rng.integers(0, 80, 80) for _ in range(400)]
    direct = np.array([class_average_precision(scores[drawn], labels[drawn]).map for drawn in rows])
    moved = direct - direct.mean() + class_average_precision(scores, labels).map
    assert found is not None
    assert [found.low, found.high] == pytest.approx(np.quantile(moved, [0.025, 0.975]), abs=1.5)


def test_intervals_of_a_mean_ap_cover_the_true_one_about_as_often_as_claimed() -> None:
    rng = np.random.default_rng(6)

    def videos() -> tuple[np.ndarray, np.ndarray]:
        labels = rng.random((60, 8)) < 0.15
        return 1.5 * labels + rng.standard_normal((60, 8)), labels

    true = np.mean([class_average_precision(*videos()).map for _ in range(600)])
    found = [bootstrap(mean_ap_of_counts(*videos()), 60, seed=seed, resamples=200) for seed in range(150)]
    covered = np.mean([interval is not None and interval.low <= true <= interval.high for interval in found])
    assert 0.85 < covered < 0.99


def test_values_that_are_not_finite_and_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="item 1: nan is not a score"):
        interval_of_mean([1.0, math.nan, 2.0])
    with pytest.raises(ValueError, match="level = 1"):
        interval_of_mean([1.0, 2.0], level=1)
    with pytest.raises(ValueError, match="resamples = 0"):
        interval_of_mean(np.arange(100.0), resamples=0)


def test_an_interval_over_clusters_draws_whole_clusters() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=30), 20)  # the 20 items of a cluster say the same
    clusters = [f"v{i // 20}" for i in range(600)]
    own = interval_by_cluster(values, clusters, seed=1)
    one_each = interval_of_mean(values[::20], seed=1)
    as_items = interval_of_mean(values, seed=1)
    assert own is not None and one_each is not None and as_items is not None
    assert own.high - own.low == pytest.approx(one_each.high - one_each.low, rel=0.1)
    assert own.high - own.low > 3 * (as_items.high - as_items.low)
    assert interval_by_cluster(values[:20], clusters[:20]) is None


def test_the_median_over_clusters_is_that_of_the_drawn_items() -> None:
    values, clusters = np.array([1.0, 2.0, 10.0, 20.0, 30.0]), ["a", "a", "b", "b", "b"]
    found = interval_by_cluster(values, clusters, statistic="median", seed=0, level=0.999)
    # The clusters drawn are a a, a b (or b a) or b b; their medians are 1.5, 10 and 20.
    assert found is not None and (found.low, found.high) == (1.5, 20.0)


def test_the_order_of_clustered_items_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(size=100), np.array([f"v{i}" for i in rng.integers(0, 9, 100)])
    order = rng.permutation(100)
    for statistic in ("mean", "median"):
        one = interval_by_cluster(values, clusters.tolist(), statistic=statistic)
        other = interval_by_cluster(values[order], clusters[order].tolist(), statistic=statistic)
        assert one is not None and other is not None
        assert (one.low, one.high) == pytest.approx((other.low, other.high))
