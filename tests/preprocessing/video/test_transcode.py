"""Chunks show the right frame at the right time, whatever the container, rate or start of the source."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.config import ChunkConfig
from preprocessing.errors import TransientError
from preprocessing.video.chunks import chunk_path
from preprocessing.video.probe import probe, read_source_clock
from preprocessing.video.transcode import encode_from, make_chunk
from tests.paths import shared
from tests.preprocessing.chunking import CONFIG, make_chunks, shown, task
from tests.preprocessing.coded_video import steady, write_video

VP9 = {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}


HEVC_10 = {
    "codec": "libx265",
    "pix_fmt": "yuv420p10le",
    "options": {"preset": "ultrafast", "x265-params": "log-level=0"},
}


UNEVEN = [t for i, t in enumerate(steady(10)) if (i // 60) % 2 or i % 3 == 0]  # 30 and 10 frames/s by turns


SOURCES = {
    "30 fps": ("v.mp4", steady(10), {}),
    "29.97 fps": ("v.mp4", steady(10, Fraction(30000, 1001)), {}),
    "25 fps": ("v.mp4", steady(10, 25), {}),
    "60 fps": ("v.mp4", steady(9, 60), {}),
    "24 fps, key frames far apart": ("v.mp4", steady(10, 24), {"gop": 1000}),
    "variable rate": ("v.mkv", UNEVEN, {}),
    "MPEG-TS that starts late": ("v.ts", steady(10), {"start": 33.7}),
    "MPEG-TS with one key frame": ("v.ts", steady(10), {"gop": 1000}),
    "Matroska that starts late": ("v.mkv", steady(10), {"start": 2.5}),
    "VP9": ("v.webm", steady(6), VP9),
    "HEVC, 10 bits": ("v.mp4", steady(6), HEVC_10),
    "odd size": ("v.mkv", steady(6), {"size": (323, 241), "pix_fmt": "yuv444p", "options": {"profile": "high444"}}),
    "one frame": ("v.mp4", [0.0], {}),
    "just over a chunk": ("v.mp4", steady(4 + 1 / 30), {}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_frame_shows_the_source_at_its_time(name: str, tmp_path: Path) -> None:
    file, times, options = SOURCES[name]
    path = write_video(tmp_path / file, times, **options)
    chunks = make_chunks(path, tmp_path / "work")
    assert not [chunk.damage for chunk in chunks if chunk.damage]
    assert all(chunk.frames == CONFIG.seconds * CONFIG.fps for chunk in chunks[:-1])
    full = shown(chunks, tmp_path / "work", "full")
    assert len(full) == sum(chunk.frames for chunk in chunks)
    assert shown(chunks, tmp_path / "work", "summary") == full[:: CONFIG.summary_step]

    ends = np.array([*times[1:], times[-1] + 1 / 30])
    for n, number in enumerate(full):
        # Within one source frame; half a grid frame is what rounding to the grid may add.
        slack = ends[number] - times[number] + 0.5 / CONFIG.fps
        assert times[number] - slack <= n / CONFIG.fps <= times[number] + slack, (n, number)
    if times == steady(len(times) / 30):
        assert full == list(range(len(times)))
    assert abs(len(full) / CONFIG.fps - (times[-1] + (ends[0] - times[0]))) <= 2 / CONFIG.fps + 1 / 24


@pytest.mark.parametrize("name", ["29.97 fps", "variable rate", "MPEG-TS that starts late", "60 fps"])
def test_a_chunk_from_the_middle_equals_one_decoded_from_the_start(name: str, tmp_path: Path) -> None:
    file, times, options = SOURCES[name]
    source = probe(write_video(tmp_path / file, times, **options), clock_file=tmp_path / "clock")
    clock = read_source_clock(source, tmp_path / "clock")
    starts = (clock.key_before(4.0), 0)
    assert starts[0] > 0
    made = []
    for first in starts:
        out = {part: tmp_path / f"{first}-{part}" for part in ("full", "summary", "report")}
        attempt = encode_from(
            task(source, tmp_path, 1), clock, {**out, "clock": tmp_path / "clock"}, first=first, deinterlace=False
        )
        assert not attempt.damage and not attempt.report.seek_failed
        made.append((attempt.report.shown, out["full"].read_bytes(), out["summary"].read_bytes()))
    assert made[0] == made[1]


def test_gops_are_short_and_closed_at_both_rates(tmp_path: Path) -> None:
    make_chunks(write_video(tmp_path / "v.mp4", steady(5)), tmp_path)
    for rendition, gop in (("full", CONFIG.gop), ("summary", CONFIG.summary_gop)):
        with av.open(str(chunk_path(tmp_path, "video", 0, rendition))) as container:
            stream = container.streams.video[0]
            assert len(container.streams) == 1 and stream.codec_context.pix_fmt == "yuv420p"
            step = 1 / (stream.average_rate * stream.time_base)
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        keys = [packet.pts / step for packet in packets if packet.is_keyframe]
        assert keys == list(range(0, len(packets), gop))
        for at, packet in enumerate(packets):  # closed: nothing after a key frame is shown before it
            last_key = [p for p in packets[: at + 1] if p.is_keyframe][-1]
            assert packet.pts >= last_key.pts


def test_rotation_is_applied_and_the_short_side_scaled(tmp_path: Path) -> None:
    chunks = make_chunks(shared("media/nasa_rotated_480x270.mp4"), tmp_path)
    assert (chunks[0].width, chunks[0].height) == (96, 170)
    with av.open(str(chunk_path(tmp_path, "video", 0, "full"))) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (96, 170, 0)


@pytest.mark.parametrize(("size", "expected"), [((64, 48), (64, 48)), ((65, 49), (64, 48)), ((640, 98), (626, 96))])
def test_a_small_source_is_not_enlarged(size: tuple[int, int], expected: tuple[int, int], tmp_path: Path) -> None:
    options = {"pix_fmt": "yuv444p", "options": {"profile": "high444"}}
    (chunk,) = make_chunks(write_video(tmp_path / "v.mkv", steady(1), size=size, **options), tmp_path)
    assert (chunk.width, chunk.height) == expected


def test_one_eye_of_a_stereo_video_is_used(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(1), size=(640, 240))
    (chunk,) = make_chunks(path, tmp_path, is_stereo=True)
    assert (chunk.width, chunk.height) == (128, 96)


def test_a_chunk_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(5))
    make_chunks(path, tmp_path / "a")
    make_chunks(path, tmp_path / "b")
    for first in (tmp_path / "a").rglob("*.mp4"):
        assert first.read_bytes() == (tmp_path / "b" / first.relative_to(tmp_path / "a")).read_bytes()


def test_ffmpeg_is_killed_after_the_timeout(tmp_path: Path) -> None:
    source = probe(write_video(tmp_path / "v.mp4", steady(20)))
    config = dataclasses.replace(CONFIG, seconds=20, timeout_seconds=1, fps=240, short_side=1080)
    source = dataclasses.replace(source, width=4000, height=3000)  # enlarged on purpose: it cannot be done in a second
    chunk = make_chunk(task(source, tmp_path / "work", 0, config=config))
    assert chunk.is_failed and "too long" in chunk.damage[0].reason
    assert not list((tmp_path / "work").rglob("*.mp4")) and not list((tmp_path / "work").rglob(".tmp*"))


def test_a_full_disk_is_a_transient_error(tmp_path: Path, small_disk: Path) -> None:
    source = probe(write_video(tmp_path / "v.mp4", steady(4), size=(640, 480)))
    config = ChunkConfig(seconds=4, short_side=480, crf=0)
    with pytest.raises((TransientError, OSError), match="No space left"):
        make_chunk(task(source, small_disk, 0, config=config))
    assert not list(small_disk.rglob("*.json")) and not list(small_disk.rglob("*.mp4"))
