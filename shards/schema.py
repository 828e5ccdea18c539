"""The shard contract, version 1: the sets, and the fields of their samples.

A sample is four members of a tar, in this order (`MEMBERS`): `jpg`, `json`, `mp4`, `txt`. The record classes define the
`json` member: fields, types and units. Times are seconds and always floats, frames are counted from 0, there are no
nulls, and every sample of a set has the same fields; one with a default (`extra`) is left out where it has that value.

Stored frame i shows the source video at `media_start + i / fps`. The clip itself is the stored frames
`first_frame … first_frame + clip_frames − 1`; others surround it because videos are cut at key frames.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from shards import typed_json

SCHEMA_VERSION = 1
MEMBERS = ("jpg", "json", "mp4", "txt")
VERBS, NOUNS = 118, 582  # classes of EgoClip's narrations
EPIC_VERBS, EPIC_NOUNS = 97, 300  # classes of EPIC-KITCHENS-100
CLASSES = {"tag_verb": VERBS, "tag_noun": NOUNS, "verb_class": EPIC_VERBS, "noun_classes": EPIC_NOUNS}
"""The number of classes of each field of a record that holds classes."""
MAX_FRAMES = 1 << 20  # of a sample: ten hours at 30 frames/s
MAX_SIDE = 1 << 14  # pixels: the largest frame that H.264 has levels for
MIN_FPS, MAX_FPS = 1e-3, 1e3  # stored frames per second
QUESTIONS, LABELS = "questions.json", "labels.json"  # companion files of a benchmark's shards: see shards/companions.py


class SchemaError(ValueError):
    """A record that violates the contract; the message names the field, its value and what is expected."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class MediaRecord:
    """The fields that all sets share: the source interval, and how its frames are stored."""

    video_uid: Annotated[str, "the source video"]
    clip_start: Annotated[float, "s from the source's first frame"]
    clip_end: Annotated[float, "s from the source's first frame"]
    media_start: Annotated[float, "source time of stored frame 0, in s"]
    first_frame: Annotated[int, "index of the clip's first frame among the stored frames"]
    clip_frames: Annotated[int, "number of stored frames that belong to the clip"]
    num_frames: Annotated[int, "number of stored frames"]
    fps: Annotated[float, "stored frames per second"]
    width: Annotated[int, "pixels"]
    height: Annotated[int, "pixels"]
    text: Annotated[str, "the caption; the txt member repeats it"]


@dataclass(frozen=True, kw_only=True)
class ClipRecord(MediaRecord):
    """A narrated clip of the set `clips`; the base of `SummaryRecord`."""

    narration_source: Annotated[str, "narration_pass_1 or narration_pass_2"]
    narration_ind: Annotated[int, "number of the narration within its pass, from the annotation"]
    narration_time: Annotated[float, "the time that the narrator marked, in s"]
    tag_verb: Annotated[list[int], "verb classes, 0 … 117"]
    tag_noun: Annotated[list[int], "noun classes, 0 … 581"]
    segment: Annotated[str, "<video_uid>_<floor(narration_time / 60)>: scene-aware negatives share it"]
    extra: Annotated[dict[str, str], "further columns of a table of own captions, as text; absent without any"] = (
        dataclasses.field(default_factory=dict)
    )


@dataclass(frozen=True, kw_only=True)
class Narration:
    """A narration within a summary."""

    key: Annotated[str, "key of its sample in clips, whether or not that was packed"]
    text: Annotated[str, "the narration"]
    clip_start: Annotated[float, "s from the source's first frame"]
    clip_end: Annotated[float, "s from the source's first frame"]
    tag_verb: Annotated[list[int], "verb classes, 0 … 117"]
    tag_noun: Annotated[list[int], "noun classes, 0 … 581"]


@dataclass(frozen=True, kw_only=True)
class SummaryRecord(ClipRecord):
    """A summary of minutes of video, in the set `summaries`; the mp4 is the low-rate rendition of the whole span."""

    narrations: Annotated[list[Narration], "the narrations within the span, in time order"]


@dataclass(frozen=True, kw_only=True)
class ChoiceRecord(MediaRecord):
    """A choice of multiple-choice questions, in the sets `egomcq` and `summarymcq`; questions.json names it by key."""


@dataclass(frozen=True, kw_only=True)
class EpicRecord(MediaRecord):
    """An action of EPIC-KITCHENS-100 multi-instance retrieval, in the set `epic_mir`."""

    narration_id: Annotated[str, "identifier in the annotation, such as P01_11_0"]
    verb_class: Annotated[int, "0 … 96"]
    noun_classes: Annotated[list[int], "all noun classes of the narration, 0 … 299"]


@dataclass(frozen=True, kw_only=True)
class CharadesRecord(MediaRecord):
    """An action segment (train) or a whole video (test) of Charades-Ego, in the set `charades_ego`."""

    action: Annotated[int, "class of the segment, 0 … 156; −1 for a whole video, whose classes are in labels.json"]


@dataclass(frozen=True, kw_only=True)
class HowToRecord(MediaRecord):
    """A long video to classify, in the set `howto100m`; the mp4 is the low-rate rendition of the whole span."""

    label: Annotated[int, "class of the video, from 0"]


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """The properties of a set: code that treats sets differently decides by these, not by the set's name."""

    record: type[MediaRecord]
    title: str  # completes "the samples are …" in listings
    letter: str  # marks the set in the keys of its samples
    splits: tuple[str, ...]
    is_long: bool = False  # minutes of low-rate video, read as K windows; otherwise T frames of the clip are read
    is_benchmark: bool = True  # the annotation files assign the splits; exclusion lists of videos do not apply
    companions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # split → file name of questions or labels


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
"""Every set by name, in listing order. A new set needs a record class and an entry here."""

