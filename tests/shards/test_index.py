"""A dataset opens to typed sets, splits, shards and rows; what is absent or altered is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from shards import schema
from shards.index import (
    Dataset,
    ShardError,
    ShardStats,
    fingerprint,
    finish_split,
    open_dataset,
    read_denylist,
    read_member,
    shard_number,
    write_dataset,
)
from tests.shards import samples


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return samples.make_dataset(tmp_path)


def test_sets_splits_shards_and_rows(dataset: Dataset) -> None:
    assert open_dataset(str(dataset.root)) == dataset
    assert [(name, split) for name, split, _ in dataset.splits()] == [
        ("clips", "train"), ("clips", "val"), ("summaries", "train"), ("summaries", "val"),
    ]  # fmt: skip
    train = dataset.sets["clips"]["train"]
    assert [(s.path.name, s.samples) for s in train.shards] == [("00000.tar", 4), ("00002.tar", 4)]
    assert list(train.empty) == ["00001.tar"]
    assert (train.samples, train.failed, train.bytes) == (8, 2, sum(s.path.stat().st_size for s in train.shards))
    rows = dataset.rows("clips", "train", ["key", "txt_offset", "txt_size"])
    assert rows.column_names == ["key", "txt_offset", "txt_size", "shard"]
    for row in rows.to_pylist():
        text = read_member(dataset.root / "clips/train" / row["shard"], row["txt_offset"], row["txt_size"])
        assert text.decode() in samples.TEXTS


def test_a_split_whose_samples_all_failed_has_no_rows_and_the_card_leaves_it_out(tmp_path: Path) -> None:
    samples.write_shard(tmp_path, [samples.clip(0)])
    samples.write_shard(tmp_path, [], split="val")
    dataset = write_dataset(tmp_path, config={}, toolchain=samples.TOOLCHAIN, provenance={})
    assert len(dataset.rows("clips", "val")) == 0
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "clips/train/*.tar"}]


def test_the_card_shows_every_field_with_its_meaning_and_the_licence(dataset: Dataset) -> None:
    card = (dataset.root / "README.md").read_text()
    for name, (kind, _) in schema.field_docs("summaries").items():
        assert f"| `{name}` | {kind} |" in card
    assert "Made for tests." in card


def test_the_fingerprint_is_of_names_and_hashes_in_the_order_of_numbers() -> None:
    shards = [("00002.tar", "aa"), ("00010.tar", "bb"), ("123456.tar", "cc")]
    assert fingerprint(shards) == fingerprint(reversed(shards))
    assert fingerprint(shards) != fingerprint([("00002.tar", "bb"), ("00010.tar", "aa"), ("123456.tar", "cc")])
    assert shard_number("123456.tar") == 123456
    for name in ("1.tar", "000001.tar", "../00001.tar", "00001.tar.gz"):
        with pytest.raises(ShardError, match="is not the name of a shard"):
            shard_number(name)


def test_an_altered_or_foreign_manifest_is_refused(dataset: Dataset) -> None:
    path = dataset.root / "dataset.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "config": {}}))
    with pytest.raises(ShardError, match="altered since it was written"):
        open_dataset(dataset.root)
    path.write_text(json.dumps({**value, "schema_version": 2}))
    with pytest.raises(ShardError, match="schema version 2, this code reads 1"):
        open_dataset(dataset.root)
    path.write_text("[")
    with pytest.raises(ShardError, match="not JSON"):
        open_dataset(dataset.root)


def test_unknown_splits_columns_and_members_past_the_end_are_named(dataset: Dataset) -> None:
    with pytest.raises(ShardError, match="there is no clips/test; there are clips/train"):
        dataset.split("clips", "test")
    with pytest.raises(ShardError, match="unknown columns frames"):
        dataset.rows("clips", "train", ["frames"])
    with pytest.raises(ShardError, match="100 bytes at 30700 were expected, 20 are there"):
        read_member(dataset.sets["clips"]["train"].shards[0].path, 30700, 100)


def test_stats_of_another_version_or_shard_are_refused(dataset: Dataset) -> None:
    path = dataset.root / "clips/train/00000_stats.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "schema_version": 9}))
    with pytest.raises(ShardError, match="schema version 9, this code reads 1"):
        ShardStats.read(path)
    path.write_text(json.dumps({**value, "shard": "clips/train/00005.tar"}))
    with pytest.raises(ShardError, match="a file of another shard was copied here"):
        finish_split(dataset.root, "clips", "train")


def test_without_shards_there_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="there is no finished shard"):
        write_dataset(tmp_path, config={}, toolchain={}, provenance={})


def test_companions_are_hashed_with_the_rest(dataset: Dataset) -> None:
    (dataset.root / "clips/val/questions.json").write_text("{}")
    again = write_dataset(
        dataset.root, config={}, toolchain=dataset.toolchain, provenance={}, companions=["clips/val/questions.json"]
    )
    assert "clips/val/questions.json" in again.files


def test_the_denylist(dataset: Dataset) -> None:
    assert dataset.denylist == frozenset()
    (dataset.root / "denylist.txt").write_text("# withdrawn\nvideo-a  # on request\n\n  P01_01.take.2\n")
    assert dataset.denylist == {"video-a", "P01_01.take.2"}
    assert read_denylist(dataset.root / "nowhere.txt") == frozenset()
