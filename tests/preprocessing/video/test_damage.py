"""Damage in a source is found and located, and all other frames are unaffected."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.config import ChunkConfig
from preprocessing.video.clock import VideoClock
from preprocessing.video.damage import find_damage
from preprocessing.video.frames import FramesReport
from tests.preprocessing.chunking import FFMPEG, make_chunks, shown
from tests.preprocessing.coded_video import steady, write_video
from tests.preprocessing.world import overwrite


@pytest.mark.parametrize("zeros", [False, True])
def test_overwritten_bytes_are_damage_and_other_frames_are_intact(zeros: bool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(12), options={"crf": "28"})
    overwrite(path, 0.45, 0.5, zeros=zeros)
    chunks = make_chunks(path, tmp_path / "work")
    damage = [damage for chunk in chunks for damage in chunk.damage]
    assert damage
    assert 3.5 < damage[0].start < damage[-1].end < 8.5
    full = shown(chunks, tmp_path / "work", "full")
    intact = [n for n in range(len(full)) if not any(d.start - 1e-6 <= n / 30 < d.end for d in damage)]
    assert len(intact) > 250
    assert all(full[n] == n for n in intact)


def test_a_missing_part_of_a_stream_is_damage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ts", steady(12), gop=15)
    data, packets = path.read_bytes(), path.stat().st_size // 188
    path.write_bytes(data[: 188 * int(packets * 0.5)] + data[188 * int(packets * 0.6) :])
    chunks = make_chunks(path, tmp_path / "work")
    damage = [damage for chunk in chunks for damage in chunk.damage]
    assert damage and 5 < damage[0].start < 6.5 and 6.5 < damage[-1].end < 8.5
    full = shown(chunks, tmp_path / "work", "full")
    assert all(full[n] == n for n in range(360) if not any(d.start - 1e-6 <= n / 30 < d.end for d in damage))


def test_frozen_video_is_damage_although_ffmpeg_reports_none(tmp_path: Path) -> None:
    times = [t for t in steady(10) if not 5 <= t < 7]
    chunks = make_chunks(write_video(tmp_path / "v.mkv", times), tmp_path / "work")
    (damage,) = [damage for chunk in chunks for damage in chunk.damage]
    assert damage.reason == "frozen video"
    assert (damage.start, damage.end) == pytest.approx((5.0, 7.0), abs=0.02)


def test_a_truncated_file_yields_its_intact_part(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "w.mp4", steady(12))
    remux = ["-i", str(whole), "-c", "copy", "-movflags", "+faststart", str(tmp_path / "v.mp4")]
    subprocess.run([FFMPEG, "-v", "error", *remux], check=True)
    data = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(data[: int(len(data) * 0.6)])
    chunks = make_chunks(tmp_path / "v.mp4", tmp_path / "work")
    assert (chunks[0].frames, chunks[-1].frames) == (120, 0)
    assert chunks[-1].is_failed and chunks[-1].end == 12
    assert sum(chunk.frames for chunk in chunks) > 180


def ideal(times: np.ndarray, *, first: int, stop: int, fps: int) -> tuple[VideoClock, FramesReport]:
    """Return the clock of a video whose frames are shown at `times`, and the report of a faultless decoder."""
    count = len(times)
    clock = VideoClock(
        time_P=times, key_P=np.arange(count) % 10 == 0, pos_P=np.arange(count), size_P=np.ones(count, np.int64),
        raw_P=np.arange(count), end=float(times[-1] + 1 / 30), stated_end=float(times[-1] + 1 / 30),
        step=float(np.median(np.diff(times))),
    )  # fmt: skip
    slots = np.floor(times * fps + 0.5 + 1e-6).astype(int)
    shown = [max(0, int(np.searchsorted(slots, n, side="right")) - 1) for n in range(first, stop)]
    last = min(int(np.searchsorted(slots, stop)), count - 1)  # the first that is due later is decoded, too
    decoded = list(range(clock.key_before(first / fps), last + 1))
    return clock, FramesReport(shown=shown, decoded=decoded)


@st.composite
def reports(draw: st.DrawFn) -> tuple[VideoClock, FramesReport, int, int]:
    """Return a clock of constant or variable rate with a faultless report of some of its grid frames, and the grid."""
    rates = draw(st.lists(st.sampled_from([10, 15, 24, 25, 30, 50, 60]), min_size=1, max_size=3))
    jitter = draw(st.floats(0, 0.2))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    steps = np.concatenate([np.full(40, 1 / rate) for rate in rates])
    times = np.concatenate([[0.0], np.cumsum(steps * (1 + jitter * (rng.random(len(steps)) - 0.5)))])
    fps = draw(st.sampled_from([10, 30]))
    total = int(times[-1] * fps)
    first = draw(st.integers(0, total // 2))
    clock, report = ideal(times, first=first, stop=total, fps=fps)
    return clock, report, first, fps


def damaged(report: FramesReport, clock: VideoClock, first: int, fps: int) -> set[int]:
    """Return the positions of a report that lie within damage."""
    stop = first + len(report.shown)
    damage = find_damage(report, clock, first=first, stop=stop, config=ChunkConfig(fps=fps, summary_fps=1))
    return {
        n for n in range(len(report.shown))
        if any(d.start < (first + n + 1) / fps - 1e-6 and d.end > (first + n) / fps - 0.5 / fps for d in damage)
    }  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(reports())
def test_a_faultless_report_is_no_damage(made: tuple[VideoClock, FramesReport, int, int]) -> None:
    clock, report, first, fps = made
    assert not damaged(report, clock, first, fps)


@settings(max_examples=150, deadline=None)
@given(reports(), st.data())
def test_a_shift_or_an_exchange_of_frames_is_always_damage(
    made: tuple[VideoClock, FramesReport, int, int], data: st.DataObject
) -> None:
    clock, report, first, fps = made
    right = list(report.shown)
    kind = data.draw(st.sampled_from(["one later", "one earlier", "swap", "one other"]))
    at = data.draw(st.integers(0, len(right) - 2))
    if kind == "one later":
        report.shown = [*right[:at], right[max(0, at - 1)], *right[at:-1]]
    elif kind == "one earlier":
        report.shown = [*right[:at], *right[at + 1 :], right[-1]]
    elif kind == "swap":
        other = data.draw(st.integers(0, len(right) - 1))
        report.shown[at], report.shown[other] = right[other], right[at]
    else:
        report.shown[at] = data.draw(st.sampled_from(report.decoded))
    wrong = {n for n, (a, b) in enumerate(zip(right, report.shown, strict=True)) if a != b}
    assert wrong <= damaged(report, clock, first, fps)


@settings(max_examples=150, deadline=None)
@given(reports(), st.data())
def test_a_frame_that_did_not_decode_is_always_damage(
    made: tuple[VideoClock, FramesReport, int, int], data: st.DataObject
) -> None:
    """The decoder put out all frames but some; each grid frame that should show one of those shows another."""
    clock, report, first, fps = made
    right, inside = list(report.shown), report.decoded[1:]
    at = data.draw(st.integers(0, len(inside) - 1))
    holes = set(inside[at : at + data.draw(st.integers(1, 5))])
    report.decoded = [p for p in report.decoded if p not in holes]
    slots = clock.slots(fps)
    there = [p for p in report.decoded]
    report.shown = [max((p for p in there if slots[p] <= first + n), default=there[0]) for n in range(len(right))]
    wrong = {n for n, (a, b) in enumerate(zip(right, report.shown, strict=True)) if a != b}
    assert wrong <= damaged(report, clock, first, fps)
