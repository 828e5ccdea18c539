"""The vectors of a feature set are the directions of its samples' mean rows, of these shards only, written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.dataset import Dataset
from shards.features import ArraySpec, Extracted, FeatureError, FeatureSet, FeatureWriter, open_features
from shards.search.prepare import vectors_of_features
from shards.stats import FailedItem
from tests.shards.coded import coded_dataset, coded_summary

WIDTH = 4
CLIP = ArraySpec(name="video", level="clip", dtype="float16", shape=(WIDTH,))
WINDOWS = ArraySpec(name="video", level="window", dtype="float32", shape=(WIDTH,))
AGGREGATE = ArraySpec(name="aggregate", level="summary", dtype="float32", shape=(WIDTH,))
TOKENS = ArraySpec(name="text", level="token", dtype="int32", shape=())


def write_features(
    dataset: Dataset, folder: Path, arrays: dict[str, tuple[ArraySpec, ...]], *, fingerprint: str = ""
) -> dict[str, np.ndarray]:
    """Write random features, windows by 1 to 3 rows; the third sample of each shard failed. Return key → expected."""
    random, expected = np.random.default_rng(0), {}
    writer = FeatureWriter(folder, name="f", extractor={"kind": "towers", "checkpoint": "abc"})
    finished = {}
    for set_name, specs in arrays.items():
        split = dataset.split(set_name, "train")
        for shard in split.shards:
            samples = []
            for place, key in enumerate(shard.rows(["key"])["key"].to_pylist()):
                if place == 2:
                    failed = FailedItem(key=key, reason="decode_error", detail="no frame")
                    samples.append(Extracted(key=key, rows={}, failed=failed))
                    continue
                count = 1 if specs[0].level == "clip" else 1 + place % 3
                rows = {
                    spec.name: random.normal(size=(count, WIDTH)).astype(np.float32) for spec in specs if spec.shape
                }
                if AGGREGATE in specs:
                    rows["aggregate"] = rows["aggregate"][:1]
                if TOKENS in specs:
                    rows["text"] = np.arange(place, dtype=np.int32)
                samples.append(Extracted(key=key, rows=rows))
                expected[key] = rows.get("aggregate", rows.get("video", np.zeros((1, WIDTH)))).mean(axis=0)
            writer.write(set_name, "train", shard.name, shard.sha256, specs, samples)
        finished[set_name, "train"] = (fingerprint or split.fingerprint, [shard.name for shard in split.shards])
    writer.finish(arrays, finished)
    return expected


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    summaries = [coded_summary(number, seconds=3, narrations=1) for number in range(4)]
    return coded_dataset(tmp_path_factory.mktemp("prepare") / "shards", (4, 3), summaries=summaries)


@pytest.mark.parametrize("long", [(WINDOWS,), (WINDOWS, AGGREGATE), (AGGREGATE, TOKENS)])
def test_vectors_are_the_directions_of_mean_rows(dataset: Dataset, tmp_path: Path, long: tuple[ArraySpec, ...]) -> None:
    expected = write_features(dataset, tmp_path / "f", {"clips": (CLIP, TOKENS), "summaries": long})
    features = open_features(tmp_path / "f")
    done: list[tuple[int, int]] = []
    sets = vectors_of_features(features, dataset, tmp_path / "cache", progress=lambda *at: done.append(at))
    assert [(one.set_name, one.split) for one in sets] == [("clips", "train"), ("summaries", "train")]
    assert sum(map(len, sets)) == len(expected) and done[-1] == (11, 11)
    for one in sets:
        for shard in dataset.split(one.set_name, one.split).shards:
            for key in shard.rows(["key"])["key"].to_pylist():
                vector = one.vector_of(key, shard.name)
                if key not in expected:
                    assert vector is None
                    continue
                direction = expected[key] / np.linalg.norm(expected[key])
                np.testing.assert_allclose(vector, direction, atol=3e-3)
    again: list[tuple[int, int]] = []
    vectors_of_features(features, dataset, tmp_path / "cache", progress=lambda *at: again.append(at))
    assert not again, "they are written once"


def test_features_of_other_shards_and_of_texts_are_not_searched(dataset: Dataset, tmp_path: Path) -> None:
    def of(folder: str) -> FeatureSet:
        return open_features(tmp_path / folder)

    write_features(dataset, tmp_path / "other", {"clips": (CLIP,)}, fingerprint="0" * 64)
    write_features(dataset, tmp_path / "text", {"clips": (TOKENS,)})
    for folder in ("other", "text"):
        with pytest.raises(FeatureError, match="nothing to search"):
            vectors_of_features(of(folder), dataset, tmp_path / "cache")
