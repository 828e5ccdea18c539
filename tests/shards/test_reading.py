"""The reader decodes samples, and replaces undecodable ones by a rule that depends on the shard only."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from shards.config import LoaderConfig, SourceConfig
from shards.dataset import open_dataset
from shards.reading import SampleFailedError, SampleReader
from shards.sources import open_source
from tests.preprocessing.coded_video import read_number
from tests.shards.coded import FRAMES_A_CLIP, coded_dataset, overwrite_member


def reader(root: Path, **changes: object) -> SampleReader:
    source = open_source(root, SourceConfig())
    config = LoaderConfig(**{"size": 32, "frames": 3, **changes})  # type: ignore[arg-type]
    return SampleReader(source, source.dataset.split("clips", "train"), config, is_training=False)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A dataset of one shard of six clips, of which the mp4 of the first three is destroyed."""
    coded_dataset(tmp_path, (6,))
    for row in range(3):
        overwrite_member(open_dataset(tmp_path), 0, row, b"\0" * 1500)
    return tmp_path


def test_a_sample_has_its_own_frames(coded_root: Path) -> None:
    sample = reader(coded_root).read(0, shard=1, row=2)  # clip 11: the first shard has nine
    assert sample.key.endswith("_c1_000011") and sample.failures == ()
    assert [read_number(frame) for frame in sample.frames] == [FRAMES_A_CLIP * 11 + 2 + i for i in (2, 9, 16)]


def test_an_undecodable_sample_is_replaced_by_the_next_decodable_one(damaged: Path) -> None:
    sample = reader(damaged, max_substitutes=3).read(0, shard=0, row=1)
    assert sample.key.endswith("_000003")
    assert [(failure.key[-7:], failure.reason) for failure in sample.failures] == [
        ("_000001", "not an mp4"),
        ("_000002", "not an mp4"),
    ]


def test_substitutes_wrap_around_and_skip_withdrawn_videos(damaged: Path) -> None:
    assert reader(damaged).read(0, shard=0, row=5).key.endswith("_000005")
    overwrite_member(open_dataset(damaged), 0, 5, b"\0" * 1500)
    assert reader(damaged).read(0, shard=0, row=5).key.endswith("_000003")
    (damaged / "denylist.txt").write_text("video-000\n")  # the first four clips
    assert reader(damaged).read(0, shard=0, row=5).key.endswith("_000004")


def test_too_few_substitutes_raise_with_the_keys(damaged: Path) -> None:
    with pytest.raises(SampleFailedError, match=r"3 consecutive samples cannot be decoded: .*_000000.*_000002"):
        reader(damaged, max_substitutes=2).read(0, shard=0, row=0)


def test_a_partner_is_from_the_same_segment_if_there_is_one(coded_root: Path) -> None:
    one = reader(coded_root, scene_negatives=True)
    assert {one.partner(epoch, shard=0, row=0) for epoch in range(20)} == {(1, True), (2, True), (3, True)}
    other, is_same_segment = one.partner(0, shard=0, row=8)  # the only clip of its video in this shard
    assert other != 8 and not is_same_segment


def test_rows_of_other_keys_are_excluded(coded_root: Path) -> None:
    keys = ["video-000_c1_000001", "video-002_c1_000010"]
    excluded = reader(coded_root).rows_except(keys)
    assert {shard: len(rows) for shard, rows in excluded.items()} == {0: 8, 1: 4, 2: 8, 3: 7}
    assert 1 not in excluded[0]


def test_a_reader_can_be_sent_to_another_process(coded_root: Path) -> None:
    one = reader(coded_root)
    expected = one.read(0, shard=0, row=0)
    assert (pickle.loads(pickle.dumps(one)).read(0, shard=0, row=0).frames == expected.frames).all()
