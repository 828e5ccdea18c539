"""Source videos are found by name, and a lost mount is distinguished from a lost file."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from preprocessing.errors import TransientError, UsageError
from preprocessing.video.sources import (
    PREVIEW_EXTENSIONS,
    SIDECAR_EXTENSIONS,
    VIDEO_EXTENSIONS,
    ProbeTask,
    SourcePlace,
    find_videos,
    places,
    probe_video,
    subset,
)
from tests.paths import shared
from tests.preprocessing.coded_video import steady, write_video


def test_videos_are_found_with_any_extension_and_dots_in_ids(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MKV", "odd.id.webm", "plain", ".hidden.mp4"):
        (tmp_path / name).touch()
    assert {uid: path.name for uid, path in find_videos(tmp_path).items()} == {
        "a": "a.mp4",
        "b": "b.MKV",
        "odd.id": "odd.id.webm",
        "plain": "plain",
    }


def chosen(root: Path, pattern: str = "*") -> dict[str, str]:
    """Return uid → the name below `root` of the file that is taken."""
    return {uid: str(path.relative_to(root)) for uid, path in find_videos(root, pattern).items()}


def test_the_three_kinds_of_extensions_share_none() -> None:
    kinds = [set(VIDEO_EXTENSIONS), set(PREVIEW_EXTENSIONS), set(SIDECAR_EXTENSIONS)]
    assert sum(map(len, kinds)) == len(set().union(*kinds))
    assert all(extension == extension.lower() for kind in kinds for extension in kind)


@pytest.mark.parametrize("extension", ["mp4", "MOV", "mkv", "LRV", "unheard-of"])
def test_what_lies_beside_a_video_is_passed_over(
    extension: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in sorted(SIDECAR_EXTENSIONS):
        (tmp_path / f"u.{name}").write_bytes(b"x")
        (tmp_path / f"u.{name.upper()}").write_bytes(b"x")
    for name in ("._u.mp4", ".DS_Store", "Thumbs.db", "u.mp4.part", "u.en.vtt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no videos among what matches videos.pattern = \*"):
        find_videos(tmp_path)
    (tmp_path / f"u.{extension}").write_bytes(b"x")
    assert chosen(tmp_path) == {"u": f"u.{extension}"}
    assert not caplog.text


def test_the_card_of_a_gopro(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    card = tmp_path / "card"
    shutil.copytree(shared("field/gopro_card"), card)
    shutil.copy(shared("field/u1.mp4"), card)
    for name in ("u1.vtt", "u1.tar", "u1.json"):
        (card / name).write_text("x")
    assert chosen(card) == {"u1": "u1.mp4"}
    assert "u1: u1.mp4 is taken, not u1.LRV" in caplog.text
    caplog.clear()
    assert chosen(card, "*.LRV") == {"u1": "u1.LRV"} and chosen(card, "*.mp4") == {"u1": "u1.mp4"}
    assert not caplog.text
    (card / "u1.mp4").unlink()
    assert chosen(card) == {"u1": "u1.LRV"}


def test_of_several_videos_the_kind_of_file_decides_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = write_video(tmp_path / "made.mp4", steady(0.2)).read_bytes()
    root = tmp_path / "root"
    (root / "u").mkdir(parents=True)
    expected = ["u.mp4", "u.mov", "u.mkv", "u.unheard-of", "u.LRV", "u"]
    for name in expected[:-1]:
        (root / name).write_bytes(video)
    for best in range(len(expected) - 1):
        caplog.clear()
        assert chosen(root) == {"u": expected[best]}
        for other in expected[best + 1 :]:
            assert (other in caplog.text) == (best >= 3 or other != "u.unheard-of")  # only a video if looked into
        assert f"{expected[best]} is taken" in caplog.text
        (root / expected[best]).unlink()
    assert chosen(root) == {"u": "u"}


def test_a_file_that_holds_no_video_is_not_taken_before_one_that_does(tmp_path: Path) -> None:
    video = write_video(tmp_path / "made.mp4", steady(0.2)).read_bytes()
    root = tmp_path / "root"
    root.mkdir()
    (root / "page.mp4").write_text("<html>404</html>")
    (root / "page.webm").write_bytes(video)
    (root / "empty.mp4").touch()
    (root / "empty.mkv").write_text("not even this is a video")
    (root / "odd.aaa").write_text("x")
    (root / "odd.bbb").write_bytes(video)
    (root / "odd.ccc").write_text("x")
    (root / "list.aaa").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{root}/odd.bbb\n")
    (root / "list.bbb").write_text("ffconcat version 1.0\nfile odd.bbb\n")
    assert chosen(root) == {"page": "page.webm", "empty": "empty.mkv", "odd": "odd.bbb", "list": "list.aaa"}


def test_different_files_of_one_name_are_refused_only_if_they_are_wanted(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shutil.copy(write_video(tmp_path / "made.mp4", steady(0.2)), tmp_path / folder / "u.mp4")
    (tmp_path / "made.mp4").unlink()
    assert chosen(tmp_path, "*/*") == {"u": "a/u.mp4"}  # copies
    write_video(tmp_path / "b" / "u.mp4", steady(0.5))
    with pytest.raises(UsageError, match=r"a/u\.mp4 and b/u\.mp4 are both video u and differ.*videos\.pattern"):
        find_videos(tmp_path, "*/*")
    assert find_videos(tmp_path, "*/*", wanted={"v"})["u"] == tmp_path / "a" / "u.mp4"
    assert chosen(tmp_path, "b/*") == {"u": "b/u.mp4"}


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "u.mp4").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo.mp4")  # opening it would block for ever
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
        assert chosen(tmp_path) == {"u": "u.mp4"}
    (tmp_path / "link.mp4").symlink_to("u.mp4")
    assert chosen(tmp_path) == {"u": "u.mp4", "link": "link.mp4"}


def test_a_warning_about_many_videos_is_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(20):
        (tmp_path / f"v{i:02d}.mp4").write_bytes(b"x")
        (tmp_path / f"v{i:02d}.LRV").write_bytes(b"x")
    find_videos(tmp_path)
    assert caplog.text.count("is taken") == 5 and "and 15 more" in caplog.text
    caplog.clear()
    find_videos(tmp_path, wanted=set())
    assert not caplog.text


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


def readable(root: Path, *names: str) -> dict[str, SourcePlace]:
    """Return the places of files that are written below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return places({Path(name).stem: root / name for name in names}, root)


