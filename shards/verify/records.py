"""Checks the record of a sample against the contract: its times, its frames, its key, its narrations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shards import schema
from shards.keys import escape_id, is_key

END_TOLERANCE = 0.5  # s by which an annotation may exceed its video unless dataset.json says otherwise
_SECONDS = 1e-3  # tolerance of times that annotations state
_FRAMES = 0.01  # tolerance of times in frames
_ACTIONS = 157  # classes of Charades-Ego


@dataclass(frozen=True, kw_only=True)
class Build:
    """What `dataset.json` says about every sample; None where it does not."""

    fps: float | None = None  # stored frames per second of sets that are not long
    summary_fps: float | None = None  # of the long sets
    short_side: int | None = None  # pixels, at most
    end_tolerance: float = END_TOLERANCE  # s

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Build:
        """Return what a parsed `dataset.json` says; its own faults are for others to find."""
        config = manifest.get("config")
        chunk = config.get("chunk") if isinstance(config, dict) else None
        chunk = chunk if isinstance(chunk, dict) else {}

        def number(value: Any, default: Any = None) -> Any:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            return value if is_number and value > 0 else default

        return cls(
            fps=number(chunk.get("fps")),
            summary_fps=number(chunk.get("summary_fps")),
            short_side=number(chunk.get("short_side")),
            end_tolerance=number(config.get("end_tolerance") if isinstance(config, dict) else None, END_TOLERANCE),
        )


def record_problems(set_name: str, key: str, record: schema.MediaRecord, build: Build) -> Iterator[str]:
    """Yield contradictions between the fields of a record, its key and what `dataset.json` says."""
    spec = schema.set_spec(set_name)
    start = f"{escape_id(record.video_uid)}_{spec.letter}"
    if not key.startswith(start):
        yield f"the key is not that of a sample of video {record.video_uid!r} in {set_name}, which starts with {start}"
    yield from _time_problems(record)
    rate = build.summary_fps if spec.is_long else build.fps
    if rate is not None and record.fps != rate:
        yield f"fps is {record.fps:g}; dataset.json says {rate:g} for {set_name}"
    if record.width % 2 or record.height % 2:
        yield f"the frame size {record.width}×{record.height} is odd, which 4:2:0 video cannot have"
    if build.short_side is not None and min(record.width, record.height) > build.short_side:
        size = f"{record.width}×{record.height}"
        yield f"the frame size is {size}; by dataset.json the short side has at most {build.short_side} pixels"
    if isinstance(record, schema.ClipRecord):
        segment = f"{record.video_uid}_{math.floor(record.narration_time / 60)}"
        if record.segment != segment:
            yield f"segment is {record.segment!r}; by narration_time it should be {segment!r}"
        if record.narration_time < 0:
            yield f"narration_time is {record.narration_time}, before the video's first frame"
    if isinstance(record, schema.SummaryRecord):
        yield from _narration_problems(record, build)
    if isinstance(record, schema.CharadesRecord) and not -1 <= record.action < _ACTIONS:
        yield f"action is {record.action}; expected −1 … {_ACTIONS - 1}"
    if isinstance(record, schema.HowToRecord) and record.label < 0:
        yield f"label is {record.label}; expected at least 0"


def _time_problems(record: schema.MediaRecord) -> Iterator[str]:
    """Yield times that no cut can have: see "Samples" in docs/shards.md."""
    frame = 1 / record.fps
    if record.clip_start < -_SECONDS:
        yield f"clip_start is {record.clip_start} s, before the video's first frame"
    if record.media_start < -frame * (1 + _FRAMES):
        yield f"media_start is {record.media_start} s, before the video's first frame"
    first = record.media_start + record.first_frame * frame
    end = first + record.clip_frames * frame
    slack = frame * _FRAMES + 1e-6 * max(1.0, abs(record.clip_end))
    if not first - slack <= record.clip_start < first + frame + slack:
        yield (
            f"its first frame shows {first:.3f} s (media_start {record.media_start:.3f} s, first_frame "
            f"{record.first_frame}, {record.fps:g}/s), but clip_start is {record.clip_start:.3f} s"
        )
    elif not end - frame - slack <= max(record.clip_end, first) <= end + slack:
        yield (
            f"its last frame ends at {end:.3f} s (clip_frames {record.clip_frames}, {record.fps:g}/s), but clip_end "
            f"is {record.clip_end:.3f} s"
        )


def _narration_problems(record: schema.SummaryRecord, build: Build) -> Iterator[str]:
    starts = [narration.clip_start for narration in record.narrations]
    if starts != sorted(starts):
        yield "the narrations are not in time order"
    seen: set[str] = set()
    for number, narration in enumerate(record.narrations):
        where = f"narrations[{number}]"
        if not is_key(narration.key):
            yield f"{where}: {narration.key[:100]!r} is not a valid key"
        elif not narration.key.startswith(f"{escape_id(record.video_uid)}_"):
            yield f"{where}: {narration.key} is not of this summary's video {record.video_uid!r}"
        if narration.key in seen:
            yield f"{where}: {narration.key} is repeated"
        seen.add(narration.key)
        if narration.clip_end < narration.clip_start:
            yield f"{where}: clip_end {narration.clip_end} s is before clip_start {narration.clip_start} s"
        first, last = record.clip_start - _SECONDS, record.clip_end + build.end_tolerance + _SECONDS
        if narration.clip_start < first or narration.clip_end > last:
            yield (
                f"{where}: {narration.clip_start}–{narration.clip_end} s is outside the summary's "
                f"{record.clip_start}–{record.clip_end} s"
            )
        for name, classes in (("tag_verb", schema.VERBS), ("tag_noun", schema.NOUNS)):
            value = getattr(narration, name)
            if not all(0 <= item < classes for item in value):
                yield f"{where}: {name} is {value}; classes are 0 … {classes - 1}"
