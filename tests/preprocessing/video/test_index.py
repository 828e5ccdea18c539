"""Clocks of containers: edit lists, fragments, cut files, missing times; every frame is checked by its number."""

from __future__ import annotations

import math
import shlex
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from preprocessing.video.mp4_tables import read_tables
from preprocessing.video.probe import UnreadableError, probe
from tests.preprocessing.chunking import FFMPEG
from tests.preprocessing.coded_video import steady, write_video
from tests.preprocessing.video.containers import (
    MPEG2,
    MPEG4,
    SIZE,
    box,
    encode,
    kinds,
    rewritten,
    timescales,
    video,
    with_edits,
)
from tests.preprocessing.video.in_process import FPS, Source, expected

FRAME = 1 / 30


def edited(
    folder: Path, edits: list[tuple[float, float, float]], *, suffix: str = "mp4", is_wide: bool = False
) -> Path:
    """Return a video of 4 s with an edit list in frames: (length, first frame or −1, rate) each."""
    path = video(folder / f"v.{suffix}", 4)
    tables = read_tables(path, 1)
    begin = float(tables.pts_P.min()) / tables.timescale  # with B frames, media times do not start at 0
    rows = [(length * FRAME, start if start < 0 else begin + start * FRAME, rate) for length, start, rate in edits]
    return with_edits(path, rows, wide=is_wide)


def shown(edits: list[tuple[float, float, float]]) -> list[tuple[float, int]]:
    """Return (time in s from the first shown frame, number) of the frames of a video with such an edit list."""
    at, frames = 0.0, []
    for length, start, _ in edits:
        if start >= 0:
            inside = range(math.ceil(start - 1e-9), 120 if not length else min(120, math.ceil(start + length - 1e-9)))
            frames += [((at + n - start) * FRAME, n) for n in inside]
        at += length
    first = frames[0][0]
    return [(time - first, n) for time, n in frames]


EDITS = {
    "the start is hidden": [(90, 30, 1)],
    "the start is hidden, between two key frames": [(93, 27, 1)],
    "the end is hidden": [(70, 0, 1)],
    "to the end of the media": [(0, 40, 1)],
    "a middle is cut out": [(40, 0, 1), (60, 60, 1)],
    "three parts": [(20, 10, 1), (33, 47, 1), (10, 100, 1)],
    "an empty edit first": [(15, -1, 1), (120, 0, 1)],
    "an empty edit first, the start hidden": [(31, -1, 1), (80, 20, 1)],
    "an empty edit between": [(30, 0, 1), (10, -1, 1), (60, 60, 1)],
    "edges between frames": [(30.5, 0.5, 1), (20.25, 60.75, 1)],
    "an empty edit last": [(60, 0, 1), (30, -1, 1)],
    "half a second, and longer than the media": [(200, 60, 1)],
}


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("name", EDITS)
def test_every_frame_is_shown_when_the_edit_list_says(name: str, suffix: str, tmp_path: Path) -> None:
    edits = EDITS[name]
    frames = shown(edits)
    source = Source(edited(tmp_path, edits, suffix=suffix, is_wide=len(edits) == 2), tmp_path)
    times, numbers = [time for time, _ in frames], [n for _, n in frames]
    assert abs(source.frames() - (times[-1] + FRAME) * FPS) <= 1
    for chunk in source.every_chunk():
        assert not chunk.damage
        assert chunk.sound() == {
            n: numbers[expected(times, n)] for n in range(chunk.first, chunk.first + len(chunk.frames))
        }


def test_a_gap_of_the_edit_list_is_damage(tmp_path: Path) -> None:
    source = Source(edited(tmp_path, [(45, 0, 1), (60, -1, 1), (60, 60, 1)]), tmp_path)
    damage = [d for chunk in source.every_chunk(10) for d in chunk.damage]
    assert [d.reason for d in damage] == ["frozen video"]
    assert (damage[0].start, damage[0].end) == pytest.approx((1.5, 3.5), abs=0.05)
    for n, number in source.every_chunk(10)[0].sound().items():
        assert number == (n if n < 45 else n - 45 if n >= 105 else 44)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([(60, 60, 1), (60, 0, 1)], "repeats or reorders"),
        ([(30, 0, 1), (30, 0, 1)], "repeats or reorders"),
        ([(30, 0, 0), (60, 30, 1)], "holds a frame"),
        ([(60, 0, 2)], "plays at 2 times"),
        ([(60, -1, 1)], "none of its frames is ever shown"),
        ([(60, 4000, 1)], "none of its frames is ever shown"),
    ],
)
def test_other_edit_lists_are_refused_and_the_remedy_works(edits: list, message: str, tmp_path: Path) -> None:
    path = edited(tmp_path, edits)
    with pytest.raises(UnreadableError, match=message) as caught:
        probe(path)
    if "export" in str(caught.value):
        assert run_remedy(str(caught.value), {"IN": str(path), "OUT.mp4": str(tmp_path / "out.mp4")}, tmp_path) == 0
        probe(tmp_path / "out.mp4")


