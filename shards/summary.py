"""Statistics of a split, computed from its parquet files: samples, hours, bytes, videos and clip lengths."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass

import pyarrow.compute as pc

from shards.dataset import Split

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)  # of clip lengths
# Control characters, line separators, changes of writing direction, and lone surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Statistics of one split."""

    set_name: str
    split: str
    shards: int
    samples: int
    failed: int
    clip_hours: float  # total duration of the clips
    stored_hours: float  # total duration of the stored frames, including those around the clips
    bytes: int  # of the tars
    videos: int
    clip_seconds: tuple[float, ...]  # clip lengths at PERCENTILES; empty without samples
    fingerprint: str

    @property
    def bytes_per_sample(self) -> float:
        """Bytes of the tars per sample, including headers and padding."""
        return self.bytes / self.samples if self.samples else 0.0


def summarize(split: Split) -> SplitSummary:
    """Return the statistics of a split; reads its parquet files, not its tars."""
    rows = split.rows(["video_uid", "clip_frames", "num_frames", "fps"])
    clip_seconds = pc.divide(pc.cast(rows["clip_frames"], "float64", safe=False), rows["fps"])
    stored_seconds = pc.divide(pc.cast(rows["num_frames"], "float64", safe=False), rows["fps"])
    quantiles = pc.quantile(clip_seconds, [q / 100 for q in PERCENTILES]) if len(rows) else []
    return SplitSummary(
        set_name=split.set_name,
        split=split.split,
        shards=len(split.shards),
        samples=split.samples,
        failed=split.failed,
        clip_hours=(pc.sum(clip_seconds).as_py() or 0.0) / 3600,
        stored_hours=(pc.sum(stored_seconds).as_py() or 0.0) / 3600,
        bytes=split.bytes,
        videos=pc.count_distinct(rows["video_uid"]).as_py(),
        clip_seconds=tuple(value.as_py() for value in quantiles),
        fingerprint=split.fingerprint,
    )


def human_bytes(count: float) -> str:
    """Return a number of bytes in powers of 1000, such as `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit returns")


def human_hours(hours: float) -> str:
    """Return a duration in hours, minutes or seconds, whichever is the largest unit that it fills: `3.5 min`."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def printable(text: object, *, limit: int = 1000) -> str:
    """Return untrusted text as one line of at most `limit` characters that a terminal only shows."""
    whole = str(text)
    short = whole if len(whole) <= limit else f"{whole[:limit]}… ({len(whole)} characters)"
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", short.replace("\n", " "))


def print_any_text() -> None:
    """Let stdout and stderr print text that their encoding lacks, such as ASCII in a batch job, in escaped form."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
