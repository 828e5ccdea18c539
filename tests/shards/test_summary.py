"""A split's statistics follow from its rows; numbers are printed in readable units."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.dataset import Dataset
from shards.index import write_dataset
from shards.summary import human_bytes, human_hours, summarize
from tests.shards import samples


def test_the_statistics_of_a_split(sample_dataset: Dataset) -> None:
    total = summarize(sample_dataset.split("clips", "train"))
    assert (total.shards, total.samples, total.failed, total.videos) == (2, 8, 2, 2)
    assert total.clip_hours == pytest.approx(8 * 0.7 / 3600) and total.stored_hours == pytest.approx(8 * 0.8 / 3600)
    assert total.clip_seconds == pytest.approx((0.7,) * 7)
    assert total.bytes_per_sample == total.bytes / 8


def test_an_empty_split_has_no_quantiles(tmp_path: Path) -> None:
    samples.write_shard(tmp_path, [samples.clip(0)])
    samples.write_shard(tmp_path, [], split="val")
    dataset = write_dataset(tmp_path, config={}, toolchain=samples.TOOLCHAIN, provenance={})
    total = summarize(dataset.split("clips", "val"))
    assert (total.samples, total.clip_hours, total.clip_seconds, total.bytes_per_sample) == (0, 0.0, (), 0.0)


def test_readable_units() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 1_250_000, 2e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "2000.0 TB",
    ]
    assert [human_hours(h) for h in (1234.5, 1, 0.5, 0.01)] == ["1,234.5 h", "1.0 h", "30.0 min", "36.0 s"]
