"""The tables that every annotation reader returns: videos, narrations, summaries, and the rows it could not use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards import files

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
        ("item", pa.string()),  # the key where one could be made and is not another row's, else file:line
        ("video_uid", pa.string()),  # empty where unreadable
        ("status", pa.string()),  # filtered (as the rules say) | failed (malformed)
        ("reason", pa.string()),  # a short word that counts add up under, as `empty text`
        ("detail", pa.string()),  # file, line and value, for the person who mends it
    ]
)

PASSES = ("narration_pass_1", "narration_pass_2")  # every narration_source that there is; pass n is PASSES[n − 1]
LONGEST = 1e7  # s (115 days): no video is longer, so a time past it is an error and not a time
_TABLES = {"videos": VIDEOS, "narrations": NARRATIONS, "summaries": SUMMARIES, "rejects": REJECTS}
_FACTS = "annotations.json"


class AnnotationError(ValueError):
    """Annotation files that cannot be used at all; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Everything that one dataset's annotation files say: four Arrow tables of the schemas above.

    `narrations` and `summaries` are sorted by (video_uid, clip_start, key), `videos` by video_uid, `rejects` by
    (set, item); keys are unique over narrations and summaries, (set, item) over rejects. Every input row is in
    exactly one of `narrations`, `summaries` and `rejects`: `input_rows` has the count to hold that against.
    """

    videos: pa.Table
    narrations: pa.Table
    summaries: pa.Table
    rejects: pa.Table
    sources: dict[str, str]  # annotation file → sha256 of its bytes
    input_rows: dict[str, int]  # clips, summaries, videos (rows of the metadata file) → rows that the files hold
    alpha: float | None  # s, the mean gap that clip windows were scaled by; None where the files give clips ready-made

    def save(self, folder: Path) -> None:
        """Write the tables as parquet into `folder`; `load` sees the whole of this call's data or none of it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FACTS).unlink(missing_ok=True)  # first, so that no old mark vouches for a mixture
        for name in _TABLES:
            with files.replacing(folder / f"{name}.parquet") as temporary:
                pq.write_table(getattr(self, name), temporary, compression="zstd")
        rows = {name: getattr(self, name).num_rows for name in _TABLES}
        facts = {"rows": rows, "input_rows": self.input_rows, "alpha": self.alpha, "sources": self.sources}
        files.write_json(folder / _FACTS, facts)

    @classmethod
    def load(cls, folder: Path) -> Annotations:
        """Return what `save` wrote; raise `AnnotationError` where it is absent, unfinished or of another schema."""
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AnnotationError(
                f"{folder}: no saved annotations, or a save that did not finish; run it again"
            ) from None
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in _TABLES}
        for name, table in tables.items():
            if table.schema != _TABLES[name] or table.num_rows != facts["rows"][name]:
                raise AnnotationError(f"{folder / name}.parquet is not what {_FACTS} describes; save it again")
        return cls(**tables, sources=facts["sources"], input_rows=facts["input_rows"], alpha=facts["alpha"])
