"""Index files, card and dataset.json follow from the complete shards; conflicting shards are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards.dataset import Dataset
from shards.index import require_toolchain, write_dataset
from shards.stats import ShardError
from tests.shards import samples


def test_appending_a_shard_updates_the_indexes_and_keeps_the_tars(dataset_copy: Dataset) -> None:
    before = dataset_copy
    root = before.root
    tars = {path: path.read_bytes() for path in root.rglob("*.tar")}
    samples.write_shard(root, [samples.clip(0, video="added")], number=7)
    arguments = {"config": before.config, "toolchain": before.toolchain, "provenance": before.provenance}
    after = write_dataset(root, **arguments)
    assert {path: path.read_bytes() for path in tars} == tars
    train = after.sets["clips"]["train"]
    assert [shard.name for shard in train.shards] == ["00000.tar", "00002.tar", "00007.tar"]
    assert list(json.loads((root / "clips/train/sizes.json").read_text())) == [s.name for s in train.shards]
    assert train.fingerprint != before.sets["clips"]["train"].fingerprint
    assert after.sets["summaries"] == before.sets["summaries"], "growing one set must not change the order of another"


def test_shards_of_different_toolchains_are_refused_naming_both_versions(dataset_copy: Dataset) -> None:
    root = dataset_copy.root
    newer = {**samples.TOOLCHAIN, "x264": "166"}
    with pytest.raises(ShardError, match=r"x264 165; now: x264 166"):
        require_toolchain(root, newer)
    samples.write_shard(root, [samples.clip(0, video="added")], number=7, toolchain=newer)
    with pytest.raises(ShardError, match=r"clips/train/00007.tar was built with .*: x264 166; now: x264 165"):
        write_dataset(root, config={}, toolchain=samples.TOOLCHAIN, provenance={})


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    samples.write_shard(tmp_path, [samples.clip(0)])
    samples.write_shard(tmp_path, [samples.clip(0)], split="val")
    with pytest.raises(ShardError, match=samples.clip(0).key):
        write_dataset(tmp_path, config={}, toolchain=samples.TOOLCHAIN, provenance={})


def test_without_shards_there_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no complete shard"):
        write_dataset(tmp_path, config={}, toolchain={}, provenance={})


def test_companions_are_hashed_with_the_rest(dataset_copy: Dataset) -> None:
    (dataset_copy.root / "clips/val/questions.json").write_text("{}")
    again = write_dataset(
        dataset_copy.root,
        config={},
        toolchain=dataset_copy.toolchain,
        provenance={},
        companions=["clips/val/questions.json"],
    )
    assert "clips/val/questions.json" in again.files
