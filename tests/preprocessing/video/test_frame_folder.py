"""Folders of numbered frames: numbering, missing frames, times and clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.video.frame_folder import FrameFolderError, folder_clock, list_frame_folder


def write(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_frames_are_numbered_from_one_and_gaps_are_missing_frames(tmp_path: Path) -> None:
    folder = write(tmp_path / "v", "f_02.jpg", "f_03.jpg", "f_06.jpg", "notes.txt")
    frames = list_frame_folder(folder, 29.97)
    assert (frames.first, frames.last, frames.count) == (1, 6, 6)
    assert frames.missing == ((1, 1), (4, 5))
    assert frames.missing_between(5, 6) == [(5, 5)]
    assert list(frames.present_between(1, 6)) == [2, 3, 6]
    assert frames.name(7) == "f_07.jpg"
    assert (frames.rate.numerator, frames.rate.denominator) == (2997, 100)
    assert frames.number_at(frames.time_of(4)) == 4 and frames.number_at(1000.0) == 6


def test_a_frame_zero_starts_the_numbering(tmp_path: Path) -> None:
    assert list_frame_folder(write(tmp_path / "v", "0.JPG", "1.JPG"), 30).first == 0


def test_the_clock_of_a_folder_has_a_packet_for_each_file_that_exists(tmp_path: Path) -> None:
    clock = folder_clock(list_frame_folder(write(tmp_path / "v", "f_02.jpg", "f_03.jpg", "f_06.jpg"), 30))
    assert clock.time_P.tolist() == pytest.approx([1 / 30, 2 / 30, 5 / 30])
    assert clock.end == 6 / 30 and clock.key_before(4 / 30) == 1


@pytest.mark.parametrize(
    ("names", "message"), [((), "without numbered frames"), (("a1.jpg", "b1.jpg"), "2 different file name patterns")]
)
def test_other_folders_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(FrameFolderError, match=message):
        list_frame_folder(write(tmp_path / "v", *names), 30)
