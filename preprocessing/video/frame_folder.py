"""Folders of numbered pictures as sources: `<video_uid>/frame_0000000001.jpg`, as EPIC-KITCHENS publishes them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

_NAME = re.compile(r"(.*?)(\d{1,12})(\.jpe?g)", re.IGNORECASE)
_MAX_DENOMINATOR = 1001  # the rates of cameras are n/1 or n/1001


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """Pictures that are the frames of one video: picture `first` is shown at 0 s, each next one 1/rate s later."""

    prefix: str  # frame_
    digits: int  # numbers are padded to so many
    suffix: str  # .jpg
    rate: Fraction  # pictures per second
    first: int
    last: int
    missing: tuple[tuple[int, int], ...]  # stretches of numbers between them (first, last) of which there is no file

    @property
    def count(self) -> int:
        """How many pictures there would be if none were missing."""
        return self.last - self.first + 1

    def name(self, number: int) -> str:
        """Return the file name of a picture."""
        return f"{self.prefix}{number:0{self.digits}d}{self.suffix}"

    def number_at(self, seconds: float) -> int:
        """Return the number of the picture that is shown at a time."""
        return min(self.first + int(seconds * self.rate), self.last)

    def time_of(self, number: int) -> float:
        """Return when a picture is first shown, in s."""
        return float((number - self.first) / self.rate)

    def missing_between(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the missing stretches (first, last) that lie in a range of numbers, cut to it."""
        return [(max(a, first), min(b, last)) for a, b in self.missing if a <= last and b >= first]


class NoPicturesError(ValueError):
    """A folder that is no video in pictures; the message says what it holds or lacks."""


def list_pictures(folder: Path, fps: float) -> PictureFolder:
    """Return what a folder holds; raise `NoPicturesError` where its files are no numbered pictures.

    Numbers count from 1 (from 0 where there is a picture 0): what is wanting before the first is missing. `fps` is how
    many pictures make a second.
    """
    with os.scandir(folder) as entries:
        matches = [match for entry in entries if (match := _NAME.fullmatch(entry.name))]
    kinds = {(match[1], len(match[2]), match[3]) for match in matches}
    if not matches:
        raise NoPicturesError("a folder without pictures such as frame_0000000001.jpg")
    if len(kinds) > 1:
        names = ", ".join(sorted(f"{prefix}{'0' * digits}{suffix}" for prefix, digits, suffix in kinds)[:4])
        raise NoPicturesError(f"a folder whose pictures are named in {len(kinds)} ways: {names}")
    ((prefix, digits, suffix),) = kinds
    numbers = sorted(int(match[2]) for match in matches)
    first = min(1, numbers[0])
    return PictureFolder(
        prefix=prefix,
        digits=digits,
        suffix=suffix,
        rate=Fraction(fps).limit_denominator(_MAX_DENOMINATOR),
        first=first,
        last=numbers[-1],
        missing=tuple(_holes([first - 1, *numbers])),
    )


def link_all(pictures: PictureFolder, folder: Path, into: Path, first: int, last: int) -> None:
    """Fill `into` with links to the pictures `first … last`, a missing one's to the picture before it.

    A row without holes is what ffmpeg reads; what stands in for a missing picture is accounted for as damage.
    """
    into.mkdir()
    holes = {number for a, b in pictures.missing_between(pictures.first, pictures.last) for number in range(a, b + 1)}
    sound = next(number for number in range(pictures.first, pictures.last + 1) if number not in holes)
    for number in range(pictures.first, last + 1):
        sound = sound if number in holes else number
        if number >= first:
            (into / pictures.name(number)).symlink_to((folder / pictures.name(sound)).absolute())


def _holes(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the stretches (first, last) that ascending numbers leave out between them."""
    for before, after in itertools.pairwise(numbers):
        if after - before > 1:
            yield before + 1, after - 1
