"""Builds whose sources change while they run, and builds over the inputs that once failed in the field."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from preprocessing import stages
from preprocessing.build_shards import main
from preprocessing.video.chunks import Chunk
from preprocessing.video.sources import SourcePlace
from preprocessing.video.transcode import ChunkTask
from shards.dataset import open_dataset, read_member
from shards.verify.__main__ import main as verify
from tests.preprocessing.coded_video import numbers, steady, write_video
from tests.preprocessing.world import World, ledger_of

pytestmark = pytest.mark.medium

REAL_CHUNK = stages._make_chunk
CHANGED = ("in place", "by rename", "restored", "restored by rename")
OPTIONS = ("chunk.seconds=2", "dask.workers=1")


def replace_source(path: Path, how: str) -> None:
    """Replace a video by one of the same size that shows other frames."""
    before = path.stat()
    other = write_video(path.with_name("other") / path.name, steady(4, 25), size=(160, 120), options={"crf": "35"})
    data = other.read_bytes()
    assert len(data) <= before.st_size
    data += (before.st_size - len(data)).to_bytes(4, "big") + b"free" + bytes(before.st_size - len(data) - 8)
    assert len(data) == before.st_size
    if "rename" in how:
        other.write_bytes(data)
        other.replace(path)
    else:
        with path.open("r+b") as file:
            file.write(data)
    if "restored" in how:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replacing_chunk(place: SourcePlace, task: ChunkTask) -> Chunk:
    """Make a chunk on a worker; before the second one of some videos, replace the source as its name says."""
    how = task.video_uid.replace("_", " ")
    begun, replaced = (task.work / f"{task.video_uid}.{name}" for name in ("begun", "replaced"))
    if how in CHANGED and begun.exists() and not replaced.exists():
        replaced.touch()
        time.sleep(0.02)  # longer than the resolution of the times of files
        replace_source(task.source.path, how)
    begun.touch()
    if task.video_uid == "permissions":
        task.source.path.chmod(0o600)
    return REAL_CHUNK(place, task)


def shown_numbers(output: Path) -> dict[str, tuple[float, list[int]]]:
    """Return key → (time of the first stored frame, numbers of the stored frames) of all clips."""
    found = {}
    for shard in open_dataset(output / "shards").split("clips", "train").shards:
        for row in shard.rows().to_pylist():
            path = output / "clip.mp4"
            path.write_bytes(read_member(shard.path, row["mp4_offset"], row["mp4_size"]))
            found[row["key"]] = (row["media_start"], numbers(path))
    return found


def test_a_source_that_is_replaced_during_a_build_fails_with_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(root=tmp_path / "in")
    uids = [*(how.replace(" ", "_") for how in CHANGED), "permissions", "plain"]
    clips = {}
    for uid in uids:
        world.video(uid, 4.0, size=(160, 120), options={"crf": "8"})
        for second in range(0, 4, 2):
            clips[world.clip(uid, second + 0.1, second + 0.9, f"does thing {second} in {uid}")] = (uid, second)
    world.write()
    monkeypatch.setattr(stages, "_make_chunk", replacing_chunk)
    assert main(world.options(tmp_path, (*OPTIONS, "max_failed_fraction=0.9"))) == 0
    rows = {row["item"]: row for row in ledger_of(tmp_path) if row["set"] == "clips"}
    failed = {key for key in clips if rows[key]["status"] == "failed"}
    assert Counter(clips[key][0] for key in failed) == {how.replace(" ", "_"): 1 for how in CHANGED}
    assert all("the source changed during the build" in rows[key]["detail"] for key in failed)
    found = shown_numbers(tmp_path)
    assert len(found) == len(clips) - len(CHANGED)
    for start, seen in found.values():
        assert seen == list(range(round(start * 30), round(start * 30) + len(seen)))
    monkeypatch.undo()

    # The replaced videos are whole again: `retry=failed` packs what they show now.
    assert main(world.options(tmp_path, (*OPTIONS, "retry=failed"))) == 0
    assert {row["status"] for row in ledger_of(tmp_path)} == {"packed"}
    found = shown_numbers(tmp_path)
    for key, clip in clips.items():
        start, seen = found[key]
        rate = 25 / 30 if key in failed else 1
        assert all(abs(number - (start * 30 + i) * rate) <= 1 for i, number in enumerate(seen)), (clip, seen)
    assert verify([str(tmp_path / "shards")]) == 0
