"""Folders of numbered frames: numbering, missing frames, times, and links without gaps."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.video.frame_folder import FrameFolderError, link_frames, list_frame_folder


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


def test_links_replace_missing_frames_by_the_one_before(tmp_path: Path) -> None:
    folder = write(tmp_path / "v", "f_02.jpg", "f_03.jpg", "f_06.jpg")
    link_frames(list_frame_folder(folder, 30), folder, tmp_path / "links", 1, 6)
    shown = [path.read_text() for path in sorted((tmp_path / "links").iterdir())]
    assert shown == ["f_02.jpg", "f_02.jpg", "f_03.jpg", "f_03.jpg", "f_03.jpg", "f_06.jpg"]


@pytest.mark.parametrize(
    ("names", "message"), [((), "without numbered frames"), (("a1.jpg", "b1.jpg"), "2 different file name patterns")]
)
def test_other_folders_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(FrameFolderError, match=message):
        list_frame_folder(write(tmp_path / "v", *names), 30)
