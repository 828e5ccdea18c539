"""Damage in a source is found and located, and all other frames are unaffected."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

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
