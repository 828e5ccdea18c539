"""What the embedded dataset is made from: its sizes, its seed, and the checks on them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

MIN_VIDEOS = 7  # the five special ones (see script.py), and at least two more to validate on
MIN_SECONDS = 20.0  # two activities and a chunk boundary fit

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"videos": 8, "seconds": 22.0, "activity_pairs": 2},
    "small": {"videos": 24, "seconds": 40.0, "activity_pairs": 6},
    "large": {"videos": 200, "seconds": 60.0, "activity_pairs": 8},
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The embedded dataset's size and looks. Fields left at None take the value of the preset `size`."""

    size: Literal["tiny", "small", "large"] = "small"  # tests | `make demo` | experiments
    seed: int = 0  # everything follows from it: the same config gives the same bytes
    videos: int | None = None  # how many, the missing and the damaged ones included
    seconds: float | None = None  # mean length of a video, s
    activity_pairs: int | None = None  # pairs of activities that are each other's actions in reverse, 2 to 8
    width: int = 320  # px, even
    height: int = 240  # px, even
    fps: int = 30  # frames/s of all videos but one, which has fps·1000/1001
    chunk_seconds: float = 10.0  # s; clips are laid across the first multiple of it
    frame_code: bool = False  # draw frame and video number as a strip of blocks: for tests, a shortcut for a learner

    def __post_init__(self) -> None:
        if self.size not in _PRESETS:
            raise ValueError(f"size = {self.size!r}: one of {', '.join(_PRESETS)} is expected")
        for name, value in _PRESETS[self.size].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.n_videos < MIN_VIDEOS:
            raise ValueError(f"videos = {self.videos!r}: at least {MIN_VIDEOS}, or the special ones do not fit")
        if not MIN_SECONDS <= self.mean_seconds <= 300:
            raise ValueError(f"seconds = {self.seconds!r}: {MIN_SECONDS:g} to 300 is expected")
        if self.activity_pairs is None or not 2 <= self.activity_pairs <= 8:
            raise ValueError(f"activity_pairs = {self.activity_pairs!r}: 2 to 8 is expected")
        for name in ("width", "height"):
            value = getattr(self, name)
            if value % 2 or not 96 <= value <= 1280:
                raise ValueError(f"{name} = {value!r}: an even number of pixels from 96 to 1280 is expected")
        if self.width < self.height:
            raise ValueError(f"width = {self.width!r}: less than height = {self.height!r}; the table is drawn wide")
        if not 10 <= self.fps <= 60:
            raise ValueError(f"fps = {self.fps!r}: 10 to 60 is expected")
        if not 4 <= self.chunk_seconds <= self.mean_seconds * 0.7:
            raise ValueError(
                f"chunk_seconds = {self.chunk_seconds!r}: 4 s to 0.7 · seconds ({0.7 * self.mean_seconds:g} s) is "
                "expected, so that clips lie across a boundary"
            )
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed!r}: zero or more is expected")

    @property
    def n_videos(self) -> int:
        assert self.videos is not None
        return self.videos

    @property
    def mean_seconds(self) -> float:
        assert self.seconds is not None
        return self.seconds

    @property
    def n_pairs(self) -> int:
        assert self.activity_pairs is not None
        return self.activity_pairs

    @property
    def odd_rate(self) -> Fraction:
        """The frame rate of the one video that differs, frames/s; 30000/1001 at the default `fps`."""
        return Fraction(self.fps * 1000, 1001)

    def identity(self) -> dict[str, Any]:
        """Return what the made data depends on: every field but the preset's name, which the numbers replace."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "size"}