RECORDS: dict[str, type[MediaRecord]] = {name: spec.record for name, spec in SETS.items()}
"""The record class of each set."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample, ready to be written."""

    key: str
    record: MediaRecord
    jpg: bytes  # a key frame of the clip
    mp4: bytes


def set_spec(set_name: str) -> SetSpec:
    """Return the properties of a set; raise `SchemaError` for an unknown name."""
    try:
        return SETS[set_name]
    except KeyError:
        raise SchemaError(f"unknown set {set_name!r}; known sets: {', '.join(SETS)}") from None


def record_class(set_name: str) -> type[MediaRecord]:
    """Return the record class of a set; raise `SchemaError` for an unknown name."""
    return set_spec(set_name).record


def own_fields(set_name: str) -> dict[str, Any]:
    """Return name → type of the fields of a set's records that `MediaRecord` does not have."""
    common = typed_json.field_types(MediaRecord)
    return {name: kind for name, kind in typed_json.field_types(record_class(set_name)).items() if name not in common}


def to_json(record: MediaRecord) -> dict[str, Any]:
    """Return a record as a JSON-ready dict, fields in the order of definition."""
    return typing.cast(dict[str, Any], typed_json.dump(record))


def to_bytes(record: MediaRecord) -> bytes:
    """Return a record's `json` member: UTF-8, no spaces, fields in order; equal records give equal bytes."""
    return json.dumps(to_json(record), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def from_json(set_name: str, value: Any) -> MediaRecord:
    """Return the record of a parsed `json` member; raise `SchemaError` naming the field whose type is wrong.

    Relations between fields are not checked here but by `check`.
    """
    try:
        return typed_json.parse(record_class(set_name), value)
    except typed_json.TypedJsonError as error:
        raise SchemaError(f"{set_name}{error.path}: {error.problem}") from None


def check(set_name: str, record: MediaRecord) -> None:
    """Raise `SchemaError` if a record's types, frame numbers, interval or size violate the contract."""
    if type(record) is not record_class(set_name):
        raise SchemaError(f"expected a {record_class(set_name).__name__}, got a {type(record).__name__}")
    from_json(set_name, to_json(record))
    check_values(record)


def check_values(record: MediaRecord) -> None:
    """Raise `SchemaError` if the values of a record, whose types are right, cannot be those of any sample.

    The loader calls it for every sample, so it takes microseconds; `shards.verify` also compares with everything else.
    """
    if not 0 < record.clip_frames <= record.num_frames - record.first_frame or record.first_frame < 0:
        raise SchemaError(
            f"first_frame = {record.first_frame} and clip_frames = {record.clip_frames} exceed the "
            f"num_frames = {record.num_frames} stored frames, or are not positive"
        )
    if record.num_frames > MAX_FRAMES:
        raise SchemaError(f"num_frames = {record.num_frames}; at most {MAX_FRAMES} can be stored")
    if not MIN_FPS <= record.fps <= MAX_FPS or record.clip_end < record.clip_start:
        raise SchemaError(
            f"invalid fps or clip interval: fps = {record.fps}, {record.clip_start} s to {record.clip_end} s"
        )
    if not (2 <= record.width <= MAX_SIDE and 2 <= record.height <= MAX_SIDE):
        raise SchemaError(f"invalid frame size: width = {record.width}, height = {record.height}")
    for name, classes in CLASSES.items():
        value = getattr(record, name, [])
        if not all(0 <= item < classes for item in (value if isinstance(value, list) else [value])):
            raise SchemaError(f"{name} = {value}; classes are 0 … {classes - 1}")


def list_depths_filled(value: Any) -> bool:
    """Return whether no list in a JSON value is empty, at any depth, so that readers can infer all types from it."""
    if isinstance(value, dict):
        return all(list_depths_filled(item) for item in value.values())
    if isinstance(value, list):
        return bool(value) and all(list_depths_filled(item) for item in value)
    return True


def scalar_fields(set_name: str) -> dict[str, type]:
    """Return name → type of a set's `str`, `int` and `float` fields, which are columns of its parquet files."""
    types = typed_json.field_types(record_class(set_name))
    return {name: kind for name, kind in types.items() if kind in (str, int, float)}


def field_docs(set_name: str) -> dict[str, tuple[str, str]]:
    """Return name → (type, meaning) of a set's fields in order; nested fields are named like `narrations[].key`."""
    return dict(_field_docs(record_class(set_name), prefix=""))


def _field_docs(cls: type, *, prefix: str) -> list[tuple[str, tuple[str, str]]]:
    docs: list[tuple[str, tuple[str, str]]] = []
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        kind, meaning = typing.get_args(hint)
        if typing.get_origin(kind) is dict:
            docs.append((f"{prefix}{name}", ("object of str", meaning)))
            continue
        (item,) = typing.get_args(kind) or (None,)
        element = "object" if dataclasses.is_dataclass(item) else getattr(item, "__name__", "")
        docs.append((f"{prefix}{name}", (f"list[{element}]" if item else kind.__name__, meaning)))
        if dataclasses.is_dataclass(item):
            docs += _field_docs(typing.cast(type, item), prefix=f"{prefix}{name}[].")
    return docs
