"""The tables that every annotation reader returns: videos, the items of each set, and the rows it could not use."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from shards import files
from shards.schema import SETS, own_fields

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

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), list[int]: pa.list_(pa.int32())}


def _benchmark_items(set_name: str) -> pa.Schema:
    """Return the columns of a benchmark's items: those of every item, its split, and the set's own fields."""
    common = [
        ("key", pa.string()),
        ("video_uid", pa.string()),
        ("split", pa.string()),
        ("clip_start", pa.float64()),  # s
        ("clip_end", pa.float64()),  # s; infinite: to the end of the video, wherever that is
        ("text", pa.string()),
    ]
    return pa.schema([*common, *((name, _ARROW[kind]) for name, kind in own_fields(set_name).items())])


ITEMS: dict[str, pa.Schema] = {
    "clips": NARRATIONS,
    "summaries": SUMMARIES,
    **{name: _benchmark_items(name) for name, spec in SETS.items() if spec.is_benchmark},
}
"""The columns of each set's table of items."""

REJECTS = pa.schema(
    [
        ("set", pa.string()),  # clips | summaries | videos | a benchmark
        ("item", pa.string()),  # the key where one could be made and is not another row's, else file:line
        ("video_uid", pa.string()),  # empty where unreadable
        ("status", pa.string()),  # filtered (as the rules say) | failed (malformed)
        ("reason", pa.string()),  # a short word that counts add up under, as `empty text`
        ("detail", pa.string()),  # file, line and value, for the person who mends it
    ]
)

PASSES = ("narration_pass_1", "narration_pass_2")  # every narration_source that there is; pass n is PASSES[n − 1]
LONGEST = 1e7  # s (115 days): no video is longer, so a time past it is an error and not a time
_TABLES = {"videos": VIDEOS, "rejects": REJECTS}
_FACTS = "annotations.json"


class AnnotationError(ValueError):
    """Annotation files that cannot be used at all; the message names the file, what is wrong and what to do."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Everything that the configured annotation files say: Arrow tables of the schemas above.

    `sets` has a table for each set that the files speak of, sorted by (video_uid, clip_start, key); `videos` is sorted
    by video_uid, `rejects` by (set, item). Keys are unique over all sets, (set, item) over rejects. Every input row is
    in exactly one table of `sets` or in `rejects`: `input_rows` has the count to hold that against.
    """

    videos: pa.Table
    sets: dict[str, pa.Table]
    rejects: pa.Table
    sources: dict[str, str]  # annotation file → sha256 of its bytes
    input_rows: dict[str, int]  # set, and videos (rows of the metadata file) → rows that the files hold
    alpha: float | None  # s, the mean gap that clip windows were scaled by; None where the files give clips ready-made
    companions: dict[str, Any] = field(default_factory=dict)  # path below ROOT → JSON of questions or labels
    frame_rates: dict[str, float] = field(default_factory=dict)  # uid → frames/s by which annotations count frames

    @property
    def narrations(self) -> pa.Table:
        """The items of `clips`; empty where the files have none."""
        return self.sets.get("clips", NARRATIONS.empty_table())

    @property
    def summaries(self) -> pa.Table:
        """The items of `summaries`; empty where the files have none."""
        return self.sets.get("summaries", SUMMARIES.empty_table())

    def save(self, folder: Path) -> None:
        """Write the tables as parquet into `folder`; `load` sees the whole of this call's data or none of it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FACTS).unlink(missing_ok=True)  # first, so that no old mark vouches for a mixture
        tables = {"videos": self.videos, "rejects": self.rejects, **self.sets}
        for name, table in tables.items():
            with files.replacing(folder / f"{name}.parquet") as temporary:
                pq.write_table(table, temporary, compression="zstd")
        facts = {name: getattr(self, name) for name in _PLAIN}
        files.write_json(folder / _FACTS, {"rows": {name: len(table) for name, table in tables.items()}, **facts})

    @classmethod
    def load(cls, folder: Path) -> Annotations:
        """Return what `save` wrote; raise `AnnotationError` where it is absent, unfinished or of another schema."""
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AnnotationError(
                f"{folder}: no saved annotations, or a save that did not finish; run it again"
            ) from None
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in facts["rows"]}
        for name, table in tables.items():
            if table.schema != {**_TABLES, **ITEMS}[name] or table.num_rows != facts["rows"][name]:
                raise AnnotationError(f"{folder / name}.parquet is not what {_FACTS} describes; save it again")
        of_all = {name: tables.pop(name) for name in _TABLES}
        return cls(**of_all, sets=tables, **{name: facts[name] for name in _PLAIN})


_PLAIN = ("sources", "input_rows", "alpha", "companions", "frame_rates")
