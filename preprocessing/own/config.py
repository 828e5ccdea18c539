"""The configuration section `captions`: how own videos and their captions are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """The names that a table gives to its columns; `video` and `caption` must exist, others are kept in `extra`."""

    video: str = "video"  # file name, path, or file name without extension
    start: str = "start"  # seconds or h:m:s; empty: the video's start
    end: str = "end"  # seconds or h:m:s; empty: the video's end
    caption: str = "caption"  # the text
    level: str = "level"  # clip or summary; empty: clip
    split: str = "split"  # train, val or test; empty: by captions.val_fraction
    verbs: str = "verbs"  # words or class numbers, separated by `;`, `,` or `|`, or a JSON list
    nouns: str = "nouns"  # as verbs

    def __post_init__(self) -> None:
        names = [name for name in vars(self).values() if name]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"captions.columns: two of them are called {repeated[0]!r}")
        if not (self.video and self.caption):
            raise ValueError("captions.columns: video and caption need a name")


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """How own videos are cut and split, and how their captions are read."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    subtitles: bool = True  # read SRT and VTT files beside the videos
    # Length of the windows, s, into which every video is cut where there are no captions at all.
    windows: Annotated[float, Field(ge=0.1, le=3600)] = 8.0
    val_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of the videos in the val split, chosen by hash
    seed: int = 0  # of that choice
