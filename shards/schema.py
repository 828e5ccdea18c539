"""The shard contract, version 1: what a sample is, in every set, field by field.

A sample is four members of a tar: `jpg`, `json`, `mp4`, `txt` (`MEMBERS`, in this order). The classes below are the
`json`: fields, types and units. Times are seconds, always floats; frames are counted from 0; there are no nulls; every
sample of a set has the same fields.

Stored frame i shows the source at `media_start + i / fps`. The clip itself is the stored frames
`first_frame … first_frame + clip_frames − 1`; what lies before and after is there because clips are cut at key frames.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 1
MEMBERS = ("jpg", "json", "mp4", "txt")


class SchemaError(ValueError):
    """A record that breaks the contract; the message names the field, the value and what would be right."""


@dataclass(frozen=True, kw_only=True)
class MediaRecord:
    """The fields that every sample of every set has: which stretch of which video, and how it is stored."""

    video_uid: str
    clip_start: float  # s from the source's first frame
    clip_end: float  # s
    media_start: float  # s, the time of stored frame 0
    first_frame: int  # index of the clip's first frame among the stored frames
    clip_frames: int  # how many stored frames are the clip
    num_frames: int  # how many frames are stored
    fps: float  # stored frames per second
    width: int  # pixels
    height: int  # pixels
    text: str  # the caption, equal to the `txt` member


@dataclass(frozen=True, kw_only=True)
class ClipRecord(MediaRecord):
    """A narrated clip: the sets `clips`, and the base of those that add to it."""

    narration_source: str  # narration_pass_1 | narration_pass_2
    narration_ind: int  # the narration's number within its pass, as the annotation counts
    narration_time: float  # s, the moment that the narrator marked
    tag_verb: list[int]  # verb classes, 0 … 117
    tag_noun: list[int]  # noun classes, 0 … 581
    segment: str  # <video_uid>_<floor(narration_time / 60)>, the neighbourhood for scene-aware negatives


@dataclass(frozen=True, kw_only=True)
class Narration:
    """A narration as a summary lists it; `key` is that of its sample in `clips`, packed or not."""

    key: str
    text: str
    clip_start: float  # s
    clip_end: float  # s
    tag_verb: list[int]
    tag_noun: list[int]


@dataclass(frozen=True, kw_only=True)
class SummaryRecord(ClipRecord):
    """A summary over minutes: the set `summaries`. Its video is the low-rate rendition of the whole span."""

    narrations: list[Narration]  # those inside the span, in time order


Record = MediaRecord
RECORDS: dict[str, type[MediaRecord]] = {"clips": ClipRecord, "summaries": SummaryRecord}
"""The record class of each set; a new set is a class and a line here."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample, ready to be written: its key, its record, the JPEG of a key frame and the clip's mp4."""

    key: str
    record: MediaRecord
    jpg: bytes
    mp4: bytes


def record_class(set_name: str) -> type[MediaRecord]:
    """Return the record class of a set; raise `SchemaError` for a set that the contract does not know."""
    try:
        return RECORDS[set_name]
    except KeyError:
        raise SchemaError(f"unknown set {set_name!r}; the contract knows {', '.join(RECORDS)}") from None


def to_json(record: MediaRecord) -> dict[str, Any]:
    """Return a record as a JSON-ready dict, fields in the order of their definition."""
    return dataclasses.asdict(record)


def from_json(set_name: str, value: Any) -> MediaRecord:
    """Return the record of a `json` member, checked field by field; raise `SchemaError` naming the field."""
    return typing.cast(MediaRecord, _check(record_class(set_name), value, where=set_name))


def check(set_name: str, record: MediaRecord) -> None:
    """Raise `SchemaError` where a record's types or its frame arithmetic break the contract."""
    from_json(set_name, to_json(record))
    if not 0 < record.clip_frames <= record.num_frames - record.first_frame or record.first_frame < 0:
        raise SchemaError(
            f"first_frame {record.first_frame} + clip_frames {record.clip_frames} do not lie within "
            f"num_frames {record.num_frames}"
        )
    if record.fps <= 0 or record.clip_end < record.clip_start:
        raise SchemaError(f"fps {record.fps}, clip {record.clip_start}–{record.clip_end} s: not a clip")


def list_depths_filled(value: Any) -> bool:
    """Return whether every list in a JSON value is filled, at every depth: what type-inferring readers need first."""
    if isinstance(value, dict):
        return all(list_depths_filled(item) for item in value.values())
    if isinstance(value, list):
        return bool(value) and all(list_depths_filled(item) for item in value)
    return True


def scalar_fields(set_name: str) -> dict[str, type]:
    """Return name and type (str, int or float) of a set's scalar fields: the columns of its parquet files."""
    hints = typing.get_type_hints(record_class(set_name))
    return {name: hint for name, hint in hints.items() if hint in (str, int, float)}


def _check(hint: Any, value: Any, *, where: str) -> Any:
    """Return `value` as `hint` says, dataclasses and lists included; raise `SchemaError` naming the place."""
    if dataclasses.is_dataclass(hint):
        cls = typing.cast(type, hint)
        hints = typing.get_type_hints(cls)
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: an object is expected, not {value!r}")
        if value.keys() != hints.keys():
            missing, extra = hints.keys() - value.keys(), value.keys() - hints.keys()
            raise SchemaError(f"{where}: missing fields {sorted(missing)}, unknown fields {sorted(extra)}")
        return cls(**{name: _check(h, value[name], where=f"{where}.{name}") for name, h in hints.items()})
    if typing.get_origin(hint) is list:
        (item_hint,) = typing.get_args(hint)
        if not isinstance(value, list):
            raise SchemaError(f"{where}: a list is expected, not {value!r}")
        return [_check(item_hint, item, where=f"{where}[{i}]") for i, item in enumerate(value)]
    if type(value) is not hint:
        raise SchemaError(f"{where}: {hint.__name__} is expected, not {value!r} ({type(value).__name__})")
    return value
