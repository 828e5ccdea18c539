"""Source videos are found by name, and a lost mount is distinguished from a lost file."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.errors import TransientError, UsageError
from preprocessing.video.sources import ProbeTask, find_videos, probe_video, subset


def test_videos_are_found_with_any_extension_and_dots_in_ids(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MKV", "odd.id.webm", "plain", ".hidden.mp4"):
        (tmp_path / name).touch()
    assert {uid: path.name for uid, path in find_videos(tmp_path).items()} == {
        "a": "a.mp4",
        "b": "b.MKV",
        "odd.id": "odd.id.webm",
        "plain": "plain",
    }


def test_two_files_of_one_video_are_refused(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"a\.mkv and a\.mp4 are both video a"):
        find_videos(tmp_path)


def test_an_empty_or_absent_root_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is its disk mounted"):
        find_videos(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        find_videos(tmp_path / "nowhere")


def test_a_deleted_file_fails_the_video_but_a_lost_mount_stops_the_build(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "other.mp4").touch()
    task = ProbeTask(video_uid="a", path=root / "a.mp4", root=root)
    assert probe_video(task) == "unreadable: No such file or directory"
    (root / "other.mp4").unlink()
    with pytest.raises(TransientError, match="disappeared or became empty"):
        probe_video(task)


def test_a_subset_is_reproducible() -> None:
    uids = [f"video-{i}" for i in range(100)]
    chosen = subset(uids, limit=10, seed=0)
    assert len(chosen) == 10 and chosen == subset(reversed(uids), limit=10, seed=0)
    assert chosen < subset(uids, limit=20, seed=0)
    assert chosen != subset(uids, limit=10, seed=1)
    assert subset(uids, limit=None, seed=0) == set(uids)
