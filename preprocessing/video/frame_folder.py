"""Folders of numbered JPEG frames as sources: `<video_uid>/frame_0000000001.jpg`, as EPIC-KITCHENS publishes them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from preprocessing.video.clock import VideoClock

_NAME = re.compile(r"(.*?)(\d{1,12})(\.jpe?g)", re.IGNORECASE)
_MAX_DENOMINATOR = 1001  # camera frame rates are n/1 or n/1001


@dataclass(frozen=True, kw_only=True)
class FrameFolder:
    """The frames of one video: frame `first` is shown at 0 s, each following one 1/rate s later."""

    prefix: str  # of the file names, such as frame_
    digits: int  # to which numbers are zero-padded
    suffix: str  # such as .jpg
    rate: Fraction  # frames/s
    first: int
    last: int
    missing: tuple[tuple[int, int], ...]  # ranges (first, last) of numbers without a file

    @property
    def count(self) -> int:
        """The number of frames if none were missing."""
        return self.last - self.first + 1

    def name(self, number: int) -> str:
        """Return the file name of a frame."""
        return f"{self.prefix}{number:0{self.digits}d}{self.suffix}"

    def number_at(self, seconds: float) -> int:
        """Return the number of the frame that is shown at a time (s); the last one after the end."""
        return min(self.first + int(seconds * self.rate), self.last)

    def time_of(self, number: int) -> float:
        """Return when a frame is first shown, in s."""
        return float((number - self.first) / self.rate)

    def missing_between(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the ranges (first, last) of missing frames within a range of numbers."""
        return [(max(a, first), min(b, last)) for a, b in self.missing if a <= last and b >= first]

    def present_between(self, first: int, last: int) -> Iterator[int]:
        """Yield the numbers of the frames that exist within a range of numbers, ascending."""
        missing = {number for a, b in self.missing_between(first, last) for number in range(a, b + 1)}
        return (number for number in range(first, last + 1) if number not in missing)


class FrameFolderError(ValueError):
    """A folder whose files are not the frames of one video; the message says why."""


def list_frame_folder(folder: Path, fps: float) -> FrameFolder:
    """Return the frames in a folder, at `fps` frames per second.

    Numbering starts at 1, or at 0 where a frame 0 exists; absent numbers up to the last one are missing frames. Raises
    `FrameFolderError` where the files are not numbered alike, and `OSError` where the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        matches = [match for entry in entries if (match := _NAME.fullmatch(entry.name))]
    patterns = {(match[1], len(match[2]), match[3]) for match in matches}
    if not matches:
        raise FrameFolderError("a folder without numbered frames such as frame_0000000001.jpg")
    if len(patterns) > 1:
        names = ", ".join(sorted(f"{prefix}{'0' * digits}{suffix}" for prefix, digits, suffix in patterns)[:4])
        raise FrameFolderError(f"a folder whose frames have {len(patterns)} different file name patterns: {names}")
    ((prefix, digits, suffix),) = patterns
    numbers = sorted(int(match[2]) for match in matches)
    first = min(1, numbers[0])
    return FrameFolder(
        prefix=prefix,
        digits=digits,
        suffix=suffix,
        rate=Fraction(fps).limit_denominator(_MAX_DENOMINATOR),
        first=first,
        last=numbers[-1],
        missing=tuple(_gaps([first - 1, *numbers])),
    )


def folder_clock(frames: FrameFolder) -> VideoClock:
    """Return the clock of a folder: its packets are the files that exist, in order; each is a key frame."""
    numbers = np.array(list(frames.present_between(frames.first, frames.last)), np.int64)
    rate = float(frames.rate)
    return VideoClock(
        time_P=(numbers - frames.first) / rate,
        key_P=np.ones(len(numbers), bool),
        pos_P=np.full(len(numbers), -1),
        size_P=np.zeros(len(numbers), np.int64),
        raw_P=numbers,
        end=frames.count / rate,
        stated_end=frames.count / rate,
        step=1 / rate,
    )


def _gaps(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges (first, last) missing between ascending numbers."""
    for before, after in itertools.pairwise(numbers):
        if after - before > 1:
            yield before + 1, after - 1
