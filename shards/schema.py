"""The shard contract, version 1: what a sample is, in every set, field by field.

A sample is four members of a tar: `jpg`, `json`, `mp4`, `txt` (`MEMBERS`, in this order). The classes below are the
`json`: fields, types and units. Times are seconds, always floats; frames are counted from 0; there are no nulls; every
sample of a set has the same fields.

Stored frame i shows the source at `media_start + i / fps`. The clip itself is the stored frames
`first_frame … first_frame + clip_frames − 1`; what lies before and after is there because clips are cut at key frames.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import reprlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

SCHEMA_VERSION = 1
MEMBERS = ("jpg", "json", "mp4", "txt")
QUESTIONS, LABELS = "questions.json", "labels.json"  # beside a benchmark's shards; shards/companions.py reads them


class SchemaError(ValueError):
    """A record that breaks the contract; the message names the field, the value and what would be right."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class MediaRecord:
    """The fields that every sample of every set has: which stretch of which video, and how it is stored."""

    video_uid: Annotated[str, "the source video"]
    clip_start: Annotated[float, "s from the source's first frame"]
    clip_end: Annotated[float, "s from the source's first frame"]
    media_start: Annotated[float, "s, the source time of stored frame 0"]
    first_frame: Annotated[int, "index of the clip's first frame among the stored frames"]
    clip_frames: Annotated[int, "how many stored frames are the clip"]
    num_frames: Annotated[int, "how many frames are stored"]
    fps: Annotated[float, "stored frames per second"]
    width: Annotated[int, "pixels"]
    height: Annotated[int, "pixels"]
    text: Annotated[str, "the caption, equal to the txt member"]


@dataclass(frozen=True, kw_only=True)
class ClipRecord(MediaRecord):
    """A narrated clip: the sets `clips`, and the base of those that add to it."""

    narration_source: Annotated[str, "narration_pass_1 or narration_pass_2"]
    narration_ind: Annotated[int, "the narration's number within its pass, as the annotation counts"]
    narration_time: Annotated[float, "s, the moment that the narrator marked"]
    tag_verb: Annotated[list[int], "verb classes, 0 … 117"]
    tag_noun: Annotated[list[int], "noun classes, 0 … 581"]
    segment: Annotated[str, "<video_uid>_<floor(narration_time / 60)>, the neighbourhood for scene-aware negatives"]


@dataclass(frozen=True, kw_only=True)
class Narration:
    """A narration as a summary lists it; `key` is that of its sample in `clips`, packed or not."""

    key: Annotated[str, "the key of its sample in clips, packed or not"]
    text: Annotated[str, "the narration"]
    clip_start: Annotated[float, "s from the source's first frame"]
    clip_end: Annotated[float, "s from the source's first frame"]
    tag_verb: Annotated[list[int], "verb classes, 0 … 117"]
    tag_noun: Annotated[list[int], "noun classes, 0 … 581"]


@dataclass(frozen=True, kw_only=True)
class SummaryRecord(ClipRecord):
    """A summary over minutes: the set `summaries`. Its video is the low-rate rendition of the whole span."""

    narrations: Annotated[list[Narration], "those inside the span, in time order"]


@dataclass(frozen=True, kw_only=True)
class ChoiceRecord(MediaRecord):
    """A clip that multiple-choice questions name: the sets `egomcq` and `summarymcq`. The questions lie beside them."""


@dataclass(frozen=True, kw_only=True)
class EpicRecord(MediaRecord):
    """An action of EPIC-KITCHENS-100's multi-instance retrieval: the set `epic_mir`."""

    narration_id: Annotated[str, "the annotation's own name, as P01_11_0"]
    verb_class: Annotated[int, "0 … 96"]
    noun_classes: Annotated[list[int], "all noun classes of the narration, 0 … 299"]


@dataclass(frozen=True, kw_only=True)
class CharadesRecord(MediaRecord):
    """An action segment (train) or a whole video (test) of Charades-Ego: the set `charades_ego`."""

    action: Annotated[int, "the segment's class, 0 … 156; −1 of a whole video, whose classes labels.json has"]


@dataclass(frozen=True, kw_only=True)
class HowToRecord(MediaRecord):
    """A long video to be classified: the set `howto100m`. Its video is the low-rate rendition of the whole span."""

    label: Annotated[int, "the class of the video, from 0"]


