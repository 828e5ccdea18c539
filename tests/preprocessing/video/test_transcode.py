"""Chunks show the right frame at the right time, whatever the source's container, rate, start or damage."""

from __future__ import annotations

import dataclasses
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.config import ChunkConfig
from preprocessing.errors import TransientError
from preprocessing.video.chunks import chunk_path, read_sidecar
from preprocessing.video.probe import UnreadableError, probe
from preprocessing.video.transcode import command, make_chunk
from tests.paths import shared
from tests.preprocessing.chunking import CONFIG, FFMPEG, make_chunks, shown, task
from tests.media import steady, write_video

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
def test_a_chunk_from_the_middle_has_the_bytes_of_an_undivided_pass(name: str, tmp_path: Path) -> None:
    file, times, options = SOURCES[name]
    source = probe(write_video(tmp_path / file, times, **options))
    made = {}
    for preroll in (12.0 if file.endswith("ts") else 1.0, 1e6):
        out = {part: tmp_path / f"{preroll}-{part}" for part in ("full", "summary", "stats")}
        subprocess.run(command(task(source, tmp_path, 1), **out, preroll=preroll), check=True)
        made[preroll] = {part: path.read_bytes() for part, path in out.items()}
    first, second = made.values()
    assert first == second


def test_short_closed_gops_at_both_rates(tmp_path: Path) -> None:
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


def test_one_eye_of_a_stereo_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(1), size=(640, 240))
    (chunk,) = make_chunks(path, tmp_path, is_stereo=True)
    assert (chunk.width, chunk.height) == (128, 96)


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty", b""), ("text", b"not a video\n" * 100), ("cut header", b"\0\0\0\x20ftypisom\0\0\2\0")],
)
def test_what_is_no_video_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(UnreadableError, match=r"empty|not a video"):
        probe(tmp_path / "v.mp4")


def test_a_file_without_video_is_named(tmp_path: Path) -> None:
    source = ["-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac"]
    subprocess.run([FFMPEG, "-v", "error", *source, str(tmp_path / "v.mp4")], check=True)
    with pytest.raises(UnreadableError, match=r"no video stream .streams: audio"):
        probe(tmp_path / "v.mp4")


def test_a_playlist_dressed_up_as_a_video_opens_nothing_else(tmp_path: Path) -> None:
    write_video(tmp_path / "other.ts", steady(1))
    (tmp_path / "v.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(UnreadableError, match="not a video"):
        probe(tmp_path / "v.mp4")


def _overwrite(path: Path, start: float, end: float, *, zeros: bool) -> None:
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * end)
    noise = bytes(last - first) if zeros else np.random.default_rng(0).bytes(last - first)
    path.write_bytes(data[:first] + noise + data[last:])


@pytest.mark.parametrize("zeros", [False, True])
def test_overwritten_bytes_are_damage_and_all_else_is_sound(zeros: bool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(12), options={"crf": "28"})
    _overwrite(path, 0.45, 0.5, zeros=zeros)
    chunks = make_chunks(path, tmp_path / "work")
    damage = [damage for chunk in chunks for damage in chunk.damage]
    assert damage
    assert 3.5 < damage[0].start < damage[-1].end < 8.5
    full = shown(chunks, tmp_path / "work", "full")
    sound = [n for n in range(len(full)) if not any(d.start - 1e-6 <= n / 30 < d.end for d in damage)]
    assert len(sound) > 250
    assert all(full[n] == n for n in sound)


def test_a_lost_stretch_of_a_stream_is_damage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ts", steady(12), gop=15)
    data, packets = path.read_bytes(), path.stat().st_size // 188
    path.write_bytes(data[: 188 * int(packets * 0.5)] + data[188 * int(packets * 0.6) :])
    chunks = make_chunks(path, tmp_path / "work")
    damage = [damage for chunk in chunks for damage in chunk.damage]
    assert damage and 5 < damage[0].start < 6.5 and 6.5 < damage[-1].end < 8.5
    full = shown(chunks, tmp_path / "work", "full")
    assert all(full[n] == n for n in range(360) if not any(d.start - 1e-6 <= n / 30 < d.end for d in damage))


def test_a_standstill_that_ffmpeg_passes_over_in_silence_is_damage(tmp_path: Path) -> None:
    times = [t for t in steady(10) if not 5 <= t < 7]
    chunks = make_chunks(write_video(tmp_path / "v.mkv", times), tmp_path / "work")
    (damage,) = [damage for chunk in chunks for damage in chunk.damage]
    assert damage.reason == "frozen video"
    assert (damage.start, damage.end) == pytest.approx((5.0, 7.0), abs=0.02)


def test_a_file_that_breaks_off_yields_its_sound_part(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "w.mp4", steady(12))
    remux = ["-i", str(whole), "-c", "copy", "-movflags", "+faststart", str(tmp_path / "v.mp4")]
    subprocess.run([FFMPEG, "-v", "error", *remux], check=True)
    data = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(data[: int(len(data) * 0.6)])
    chunks = make_chunks(tmp_path / "v.mp4", tmp_path / "work")
    assert (chunks[0].frames, chunks[-1].frames) == (120, 0)
    assert chunks[-1].is_failed and chunks[-1].end == 12
    assert sum(chunk.frames for chunk in chunks) > 180


def test_the_sidecar_says_from_what_and_how(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(1))
    (chunk,) = make_chunks(path, tmp_path / "work")
    assert read_sidecar(tmp_path / "work", "video", 0) == chunk
    assert (chunk.source_size, chunk.source_mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert chunk.bytes == sum(p.stat().st_size for p in (tmp_path / "work").rglob("*.mp4"))


def test_a_chunk_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(5))
    make_chunks(path, tmp_path / "a")
    make_chunks(path, tmp_path / "b")
    for first in (tmp_path / "a").rglob("*.mp4"):
        assert first.read_bytes() == (tmp_path / "b" / first.relative_to(tmp_path / "a")).read_bytes()


def test_an_ffmpeg_that_takes_too_long_is_ended_and_recorded(tmp_path: Path) -> None:
    source = probe(write_video(tmp_path / "v.mp4", steady(20)))
    config = dataclasses.replace(CONFIG, seconds=20, timeout_seconds=1, fps=240, short_side=1080)
    source = dataclasses.replace(source, width=4000, height=3000)  # enlarged on purpose: it cannot be done in a second
    chunk = make_chunk(task(source, tmp_path / "work", 0, config=config))
    assert chunk.is_failed and "too long" in chunk.damage[0].reason
    assert not list((tmp_path / "work").rglob("*.mp4")) and not list((tmp_path / "work").rglob(".tmp*"))


def test_a_full_disk_is_not_the_videos_fault(tmp_path: Path, small_disk: Path) -> None:
    source = probe(write_video(tmp_path / "v.mp4", steady(4), size=(640, 480)))
    config = ChunkConfig(seconds=4, short_side=480, crf=0)
    with pytest.raises((TransientError, OSError), match="No space left"):
        make_chunk(task(source, small_disk, 0, config=config))
    assert not list(small_disk.rglob("*.json")) and not list(small_disk.rglob("*.mp4"))
