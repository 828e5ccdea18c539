"""Configuration of the embedded dataset: presets, sizes and the seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt

MIN_VIDEOS = 7  # the five special ones (see script.py) and two for validation
MIN_SECONDS = 20.0  # enough for two activities and a chunk boundary

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"videos": 8, "seconds": 22.0, "activity_pairs": 2},
    "small": {"videos": 24, "seconds": 40.0, "activity_pairs": 6},
    "large": {"videos": 200, "seconds": 60.0, "activity_pairs": 8},
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Size and appearance of the embedded dataset. Fields that are None take the value of the preset `size`."""

    size: Literal["tiny", "small", "large"] = "small"  # preset: for tests, for `make demo`, for experiments
    seed: NonNegativeInt = 0  # decides everything: the same configuration gives the same bytes
    videos: Annotated[int, Field(ge=MIN_VIDEOS)] | None = None  # number of videos, missing and damaged ones included
    seconds: Annotated[float, Field(ge=MIN_SECONDS, le=300)] | None = None  # mean length of a video, s
    # Pairs of activities that are each other's actions in reverse.
    activity_pairs: Annotated[int, Field(ge=2, le=8)] | None = None
    width: Annotated[int, Field(ge=96, le=1280, multiple_of=2)] = 320  # pixels, even
    height: Annotated[int, Field(ge=96, le=1280, multiple_of=2)] = 240  # pixels, even
    fps: Annotated[int, Field(ge=10, le=60)] = 30  # frames per second of all videos but one, which has fps·1000/1001
    chunk_seconds: Annotated[float, Field(ge=4)] = 10.0  # s; clips are laid across the first multiple of it
    frame_code: bool = False  # draw frame and video number as a strip of blocks: for tests, a shortcut for a learner

    def __post_init__(self) -> None:
        for name, value in _PRESETS[self.size].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.width < self.height:
            raise ValueError(f"width = {self.width!r}: less than height = {self.height!r}; the table is drawn wide")
        if self.chunk_seconds > self.mean_seconds * 0.7:
            raise ValueError(
                f"chunk_seconds = {self.chunk_seconds!r}: at most 0.7 · seconds ({0.7 * self.mean_seconds:g} s), "
                "so that clips cross a chunk boundary"
            )

    @property
    def n_videos(self) -> int:
        """The number of videos."""
        assert self.videos is not None
        return self.videos

    @property
    def mean_seconds(self) -> float:
        """The mean length of a video, s."""
        assert self.seconds is not None
        return self.seconds

    @property
    def n_pairs(self) -> int:
        """The number of pairs of activities."""
        assert self.activity_pairs is not None
        return self.activity_pairs

    @property
    def odd_rate(self) -> Fraction:
        """The frame rate of the video with a different one, frames/s; 30000/1001 at the default `fps`."""
        return Fraction(self.fps * 1000, 1001)

    def identity(self) -> dict[str, Any]:
        """Return the values that the data depend on: every field but the preset, whose values are included."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "size"}