Record = MediaRecord


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """What makes a set what it is; everything that treats sets unlike asks here."""

    record: type[MediaRecord]
    title: str
    letter: str  # in the keys of its samples
    splits: tuple[str, ...]
    is_long: bool = False  # minutes long: the low-rate rendition, read as K windows; else read as T frames of the clip
    is_benchmark: bool = True  # its files say the split of each item, and no exclusion of videos touches it
    companions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # split → file beside its shards


SETS: dict[str, SetSpec] = {
    "clips": SetSpec(
        record=ClipRecord,
        title="one sample per narration",
        letter="c",
        splits=("train", "val"),
        is_benchmark=False,
    ),
    "summaries": SetSpec(
        record=SummaryRecord,
        title="one sample per summary, over minutes",
        letter="s",
        splits=("train", "val"),
        is_long=True,
        is_benchmark=False,
    ),
    "egomcq": SetSpec(
        record=ChoiceRecord,
        title="the distinct clips of EgoMCQ's questions",
        letter="q",
        splits=("test",),
        companions={"test": QUESTIONS},
    ),
    "summarymcq": SetSpec(
        record=ChoiceRecord,
        title="the distinct spans of SummaryMCQ's questions, over minutes",
        letter="m",
        splits=("test",),
        is_long=True,
        companions={"test": QUESTIONS},
    ),
    "epic_mir": SetSpec(
        record=EpicRecord,
        title="the distinct actions of EPIC-KITCHENS-100 multi-instance retrieval",
        letter="e",
        splits=("train", "test"),
        companions={"train": LABELS, "test": LABELS},
    ),
    "charades_ego": SetSpec(
        record=CharadesRecord,
        title="the action segments (train) and the whole videos (test) of Charades-Ego",
        letter="a",
        splits=("train", "test"),
        companions={"test": LABELS},
    ),
    "howto100m": SetSpec(
        record=HowToRecord,
        title="the long videos of HowTo100M's classification, over minutes",
        letter="h",
        splits=("train", "val"),
        is_long=True,
        companions={"train": LABELS, "val": LABELS},
    ),
}
"""Every set, in the order in which they are listed; a new set is a record class and an entry here."""

RECORDS: dict[str, type[MediaRecord]] = {name: spec.record for name, spec in SETS.items()}
"""The record class of each set."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample, ready to be written: its key, its record, the JPEG of a key frame and the clip's mp4."""

    key: str
    record: MediaRecord
    jpg: bytes
    mp4: bytes


def set_spec(set_name: str) -> SetSpec:
    """Return what makes a set what it is; raise `SchemaError` for a set that the contract does not know."""
    try:
        return SETS[set_name]
    except KeyError:
        raise SchemaError(f"unknown set {set_name!r}; the contract knows {', '.join(SETS)}") from None


def record_class(set_name: str) -> type[MediaRecord]:
    """Return the record class of a set; raise `SchemaError` for a set that the contract does not know."""
    return set_spec(set_name).record


def own_fields(set_name: str) -> dict[str, Any]:
    """Return name → type of the fields that a set's records have beyond those of every set."""
    common, hints = _hints(typing.cast(type, MediaRecord)), _hints(typing.cast(type, record_class(set_name)))
    return {name: hint for name, hint in hints.items() if name not in common}


def to_json(record: Any) -> dict[str, Any]:
    """Return a record (or a narration in one) as a JSON-ready dict, fields in the order of their definition."""
    return {name: _plain(getattr(record, name)) for name in _hints(typing.cast(type, type(record)))}


