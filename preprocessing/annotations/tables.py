"""The tables that every annotation reader returns: videos, narrations, summaries, and the rows it could not use."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

VIDEOS = pa.schema(
    [
        ("video_uid", pa.string()),
        ("duration", pa.float64()),  # s; NaN where no annotation states it
        ("is_stereo", pa.bool_()),
        ("split", pa.string()),  # train | val | test
    ]
)

_ANNOTATION = [
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
NARRATIONS = pa.schema(_ANNOTATION)
SUMMARIES = pa.schema(_ANNOTATION)

REJECTS = pa.schema(
    [
        ("set", pa.string()),  # clips | summaries | videos
        ("item", pa.string()),  # the key where one could be made, else file:line
        ("video_uid", pa.string()),  # empty where unreadable
        ("status", pa.string()),  # filtered (as the rules say) | failed (malformed)
        ("reason", pa.string()),  # a short word that counts add up under, as `empty text`
        ("detail", pa.string()),  # file, line and value, for the person who mends it
    ]
)


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Everything that one dataset's annotation files say: four Arrow tables of the schemas above.

    `narrations` and `summaries` are sorted by (video_uid, clip_start, key); keys are unique over both.
    Every input row is in `narrations`, `summaries` or `rejects`.
    """

    videos: pa.Table
    narrations: pa.Table
    summaries: pa.Table
    rejects: pa.Table
    sources: dict[str, str]  # annotation file → sha256 of its bytes
