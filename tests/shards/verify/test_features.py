"""Verify compares feature sets with the shards that they are of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shards.dataset import Dataset, hash_file, hash_json
from shards.features import ArraySpec, Extracted, FeatureWriter
from shards.verify.features import feature_findings, feature_notes
from tests.shards.coded import coded_dataset

ARRAYS = (
    ArraySpec(name="video", level="clip", dtype="float16", shape=(3,)),
    ArraySpec(name="text", level="token", dtype="int32", shape=()),
)


def write_features(dataset: Dataset, *, name: str = "f", finish: bool = True) -> Path:
    """Write a feature set of the clips: row r of shard s is (s, r, 0)."""
    split = dataset.split("clips", "train")
    writer = FeatureWriter(dataset.root / "features" / name, name=name, extractor={"kind": "test"})
    for number, shard in enumerate(split.shards):
        samples = [
            Extracted(
                key=key,
                rows={"video": np.array([[number, row, 0]], np.float32), "text": np.arange(row, dtype=np.int32)},
                tags=([row], [7]),
            )
            for row, key in enumerate(shard.rows(["key"])["key"].to_pylist())
        ]
        writer.write("clips", "train", shard.name, shard.sha256, ARRAYS, samples)
    if finish:
        names = [shard.name for shard in split.shards]
        writer.finish({"clips": ARRAYS}, {("clips", "train"): (split.fingerprint, names)})
    return writer.folder


def problems(root: Path) -> list[str]:
    manifest = json.loads((root / "dataset.json").read_bytes())
    return [f"{finding.file}: {finding.problem}" for finding in feature_findings(root, manifest)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return coded_dataset(tmp_path / "shards", (3, 2))


def test_features_of_these_shards_are_sound(dataset: Dataset) -> None:
    write_features(dataset)
    assert not problems(dataset.root) and not list(feature_notes(dataset.root))


def test_an_unfinished_extraction_is_noted(dataset: Dataset) -> None:
    write_features(dataset, finish=False)
    assert not problems(dataset.root)
    (note,) = feature_notes(dataset.root)
    assert "not finished" in note


def rehash(folder: Path, file: Path) -> None:
    """Restate a file's hash, as somebody who altered it would."""
    value = json.loads((folder / "feature.json").read_bytes())
    value.pop("sha256")
    shards = value["sets"]["clips"]["splits"]["train"]["shards"]
    shards[0]["files"][file.name] = hash_file(file)
    (folder / "feature.json").write_text(json.dumps({**value, "sha256": hash_json(value)}))


def test_what_is_altered_or_does_not_fit_is_found(dataset: Dataset) -> None:
    folder = write_features(dataset)
    array = folder / "clips" / "train" / "00000.npy"
    whole = array.read_bytes()
    array.write_bytes(whole[:-2] + b"\0\x7c")  # infinity
    assert "sha256 is" in problems(dataset.root)[0]
    rehash(folder, array)
    assert "video: some values are not finite" in problems(dataset.root)[0]
    array.write_bytes(whole + b"\0\0")
    rehash(folder, array)
    assert "which is not the size of float16 (3, 3)" in problems(dataset.root)[0]
    array.unlink()
    assert "absent" in problems(dataset.root)[0]
    array.write_bytes(whole)
    rehash(folder, array)
    (folder / "stray").write_text("x")
    assert problems(dataset.root) == ["features/f/stray: unexpected file: feature.json does not list it"]


def test_an_altered_feature_json_and_other_shards_are_found(dataset: Dataset, tmp_path: Path) -> None:
    folder = write_features(dataset)
    other = coded_dataset(tmp_path / "other", (2, 3))
    moved = other.root / "features"
    moved.mkdir()
    folder.rename(moved / "f")
    found = " ".join(problems(other.root))
    assert "are of other shards: fingerprint" in found and "made of a tar with sha256" in found
    path = moved / "f" / "feature.json"
    path.write_text(path.read_text().replace('"samples": 3', '"samples": 4'))
    assert "altered since it was written" in problems(other.root)[0]
