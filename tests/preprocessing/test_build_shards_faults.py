"""Builds that meet exceptions of our own code, lost mounts, too many failures, and what lies beside videos."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from preprocessing import pack, stages
from preprocessing.build_shards import main
from preprocessing.pack import PackTask, ShardOutcome
from preprocessing.video.chunks import Chunk
from preprocessing.video.probe import ProbedVideo
from preprocessing.video.sources import ProbeTask, SourcePlace
from preprocessing.video.transcode import ChunkTask
from shards.verify.__main__ import main as verify
from tests.paths import shared
from tests.preprocessing.test_toolchain import wrapper
from tests.preprocessing.world import World, files_of, ledger_of

pytestmark = pytest.mark.medium

REAL_PROBE, REAL_CHUNK, REAL_PACK = stages.probe_video, stages._make_chunk, stages._pack_shard


def faulty_probe(task: ProbeTask) -> ProbedVideo | str:
    """Probe a video on a worker, with a fault of our own in that of video b."""
    if task.video_uid == "b":
        raise ZeroDivisionError(f"probing {task.path}")
    return REAL_PROBE(task)


def faulty_chunk(place: SourcePlace, task: ChunkTask) -> Chunk:
    """Make a chunk on a worker, with a fault of our own in the second one of video c."""
    if task.video_uid == "c" and task.index == 1:
        raise KeyError(f"chunking into {task.work}")
    return REAL_CHUNK(place, task)


def faulty_pack(task: PackTask) -> ShardOutcome:
    """Pack a shard on a worker, with a fault of our own in that of split val."""
    if task.split == "val":
        raise AssertionError
    return REAL_PACK(task)


def faulty_cutting(task: PackTask) -> ShardOutcome:
    """Pack a shard on a worker, with a fault of our own in the fourth sample of video c."""
    real = pack._Video.sample

    def sample(video: Any, cutter: Any, frames: Any, segment: str) -> Any:
        if frames.row["text"].endswith("thing 3 in c"):
            raise IndexError(f"cutting in {task.work}")
        return real(video, cutter, frames, segment)

    pack._Video.sample = sample  # type: ignore[method-assign]
    try:
        return REAL_PACK(task)
    finally:
        pack._Video.sample = real  # type: ignore[method-assign]


def make_small(root: Path) -> World:
    """Return a world of four sound videos of three chunks each; the one called val is in split val."""
    world = World(root=root / "in")
    for uid in ("a", "b", "c", "val"):
        world.video(uid, 6.0)
        for second in range(6):
            world.clip(uid, second + 0.1, second + 0.9, f"does thing {second} in {uid}")
    world.summary("a", 0.0, 5.0, "did things")
    world.write()
    return world


@pytest.fixture(scope="module")
def small(make_once: Callable[[str, Callable[[Path], World]], World]) -> World:
    """That world; not to be modified."""
    return make_once("small", make_small)


SMALL = ("chunk.seconds=2", "dask.workers=1")


@pytest.fixture(scope="module")
def finished(small: World, make_once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    """The output of an undisturbed build of it; not to be modified."""

    def make(folder: Path) -> Path:
        assert main(small.options(folder, SMALL)) == 0
        return folder

    return make_once("finished", make)


def samples_of(output: Path) -> dict[str, bytes]:
    """Return what a dataset holds, without what states the configuration."""
    files = files_of(output / "shards")
    return {name: data for name, data in files.items() if name not in ("dataset.json", "README.md")}


def test_an_exception_fails_its_video_and_no_other(
    small: World, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "probe_video", faulty_probe)
    monkeypatch.setattr(stages, "_make_chunk", faulty_chunk)
    monkeypatch.setattr(stages, "_pack_shard", faulty_pack)
    assert main(small.options(tmp_path, (*SMALL, "max_failed_fraction=0.9"))) == 0
    rows = ledger_of(tmp_path)
    assert len(rows) == len(small.clips) + len(small.summaries) + len(small.durations)
    clips = {row["item"]: row for row in rows if row["set"] == "clips"}
    outcome = Counter((row["video_uid"], row["status"], row["reason"]) for row in clips.values())
    assert outcome == {
        ("a", "packed", ""): 6,
        ("b", "failed", "unexpected error"): 6,
        ("c", "failed", "damaged source"): 2,
        ("c", "packed", ""): 4,
        ("val", "failed", "unexpected error"): 6,
    }
    details = {row["video_uid"]: row["detail"] for row in clips.values() if row["status"] == "failed"}
    assert details["b"] == "ZeroDivisionError: probing VIDEOS/b.mp4"
    assert "KeyError: 'chunking into WORK'" in details["c"]
    assert details["val"] == "AssertionError"
    for log in ((tmp_path / "work" / "build.log").read_text(), capsys.readouterr().err):
        for job, place in (("probe-b", "faulty_probe"), ("chunk-c-1", "faulty_chunk"), ("clips/val", "faulty_pack")):
            assert job in log and f", in {place}" in log
        assert log.count("Traceback") == 3
    monkeypatch.undo()
    assert main(small.options(tmp_path, (*SMALL, "retry=failed"))) == 0
    assert {row["status"] for row in ledger_of(tmp_path)} == {"packed"}
    assert verify([str(tmp_path / "shards")]) == 0


def test_an_exception_in_packing_fails_samples_of_its_video_alone(
    small: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_pack_shard", faulty_cutting)
    assert main(small.options(tmp_path, SMALL)) == 0
    failed = [row for row in ledger_of(tmp_path) if row["status"] != "packed"]
    assert failed and {(row["video_uid"], row["set"], row["reason"]) for row in failed} == {
        ("c", "clips", "unexpected error")
    }
    assert {row["detail"] for row in failed} == {"IndexError: cutting in WORK"}
    assert (tmp_path / "work" / "build.log").read_text().count("IndexError: cutting in") == 1
    assert verify([str(tmp_path / "shards")]) == 0
    monkeypatch.undo()
    assert main(small.options(tmp_path, (*SMALL, "retry=failed"))) == 0
    assert {row["status"] for row in ledger_of(tmp_path)} == {"packed"}


def test_too_many_exceptions_end_the_build_with_a_ledger_that_names_them(
    small: World, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "probe_video", faulty_probe)
    assert main(small.options(tmp_path, (*SMALL, "max_failed_fraction=0.1"))) == 3
    message = capsys.readouterr().err
    assert "6 of 25 samples failed, more than max_failed_fraction = 0.1" in message
    rows = pq.read_table(tmp_path / "work" / "ledger.parquet").to_pylist()
    example = next(row for row in rows if row["status"] == "failed" and row["set"] == "clips")
    assert f"6 × unexpected error, such as {example['item']} of video b: ZeroDivisionError" in message
    assert str(tmp_path / "work" / "ledger.parquet") in message
    assert Counter((row["set"], row["status"]) for row in rows) == {
        ("clips", "failed"): 6, ("clips", "pending"): 18, ("summaries", "pending"): 1,
        ("videos", "failed"): 1, ("videos", "pending"): 3,
    }  # fmt: skip
    assert not (tmp_path / "shards" / "dataset.json").exists()
    monkeypatch.undo()

    monkeypatch.setattr(stages, "_make_chunk", faulty_chunk)
    assert main(small.options(tmp_path, (*SMALL, "max_failed_fraction=0.01"))) == 3
    assert "2 × damaged source, such as" in capsys.readouterr().err
    rows = pq.read_table(tmp_path / "work" / "ledger.parquet").to_pylist()
    assert len(rows) == len(small.clips) + len(small.summaries) + len(small.durations)
    monkeypatch.undo()
    # The shard that has the failed clips is written, though not published: only `retry=failed` tries it again.
    assert main(small.options(tmp_path, (*SMALL, "max_failed_fraction=0.01"))) == 3
    assert main(small.options(tmp_path, (*SMALL, "retry=failed"))) == 0
    assert samples_of(tmp_path) == samples_of(finished)


@pytest.mark.slow
def test_a_missing_video_that_was_added_is_packed_into_the_unpublished_shard(
    small: World, finished: Path, tmp_path: Path
) -> None:
    world = small.copy(tmp_path / "in")
    (world.videos / "b.mp4").rename(tmp_path / "b.mp4")
    assert main(world.options(tmp_path, SMALL)) == 0
    for name in ("dataset.json", "ledger.parquet", "spans.parquet"):  # as if killed before publishing
        (tmp_path / "shards" / name).unlink()
    (tmp_path / "b.mp4").rename(world.videos / "b.mp4")
    assert main(world.options(tmp_path, SMALL)) == 0
    assert samples_of(tmp_path) == samples_of(finished)


def emptied(videos: Path, away: Path) -> Callable[[], None]:
    """Take the videos away as a lost mount does; return what brings them back."""
    videos.rename(away)
    videos.mkdir()
    (videos / "NOT MOUNTED").touch()

    def bring_back() -> None:
        shutil.rmtree(videos)
        away.rename(videos)

    return bring_back


def renamed(videos: Path, away: Path) -> Callable[[], None]:
    """Take the folder of the videos away; return what brings it back."""
    videos.rename(away)

    def bring_back() -> None:
        away.rename(videos)

    return bring_back


@pytest.mark.parametrize("lose", [emptied, pytest.param(renamed, marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [2])
def test_a_lost_mount_stops_the_build_and_the_same_command_goes_on(
    lose: Callable[[Path, Path], Callable[[], None]], workers: int, small: World, finished: Path, tmp_path: Path
) -> None:
    world = small.copy(tmp_path / "in")
    options = ("chunk.seconds=2", f"dask.workers={workers}")
    process = subprocess.Popen(
        world.arguments(tmp_path, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list((tmp_path / "work" / "chunks").rglob("*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    bring_back = lose(world.videos, tmp_path / "away")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 4 and "disappeared" in said and "Traceback" not in said, said
    damaged = [path for path in (tmp_path / "work").rglob("0*.json") if json.loads(path.read_bytes())["damage"]]
    assert not damaged
    bring_back()
    done = world.build(tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert samples_of(tmp_path) == samples_of(finished)


def test_a_title_that_is_not_utf8_does_not_end_the_build(tmp_path: Path) -> None:
    hostile = shared("field/hostile")
    (tmp_path / "videos").mkdir()
    for name in ("clean.mp4", "title-latin1.mp4"):
        shutil.copy(hostile / name, tmp_path / "videos")
    world = World(root=tmp_path)
    for uid in ("clean", "title-latin1"):
        world.durations[uid] = 8.0
        world.clip(uid, 0.1, 0.9, f"does a thing in {uid}")
    world.write()
    assert main(world.options(tmp_path / "o", ("dask.workers=1",))) == 0
    status = {row["item"]: row["status"] for row in ledger_of(tmp_path / "o") if row["set"] == "videos"}
    assert status == {"clean": "packed", "title-latin1": "packed"}


def test_the_card_of_a_gopro_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card"
    shutil.copytree(shared("field/gopro_card"), card)
    shutil.copy(shared("field/u1.mp4"), card)
    for name in ("u1.vtt", "u1.tar", "._u1.mp4", "Thumbs.db"):
        (card / name).write_bytes(b"no video")
    options = [
        "--config=configs/preprocess/ego4d.yaml", f"output={tmp_path / 'shards'}", f"work={tmp_path / 'work'}",
        f"videos.root={card}", "annotations.metadata=null", "annotations.exclude=[]", "dask.workers=1",
        f"annotations.egoclip={card / 'egoclip.csv'}", f"annotations.egosummary={card / 's.csv'}",
    ]  # fmt: skip
    assert main([*options, "videos.pattern=*.mp4", "--dry-run"]) == 0 and "is taken" not in capsys.readouterr().err
    assert main(options) == 0
    assert "u1: u1.mp4 is taken, not u1.LRV" in capsys.readouterr().err
    rows = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()
    assert Counter((row["set"], row["status"]) for row in rows) == {
        ("clips", "packed"): 16, ("summaries", "packed"): 1, ("videos", "packed"): 1
    }  # fmt: skip


def test_an_ffmpeg_on_path_that_lacks_an_ability_is_passed_over_aloud(
    small: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unable = wrapper(tmp_path / "bin", "libx264")
    monkeypatch.setenv("PATH", f"{unable.parent}:/bin:/usr/bin")
    assert main(small.options(tmp_path, ("--dry-run",))) == 0
    message = capsys.readouterr().err
    assert f"{unable} (5.1.6-0+deb12u1) lacks an encoder" in message and "using imageio-ffmpeg's instead" in message
    assert main(small.options(tmp_path, ("--dry-run", f"ffmpeg={unable}"))) == 2
    assert "cannot encode with libx264" in capsys.readouterr().err
