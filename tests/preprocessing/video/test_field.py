"""Inputs that failed in the field, from public reports or by one flipped bit: right, or failed with a reason."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.video.chunks import Chunk, chunk_path
from preprocessing.video.probe import UnreadableError, probe
from preprocessing.video.transcode import make_chunk
from tests.paths import shared
from tests.preprocessing.chunking import CONFIG, shown, task
from tests.preprocessing.coded_video import numbers, read_number
from tests.preprocessing.video.in_process import Source, expected
from tests.preprocessing.video.test_index import run_remedy


def made(name: str, folder: Path, *, stated_seconds: float | None = None) -> tuple[Chunk, dict[int, int]]:
    """Return the record of a file of the field, made in one chunk, and the numbers of its frames outside of damage."""
    source = probe(shared(f"field/{name}"), stated_seconds=stated_seconds)
    chunk = make_chunk(task(source, folder, 0, config=replace(CONFIG, seconds=60)))
    seen = shown([chunk], folder, "full")
    assert len(seen) == chunk.frames and shown([chunk], folder, "summary") == seen[:: CONFIG.summary_step]
    damage = chunk.damage
    return chunk, {n: s for n, s in enumerate(seen) if not any(d.start < (n + 0.5) / 30 < d.end for d in damage)}


def test_a_lossless_cut_starts_with_the_first_frame_that_a_player_shows(tmp_path: Path) -> None:
    chunk, sound = made("trimmed_at_7s.mp4", tmp_path)
    assert not chunk.damage and sound == {n: n + 210 for n in range(390)}
    assert chunk.notes == ("its edit list hides 210 of 600 frames",)


@pytest.mark.parametrize(
    ("name", "frames"), [("resized_5_times.mkv", 360), ("u1.mp4", 240), ("hostile/clean.mp4", 360)]
)
def test_every_frame_shows_its_number(name: str, frames: int, tmp_path: Path) -> None:
    chunk, sound = made(name, tmp_path)
    assert not chunk.damage and sound == {n: n for n in range(frames)}


@pytest.mark.parametrize("name", ["resized_5_times.mkv", "avi_h264_b.avi", "trimmed_at_7s.mp4"])
@pytest.mark.parametrize("seconds", [1.0, 0.6])
def test_every_chunk_border_is_right(name: str, seconds: float, tmp_path: Path) -> None:
    source = Source(shared(f"field/{name}"), tmp_path)
    shift = 210 if "trimmed" in name else 0
    for chunk in source.every_chunk(seconds):
        assert not chunk.damage
        assert chunk.numbers == [n + shift for n in range(chunk.first, chunk.first + len(chunk.frames))]


def test_frames_without_times_are_all_there(tmp_path: Path) -> None:
    chunk, sound = made("avi_h264_b.avi", tmp_path)
    assert not chunk.damage and sound == {n: n for n in range(240)}


def test_two_recordings_whose_clock_restarts_are_8_seconds(tmp_path: Path) -> None:
    chunk, sound = made("ts_clock_restarts.ts", tmp_path)
    assert chunk.frames / 30 == pytest.approx(8, abs=0.2) and "jumps back by" in chunk.notes[0]
    steps = [sound[n + 1] - sound[n] for n in sound if n + 1 in sound]
    assert set(steps) == {1} and len(sound) > 235
    assert all("broken" in d.reason and d.end - d.start < 0.2 for d in chunk.damage)


def test_interlaced_video_shows_first_fields_and_says_so(tmp_path: Path) -> None:
    chunk, sound = made("interlaced_small.ts", tmp_path)
    assert chunk.deinterlaced and not chunk.damage
    with av.open(str(shared("field/interlaced_small.ts"))) as container:
        fields = [read_number(f.to_ndarray(format="gray")[0::2, :, None]) for f in container.decode(video=0)]
    times = [n / 25 for n in range(len(fields))]
    assert sound == {n: fields[expected(times, n)] for n in range(240)}


def test_a_bare_stream_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    path = tmp_path / "raw_annexb.h264"
    shutil.copyfile(shared("field/raw_annexb.h264"), path)
    with pytest.raises(UnreadableError, match="a bare h264 stream without a container") as caught:
        probe(path)
    assert run_remedy(str(caught.value), {}, tmp_path) == 0
    source = Source(tmp_path / "raw_annexb.mp4", tmp_path)
    assert [n for chunk in source.every_chunk() for n in chunk.numbers] == numbers(path)


@pytest.mark.parametrize("name", ["mp4first.mp4", "mkv540.mkv"])
def test_a_damaged_first_key_frame_moves_nothing(name: str, tmp_path: Path) -> None:
    chunk, sound = made(f"hostile/{name}", tmp_path)
    assert chunk.frames == 360 and sound == {n: n for n in range(40, 360)}
    assert chunk.damage[0].start == 0 and chunk.damage[-1].end == pytest.approx(4 / 3, abs=0.01)


def test_an_absurd_duration_plans_one_chunk_and_what_is_missing_is_stated(tmp_path: Path) -> None:
    source = probe(shared("field/hostile/absurd-duration.mp4"), stated_seconds=12.0)
    assert source.duration <= 84 and source.stated_duration == 12.0 and source.notes


def test_a_truncated_file_is_sound_up_to_its_end_and_states_what_is_missing(tmp_path: Path) -> None:
    chunk, sound = made("hostile/truncated-20-percent.mkv", tmp_path, stated_seconds=12.0)
    assert chunk.end < 3 and chunk.stated_end == 12.0
    assert set(range(70)) <= sound.keys() and all(n == number for n, number in sound.items() if n < 70)


def test_colours_are_stored_as_they_are_tagged(tmp_path: Path) -> None:
    source = probe(shared("field/c709_tv.mp4"))
    make_chunk(task(source, tmp_path, 0))
    frames = []
    for path in (source.path, chunk_path(tmp_path, "video", 0, "full")):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            assert int(frame.colorspace) == 1
            frames.append(frame.reformat(64, 64, format="rgb24", interpolation="AREA").to_ndarray().astype(int))
    assert np.abs(frames[0] - frames[1]).mean() < 4
