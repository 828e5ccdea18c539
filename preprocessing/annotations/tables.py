"""The tables of all annotations: videos, the items of each set, and the rejected rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from shards.schema import SETS, own_fields

VIDEO_SCHEMA = pa.schema(
    [
        ("video_uid", pa.string()),
        ("duration", pa.float64()),  # s; NaN where no annotation states it
        ("is_stereo", pa.bool_()),
        ("split", pa.string()),  # train | val | test
    ]
)

NARRATION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the sample's key (shards.keys)
        ("video_uid", pa.string()),
        ("narration_source", pa.string()),  # narration_pass_1 | narration_pass_2
        ("narration_ind", pa.int64()),
        ("narration_time", pa.float64()),  # s
        ("clip_start", pa.float64()),  # s
        ("clip_end", pa.float64()),  # s
        ("text", pa.string()),
        ("tag_verb", pa.list_(pa.int32())),
        ("tag_noun", pa.list_(pa.int32())),
    ]
)
SUMMARY_SCHEMA = NARRATION_SCHEMA

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), list[int]: pa.list_(pa.int32())}


def _benchmark_items(set_name: str) -> pa.Schema:
    """Return the columns of a benchmark's items: common columns, then the set's own fields."""
    common = [
        ("key", pa.string()),
        ("video_uid", pa.string()),
        ("split", pa.string()),
        ("clip_start", pa.float64()),  # s
        ("clip_end", pa.float64()),  # s; infinite: to the end of the video
        ("text", pa.string()),
    ]
    return pa.schema([*common, *((name, _ARROW[kind]) for name, kind in own_fields(set_name).items())])


ITEM_SCHEMAS: dict[str, pa.Schema] = {
    "clips": NARRATION_SCHEMA,
    "summaries": SUMMARY_SCHEMA,
    **{name: _benchmark_items(name) for name, spec in SETS.items() if spec.is_benchmark},
}
"""Set → the columns of its table of items."""

REJECT_SCHEMA = pa.schema(
    [
        ("set", pa.string()),  # clips | summaries | videos | a benchmark
        ("item", pa.string()),  # the key, where the row has one that no other row has; otherwise file:line
        ("video_uid", pa.string()),  # empty where unreadable
        ("status", pa.string()),  # filtered (by a rule) | failed (malformed)
        ("reason", pa.string()),  # kind of problem, under which rows are counted, such as `empty text`
        ("detail", pa.string()),  # file, line and value
    ]
)

NARRATION_PASSES = ("narration_pass_1", "narration_pass_2")  # the values of narration_source; pass n is item n − 1
MAX_SECONDS = 1e7  # s (115 days); larger times are malformed


class AnnotationError(ValueError):
    """An annotation file that cannot be used as a whole; the message names the file, the problem and the remedy."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class OwnVideos:
    """What the captions of own videos say besides the items, for `provenance` in `dataset.json`."""

    taxonomy: dict[str, list[str]]  # verbs, nouns → the name of each class; empty where the table has numbers or none
    extra_columns: tuple[str, ...]  # names in the records' `extra`
    excluded: dict[str, str]  # uid of a video that `annotations.exclude` names → the file that lists it
    clamped: int  # captions that ended after their video, within the tolerance, and were cut at its end


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The content of the configured annotation files, as Arrow tables of the schemas above.

    Tables of `sets` are sorted by (video_uid, clip_start, key), `videos` by video_uid and `rejects` by (set, item).
    Keys are unique over all sets, (set, item) over rejects. Every input row is in exactly one table of `sets` or in
    `rejects`; `input_rows` has the counts to check that.
    """

    videos: pa.Table  # VIDEO_SCHEMA
    sets: dict[str, pa.Table]  # set → its items (ITEM_SCHEMAS), for each set that the files describe
    rejects: pa.Table  # REJECT_SCHEMA
    sources: dict[str, str]  # annotation file → sha256 of its bytes
    input_rows: dict[str, int]  # set → rows in its files; "videos" → rows of the metadata file
    alpha: float | None  # s, the mean gap by which EgoClip's rule scales clips; None where the files state clips
    companions: dict[str, Any] = field(default_factory=dict)  # path below the dataset's root → JSON value
    frame_rates: dict[str, float] = field(default_factory=dict)  # uid → frames/s of the annotations' frame numbers
    ignored: tuple[str, ...] = ()  # a sentence for each column whose values are hints and could not all be read
    own: OwnVideos | None = None  # what is known of own videos besides

    @property
    def narrations(self) -> pa.Table:
        """The items of `clips`; an empty table where the files have none."""
        return self.sets.get("clips", NARRATION_SCHEMA.empty_table())

    @property
    def summaries(self) -> pa.Table:
        """The items of `summaries`; an empty table where the files have none."""
        return self.sets.get("summaries", SUMMARY_SCHEMA.empty_table())