def run_remedy(message: str, names: dict[str, str], folder: Path) -> int:
    """Run the ffmpeg command that a message gives; return its exit status."""
    command = message[message.index("ffmpeg ") :].partition(" (")[0]
    words = [names.get(word, word) for word in shlex.split(command)]
    assert words[0] == "ffmpeg"
    return subprocess.run([FFMPEG, "-v", "error", "-y", *words[1:]], cwd=folder).returncode


@pytest.mark.parametrize("kind", kinds())
def test_every_frame_of_every_container_is_right_from_every_start(kind: str, tmp_path: Path) -> None:
    source = Source(kinds()[kind](tmp_path), tmp_path)
    assert source.frames() == 90
    for seconds in (1.0, 0.4, 3.0):
        for chunk in source.every_chunk(seconds):
            assert not chunk.damage
            assert chunk.numbers == list(range(chunk.first, chunk.first + len(chunk.frames)))
    slow = [n for chunk in source.every_chunk(fps=2) for n in chunk.numbers]
    assert slow == [expected(steady(3), n, fps=2) for n in range(6)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("raw.h264", ("-c:v", "libx264", "-bf", "2")),
        ("raw.hevc", ("-c:v", "libx265", "-x265-params", "log-level=0")),
        ("raw.m2v", MPEG2),
        ("raw.m4v", (*MPEG4, "-f", "m4v")),
        ("raw.mjpeg", ("-c:v", "mjpeg", "-f", "mjpeg")),
    ],
)
def test_a_bare_stream_is_refused_and_the_remedy_works(name: str, options: tuple[str, ...], tmp_path: Path) -> None:
    path = encode(video(tmp_path / "w.mp4", 2), tmp_path / name, *options)
    with pytest.raises(UnreadableError, match=r"a bare \w+ stream without a container") as caught:
        probe(path)
    assert run_remedy(str(caught.value), {}, tmp_path) == 0
    source = Source(path.with_suffix(".mp4"), tmp_path)
    assert [n for chunk in source.every_chunk() for n in chunk.numbers] == list(range(60))


def test_a_cut_mp4_is_sound_up_to_the_cut_and_lost_from_there(tmp_path: Path) -> None:
    path = kinds()["mp4, index first"](tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    source = Source(path, tmp_path)
    assert source.frames() == 90  # the index says how long it was
    (lost,) = source.clock.lost
    assert "truncated" in lost.reason and 1 < lost.start < lost.end == pytest.approx(3)
    sound = {n: number for chunk in source.every_chunk() for n, number in chunk.sound().items()}
    assert sound == {n: n for n in sound} and set(range(35)) <= sound.keys()


@pytest.mark.parametrize("kind", ["mkv", "ts", "ps", "avi, MPEG-4", "mp4, fragmented"])
def test_what_is_cut_off_is_stated_where_the_container_or_the_metadata_know_it(kind: str, tmp_path: Path) -> None:
    path = kinds()[kind](tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.4)])
    source = Source(path, tmp_path, stated_seconds=3.0)
    assert source.probed.duration < 2 and source.probed.stated_duration == 3.0
    if kind in ("mkv",):
        assert probe(path).stated_duration == pytest.approx(3.0, abs=0.1)
    require_own_numbers(source, at_least=14)


def require_own_numbers(source: Source, *, at_least: int) -> None:
    """Check that sound frames show their own numbers; a video that is cut between B frames holds one at its end."""
    sound = {n: number for chunk in source.every_chunk() for n, number in chunk.sound().items()}
    assert set(range(at_least)) <= sound.keys()
    assert all(number == n or (n >= max(sound) - 4 and n - 3 <= number < n) for n, number in sound.items()), sound


def test_a_fragmented_file_that_is_cut_in_a_fragment_is_sound_before_it(tmp_path: Path) -> None:
    data = kinds()["mp4, fragmented"](tmp_path).read_bytes()
    at = [i for i in range(len(data)) if data[i : i + 4] == b"moof"]
    (tmp_path / "v.mp4").write_bytes(data[: at[3] + 700])
    require_own_numbers(Source(tmp_path / "v.mp4", tmp_path), at_least=45)