def _plain(value: Any) -> Any:
    """Return a field as JSON writes it; `dataclasses.asdict` would copy every text, at ten times the cost."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return to_json(value) if dataclasses.is_dataclass(value) else value


def to_bytes(record: MediaRecord) -> bytes:
    """Return the bytes of a record's `json` member: UTF-8, no spaces, fields in order, the same for the same record."""
    return json.dumps(to_json(record), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def from_json(set_name: str, value: Any) -> MediaRecord:
    """Return the record of a `json` member, checked field by field; raise `SchemaError` naming the field."""
    return typing.cast(MediaRecord, _check(record_class(set_name), value, where=set_name))


def check(set_name: str, record: MediaRecord) -> None:
    """Raise `SchemaError` where a record's types or its frame arithmetic break the contract."""
    if type(record) is not record_class(set_name):
        raise SchemaError(f"a {record_class(set_name).__name__} is expected, not a {type(record).__name__}")
    from_json(set_name, to_json(record))
    if not 0 < record.clip_frames <= record.num_frames - record.first_frame or record.first_frame < 0:
        raise SchemaError(
            f"first_frame {record.first_frame} + clip_frames {record.clip_frames} do not lie within "
            f"num_frames {record.num_frames}"
        )
    if record.fps <= 0 or record.clip_end < record.clip_start:
        raise SchemaError(f"fps {record.fps}, clip {record.clip_start}–{record.clip_end} s: not a clip")
    if record.width <= 0 or record.height <= 0:
        raise SchemaError(f"width {record.width}, height {record.height}: not a picture")


def list_depths_filled(value: Any) -> bool:
    """Return whether every list in a JSON value is filled, at every depth: what type-inferring readers need first."""
    if isinstance(value, dict):
        return all(list_depths_filled(item) for item in value.values())
    if isinstance(value, list):
        return bool(value) and all(list_depths_filled(item) for item in value)
    return True


def scalar_fields(set_name: str) -> dict[str, type]:
    """Return name and type (str, int or float) of a set's scalar fields: the columns of its parquet files."""
    hints = _hints(typing.cast(type, record_class(set_name)))
    return {name: hint for name, hint in hints.items() if hint in (str, int, float)}


def field_docs(set_name: str) -> dict[str, tuple[str, str]]:
    """Return name → (type, meaning) of a set's fields in order; those inside lists are named as `narrations[].key`."""
    return dict(_field_docs(record_class(set_name), prefix=""))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the bare types of a record's fields: looked up for each of millions of records, so remembered."""
    return typing.get_type_hints(cls)


def _short(value: Any) -> str:
    """Return a value as an error message quotes it: the whole of a hostile one could be gigabytes."""
    return reprlib.repr(value)


def _field_docs(cls: type, *, prefix: str) -> list[tuple[str, tuple[str, str]]]:
    docs: list[tuple[str, tuple[str, str]]] = []
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        kind, meaning = typing.get_args(hint)
        (item,) = typing.get_args(kind) or (None,)
        element = "object" if dataclasses.is_dataclass(item) else getattr(item, "__name__", "")
        docs.append((f"{prefix}{name}", (f"list[{element}]" if item else kind.__name__, meaning)))
        if dataclasses.is_dataclass(item):
            docs += _field_docs(typing.cast(type, item), prefix=f"{prefix}{name}[].")
    return docs


def _check(hint: Any, value: Any, *, where: str) -> Any:
    """Return `value` as `hint` says, dataclasses and lists included; raise `SchemaError` naming the place."""
    if dataclasses.is_dataclass(hint):
        cls = typing.cast(type, hint)
        hints = _hints(cls)
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: an object is expected, not {_short(value)}")
        if value.keys() != hints.keys():
            missing, extra = hints.keys() - value.keys(), value.keys() - hints.keys()
            raise SchemaError(f"{where}: missing fields {sorted(missing)}, unknown fields {sorted(extra)}")
        return cls(**{name: _check(h, value[name], where=f"{where}.{name}") for name, h in hints.items()})
    if typing.get_origin(hint) is list:
        (item_hint,) = typing.get_args(hint)
        if not isinstance(value, list):
            raise SchemaError(f"{where}: a list is expected, not {_short(value)}")
        return [_check(item_hint, item, where=f"{where}[{i}]") for i, item in enumerate(value)]
    if type(value) is not hint:
        raise SchemaError(f"{where}: {hint.__name__} is expected, not {_short(value)} ({type(value).__name__})")
    if hint is float and not math.isfinite(value):
        raise SchemaError(f"{where}: a finite number is expected, not {value!r}")
    if hint is int and not -(2**63) <= value < 2**63:
        raise SchemaError(f"{where}: {_short(value)} does not fit in 64 bits")
    if hint is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SchemaError(f"{where}: {_short(value)} holds a lone surrogate, which UTF-8 cannot write") from None
    return value
