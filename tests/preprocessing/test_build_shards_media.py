"""Builds over real videos: rotated, odd-sized, 10-bit, HEVC, VP9, several streams, and pixels compared with a film."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from preprocessing.video.probe import probe
from preprocessing.video.transcode import stored_size
from shards.dataset import open_dataset, read_member
from shards.verify.__main__ import main as verify
from tests.paths import REPOSITORY, shared

pytestmark = pytest.mark.medium


def narrations(videos: list[Path]) -> dict:
    """Return annotations of real videos in the format of Ego4D's narration.json."""
    value = {}
    for path in videos:
        seconds = probe(path).duration
        times = np.arange(0.1, seconds, min(1.0, seconds / 3))
        rows = [
            {
                "timestamp_sec": float(time),
                "timestamp_frame": round(time * 30),
                "_unmapped_timestamp_sec": float(time),
                "narration_text": f"#C C watches part {i} of {path.stem}",
                "annotation_uid": "one",
            }
            for i, time in enumerate(times)
        ]
        summary = {
            "start_sec": 0.0,
            "end_sec": seconds,
            "summary_text": "#Summary C watched it",
            "annotation_uid": "one",
        }
        value[path.stem] = {"narration_pass_1": {"narrations": rows, "summaries": [summary]}, "status": "complete"}
    return value


def test_every_real_video_is_packed_or_failed_with_a_true_reason(tmp_path: Path) -> None:
    media = shared("media")
    videos = sorted(media.glob("*.mp4"))
    (tmp_path / "narration.json").write_text(json.dumps(narrations(videos)))
    done = subprocess.run(
        [
            sys.executable, "preprocessing/build_shards.py", "--config=configs/preprocess/ego4d.yaml",
            f"output={tmp_path / 'shards'}", f"work={tmp_path / 'work'}", f"videos.root={media}",
            "annotations.egoclip=null", "annotations.egosummary=null", "annotations.metadata=null",
            "annotations.exclude=[]", f"annotations.narrations={tmp_path / 'narration.json'}", "chunk.seconds=10",
        ],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert verify([str(tmp_path / "shards")]) == 0
    ledger = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()
    status = {row["item"]: row["status"] for row in ledger if row["set"] == "videos"}
    # The folder also contains SOURCES.md, which no annotation mentions.
    assert status == {path.stem: "packed" for path in videos}
    assert not [row for row in ledger if row["status"] == "failed"]

    dataset = open_dataset(tmp_path / "shards")
    for shard in dataset.split("clips", "train").shards:
        for row in shard.rows().to_pylist():
            source = probe(media / f"{row['video_uid']}.mp4")
            assert (row["width"], row["height"]) == stored_size(source, is_stereo=False, short_side=256)


def test_a_clip_shows_the_frames_of_its_source(tmp_path: Path) -> None:
    video = shared("media/sintel_30s_854x480_24fps_h264.mp4")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "sintel.mp4").symlink_to(video)
    (tmp_path / "narration.json").write_text(json.dumps(narrations([tmp_path / "videos" / "sintel.mp4"])))
    subprocess.run(
        [
            sys.executable, "preprocessing/build_shards.py", "--config=configs/preprocess/ego4d.yaml",
            f"output={tmp_path / 'shards'}", f"work={tmp_path / 'work'}", f"videos.root={tmp_path / 'videos'}",
            "annotations.egoclip=null", "annotations.egosummary=null", "annotations.metadata=null",
            "annotations.exclude=[]", f"annotations.narrations={tmp_path / 'narration.json'}", "chunk.seconds=10",
        ],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    with av.open(str(video)) as container:
        source = [frame.reformat(456, 256, format="gray").to_ndarray() for frame in container.decode(video=0)]
    (shard,) = open_dataset(tmp_path / "shards").split("clips", "train").shards
    rows = shard.rows().to_pylist()
    for row in rows[::4]:
        mp4 = read_member(shard.path, row["mp4_offset"], row["mp4_size"])
        path = tmp_path / "clip.mp4"
        path.write_bytes(mp4)
        with av.open(str(path)) as container:
            stored = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        for i in range(row["first_frame"], row["first_frame"] + row["clip_frames"], 5):
            at = (row["media_start"] + i / row["fps"]) * 24
            candidates = [source[n] for n in {int(at), min(round(at), len(source) - 1)} if n < len(source)]
            error = min(np.abs(stored[i].astype(int) - frame.astype(int)).mean() for frame in candidates)
            assert error < 4, (row["key"], i, error)