def test_a_lost_folder_below_the_root_is_a_lost_mount(tmp_path: Path) -> None:
    found = readable(tmp_path / "root", "one/a.mp4", "one/b.mp4", "two/c.mp4", "two/d.mp4")
    for place in found.values():
        place.require_reachable()
    (tmp_path / "root" / "one").rename(tmp_path / "away")
    found["c"].require_reachable()
    with pytest.raises(TransientError, match="one disappeared or became empty"):
        found["a"].require_reachable()
    (tmp_path / "root" / "one").mkdir()
    with pytest.raises(TransientError, match="one disappeared or became empty"):
        found["a"].require_reachable()


def test_files_that_are_gone_with_all_their_neighbours_are_a_lost_mount(tmp_path: Path) -> None:
    found = readable(tmp_path, *(f"{letter}.mp4" for letter in "abcdefgh"))
    (tmp_path / "NOT MOUNTED").touch()  # what some put below a mount point
    for letter in "abcdef":
        (tmp_path / f"{letter}.mp4").unlink()
    with pytest.raises(TransientError, match=r"b\.mp4 and its neighbours, such as a\.mp4"):
        found["b"].require_reachable()
    found["f"].require_reachable()  # g and h are there: the files are lost, not their disk
    found["h"].require_reachable()


def test_links_into_a_lost_mount(tmp_path: Path) -> None:
    readable(tmp_path / "mount", "a.mp4", "b.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "own.mp4").write_bytes(b"x")
    for name in ("a", "b"):
        (root / f"{name}.mp4").symlink_to(tmp_path / "mount" / f"{name}.mp4")
    found = places(find_videos(root), root)
    (tmp_path / "mount" / "a.mp4").unlink()
    found["a"].require_reachable()
    (tmp_path / "mount" / "b.mp4").unlink()
    with pytest.raises(TransientError, match="mount disappeared or became empty"):
        found["b"].require_reachable()
