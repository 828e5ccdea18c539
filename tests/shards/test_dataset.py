"""A dataset opens to typed sets, splits, shards and rows; missing and altered parts are named."""

from __future__ import annotations

import json

import pytest

from shards.dataset import Dataset, fingerprint, open_dataset, read_denylist, read_member
from shards.stats import ShardError, shard_number
from tests.shards import samples


def test_sets_splits_shards_and_rows(sample_dataset: Dataset) -> None:
    assert open_dataset(str(sample_dataset.root)) == sample_dataset
    assert [(name, split) for name, split, _ in sample_dataset.splits()] == [
        ("clips", "train"), ("clips", "val"), ("summaries", "train"), ("summaries", "val"),
    ]  # fmt: skip
    train = sample_dataset.sets["clips"]["train"]
    assert [(s.path.name, s.samples) for s in train.shards] == [("00000.tar", 4), ("00002.tar", 4)]
    assert list(train.empty) == ["00001.tar"]
    assert (train.samples, train.failed, train.bytes) == (8, 2, sum(s.path.stat().st_size for s in train.shards))
    rows = sample_dataset.rows("clips", "train", ["key", "txt_offset", "txt_size"])
    assert rows.column_names == ["key", "txt_offset", "txt_size", "shard"]
    for row in rows.to_pylist():
        text = read_member(sample_dataset.root / "clips/train" / row["shard"], row["txt_offset"], row["txt_size"])
        assert text.decode() in samples.TEXTS


def test_the_fingerprint_covers_names_and_hashes_in_the_order_of_the_numbers() -> None:
    shards = [("00002.tar", "aa"), ("00010.tar", "bb"), ("123456.tar", "cc")]
    assert fingerprint(shards) == fingerprint(reversed(shards))
    assert fingerprint(shards) != fingerprint([("00002.tar", "bb"), ("00010.tar", "aa"), ("123456.tar", "cc")])
    assert shard_number("123456.tar") == 123456
    for name in ("1.tar", "000001.tar", "../00001.tar", "00001.tar.gz"):
        with pytest.raises(ShardError, match="is not the name of a shard"):
            shard_number(name)


def test_an_altered_or_foreign_manifest_is_refused(dataset_copy: Dataset) -> None:
    path = dataset_copy.root / "dataset.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "config": {}}))
    with pytest.raises(ShardError, match="altered since it was written"):
        open_dataset(dataset_copy.root)
    path.write_text(json.dumps({**value, "schema_version": 2}))
    with pytest.raises(ShardError, match="schema version 2, this code reads 1"):
        open_dataset(dataset_copy.root)
    path.write_text("[")
    with pytest.raises(ShardError, match="not JSON"):
        open_dataset(dataset_copy.root)


def test_unknown_splits_and_columns_and_members_beyond_the_end_are_refused(sample_dataset: Dataset) -> None:
    with pytest.raises(ShardError, match="no split clips/test; it has clips/train"):
        sample_dataset.split("clips", "test")
    with pytest.raises(ShardError, match="unknown columns frames"):
        sample_dataset.rows("clips", "train", ["frames"])
    with pytest.raises(ShardError, match="expected 100 bytes at 30700, found 20"):
        read_member(sample_dataset.sets["clips"]["train"].shards[0].path, 30700, 100)


def test_the_denylist(dataset_copy: Dataset) -> None:
    assert dataset_copy.denylist == frozenset()
    (dataset_copy.root / "denylist.txt").write_text("# withdrawn\nvideo-a  # on request\n\n  P01_01.take.2\n")
    assert dataset_copy.denylist == {"video-a", "P01_01.take.2"}
    assert read_denylist(dataset_copy.root / "nowhere.txt") == frozenset()
