"""A stats file marks a shard as complete, and is checked when it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards.dataset import Dataset
from shards.index import finish_split
from shards.stats import ShardError, ShardStats, is_done
from tests.shards import samples


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_stats_of_another_version_or_shard_are_refused(dataset_copy: Dataset) -> None:
    path = dataset_copy.root / "clips/train/00000_stats.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "schema_version": 9}))
    with pytest.raises(ShardError, match="schema version 9, this code reads 1"):
        ShardStats.read(path)
    path.write_text(json.dumps({**value, "shard": "clips/train/00005.tar"}))
    with pytest.raises(ShardError, match="it was copied from another shard"):
        finish_split(dataset_copy.root, "clips", "train")


def test_a_shard_without_all_of_its_files_is_incomplete(tmp_path: Path) -> None:
    samples.write_shard(tmp_path, [samples.clip(0)])
    complete = tree(tmp_path)
    for name in complete:
        (tmp_path / name).unlink()
        assert not is_done(tmp_path, "clips", "train", 0), name
        if not name.endswith("_stats.json"):
            with pytest.raises(ShardError, match="rerun the build"):
                finish_split(tmp_path, "clips", "train")
        samples.write_shard(tmp_path, [samples.clip(0)])
        assert tree(tmp_path) == complete