def absurd_headers(path: Path) -> Path:
    """State 7.7 years in the headers of an mp4."""
    movie, track = timescales(path)

    def change(name: bytes, content: bytes) -> bytes | None:
        if name in (b"mvhd", b"mdhd"):
            length = min(2**32 - 1, (movie if name == b"mvhd" else track) * 242_000_000)
            return box(name, content[:16] + struct.pack(">I", length) + content[20:])
        return None

    return rewritten(path, change)


def absurd_last_sample(path: Path) -> Path:
    """Move the last sample of an mp4 19 hours or more away."""
    _, track = timescales(path)

    def change(name: bytes, content: bytes) -> bytes | None:
        if name == b"stts":
            return box(name, struct.pack(">IIIIIIII", 0, 3, 118, track // 30, 1, 2**31 - 1, 1, track // 30))
        return None

    return rewritten(path, change)


@pytest.mark.parametrize("damage", [absurd_headers, absurd_last_sample])
def test_absurd_durations_are_bounded_before_anything_is_planned(damage: object, tmp_path: Path) -> None:
    source = Source(damage(video(tmp_path / "v.mp4", 4)), tmp_path, stated_seconds=4.0)  # type: ignore[operator]
    assert source.frames() in range(117, 121)
    assert [n for chunk in source.every_chunk() for n in chunk.numbers][:115] == list(range(115))


def test_an_absurd_duration_in_the_header_of_matroska_is_not_believed(tmp_path: Path) -> None:
    data = bytearray(video(tmp_path / "v.mkv", 3).read_bytes())
    at = data.index(b"\x44\x89\x88")  # Duration, 8 bytes
    data[at + 3 : at + 11] = struct.pack(">d", 1e15)
    (tmp_path / "v.mkv").write_bytes(data)
    source = Source(tmp_path / "v.mkv", tmp_path)
    assert source.frames() == 90 and source.probed.stated_duration == pytest.approx(3, abs=0.1)
    assert any("not believed" in note for note in source.probed.notes)


def test_a_packet_of_ts_with_an_absurd_time_costs_no_jobs(tmp_path: Path) -> None:
    times = [*steady(3), 90_000.0]  # 25 hours
    source = Source(write_video(tmp_path / "v.mkv", times, size=SIZE, gop=15), tmp_path)
    assert source.frames() == 90 and any("not believed" in note for note in source.probed.notes)
    assert [n for chunk in source.every_chunk() for n in chunk.numbers] == list(range(90))


def test_one_wrong_composition_offset_moves_no_other_frame(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", 3)
    rows = [tuple(pair) for pair in _ctts(path)]
    rows[40] = (rows[40][0], rows[40][1] + timescales(path)[1] // 6)
    packed = struct.pack(">II", 0, len(rows)) + b"".join(struct.pack(">Ii", *pair) for pair in rows)
    rewritten(path, lambda name, _: box(name, packed) if name == b"ctts" else None)
    source = Source(path, tmp_path)
    assert not source.clock.by_order
    sound = {n: number for chunk in source.every_chunk() for n, number in chunk.sound().items()}
    assert [n - number for n, number in sound.items() if n != number] in ([], [1]) and len(sound) > 80  # held once


def _ctts(path: Path) -> np.ndarray:
    data = path.read_bytes()
    at = data.index(b"ctts") + 8
    count = int.from_bytes(data[at : at + 4], "big")
    return np.frombuffer(data, ">i4", 2 * count, at + 4).reshape(-1, 2).astype(int)


def test_packets_timed_in_decoding_order_are_shown_in_the_order_of_output(tmp_path: Path) -> None:
    """As in files that were made without composition offsets."""
    path = video(tmp_path / "v.mp4", 3, options={"bf": "3"})
    rewritten(path, lambda name, _: b"" if name in (b"ctts", b"edts") else None)
    source = Source(path, tmp_path)
    assert source.clock.by_order and any("contradict" in note for note in source.probed.notes)
    for chunk in source.every_chunk():
        assert not chunk.damage
        assert chunk.numbers == list(range(chunk.first, chunk.first + len(chunk.frames)))


def test_a_damaged_first_group_does_not_change_the_clock(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", 3)
    tables = read_tables(path, 1)
    data = bytearray(path.read_bytes())
    for packet in (0, 4):
        at, size = int(tables.pos_P[packet]), int(tables.size_P[packet])
        data[at + 12 : at + size] = bytes(size - 12)
    path.write_bytes(data)
    source = Source(path, tmp_path)
    assert not source.clock.by_order and source.frames() == 90
    sound = {n: number for chunk in source.every_chunk() for n, number in chunk.sound().items()}
    assert sound == {n: n for n in range(15, 90)}


def test_a_video_in_a_codec_without_a_decoder_is_unreadable(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mkv", 1)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    with pytest.raises(UnreadableError, match="codec"):
        probe(path)
