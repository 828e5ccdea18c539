"""Merges the output of the annotation readers into tables: removes duplicates and excluded videos, and sorts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.annotations.tables import NARRATION_SCHEMA, REJECT_SCHEMA, VIDEO_SCHEMA, AnnotationError
from preprocessing.annotations.values import MAX_NAME, plain, show
from shards.keys import distinct_key
from shards.schema import SETS

LETTERS = {name: spec.letter for name, spec in SETS.items()}  # set → the letter in its keys
PRETRAINING = tuple(name for name, spec in SETS.items() if not spec.is_benchmark)  # the sets that exclusion applies to

ROW_SCHEMA = NARRATION_SCHEMA.append(pa.field("line", pa.int64()))
"""Narrations and summaries as readers collect them: with their line, or running number, in the file."""


@dataclass(frozen=True, kw_only=True)
class VideoMetadata:
    """The metadata of one video."""

    duration: float = math.nan  # s; NaN: unknown
    is_stereo: bool = False
    split: str = "train"  # train | val | test
    redacted: tuple[tuple[float, float], ...] = ()  # (start, end) in s of the parts that were made unrecognisable


@dataclass(frozen=True, kw_only=True)
class MetadataFile:
    """The content of a metadata file."""

    videos: dict[str, VideoMetadata] = field(default_factory=dict)  # by video_uid
    input_rows: int = 0  # including rows that could not be used


class RejectedRows:
    """Collects the annotation rows that are in no table, with their location and, if they have one, their key."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str, str, str, str]] = []
        self._ignored: dict[tuple[str, str], tuple[int, str]] = {}  # (file, column) → number of values, the first one

    def add(
        self,
        set_name: str,
        *,
        location: str,
        reason: str,
        detail: str,
        status: str = "failed",
        uid: str = "",
        key: str = "",
    ) -> None:
        """Add a row: `location` is file:line, `reason` names the kind of problem, `detail` states it with the value.

        `status` is `failed` (malformed) or `filtered` (excluded by a rule).
        """
        location = plain(location, MAX_NAME)
        self._rows.append((set_name, key, location, plain(uid), status, reason, plain(f"{location}: {detail}")))

    def ignore(self, location: str, column: str, value: str) -> None:
        """Note that a hint, which no row is rejected for, was ignored because it cannot be read."""
        file = location.partition(":")[0]
        count, first = self._ignored.get((file, column), (0, f"{location}: {column} = {show(value)}"))
        self._ignored[file, column] = (count + 1, first)

    def ignored(self) -> tuple[str, ...]:
        """Return a sentence for each column with ignored hints."""
        return tuple(
            plain(f"{file}: {count} values of the column {column} are ignored, because they cannot be read ({first})")
            for (file, column), (count, first) in sorted(self._ignored.items())
        )

    def count(self, set_name: str) -> int:
        """Return the number of rejected rows of a set."""
        return sum(row[0] == set_name for row in self._rows)

    def table(self, kept: Mapping[str, pa.Table]) -> pa.Table:
        """Return the rejected rows as a table sorted by (set, item).

        An item is the row's key, or its location where `kept` (set → table) or an earlier reject has that key.
        """
        taken: set[tuple[str, str]] = set()
        for name, table in kept.items():
            keys = pa.array([row[1] for row in self._rows if row[0] == name and row[1]], pa.string())
            taken |= {(name, key) for key in table["key"].filter(pc.is_in(table["key"], keys)).to_pylist()}
        rows = []
        for name, key, location, *rest in self._rows:
            item, number = key, 1
            if not key or (name, key) in taken:
                item = location
            while (name, item) in taken:
                number += 1
                item = f"{location}#{number}"
            taken.add((name, item))
            rows.append((name, item, *rest))
        rows.sort()
        columns = list(zip(*rows, strict=True)) or [() for _ in REJECT_SCHEMA]
        return pa.table([pa.array(column, pa.string()) for column in columns], schema=REJECT_SCHEMA)


@dataclass(frozen=True, kw_only=True)
class ReaderOutput:
    """The output of one reader: tables without duplicate keys, and the number of rows read."""

    rows: dict[str, pa.Table]  # set → its items (`tables.ITEM_SCHEMAS`), with the column `line` in clips and summaries
    input_rows: dict[str, int]  # set → rows in the files
    durations: dict[str, float]  # uid of every video with a usable row → s, NaN where not stated
    locations: dict[str, Callable[[int], str]] = field(default_factory=dict)  # set → `line` → location for messages
    alpha: float | None = None  # s; see `tables.Annotations`
    companions: dict[str, Any] = field(default_factory=dict)  # path below the dataset's root → JSON value
    frame_rates: dict[str, float] = field(default_factory=dict)  # uid → frames/s of the files' frame numbers
    problem: str = ""  # why there is nothing in the files; an error unless another reader has something


def deduplicate(
    rows: pa.Table,
    set_name: str,
    location: Callable[[int], str],
    rejects: RejectedRows,
    identity: Callable[[int], str] = lambda line: "",
) -> pa.Table:
    """Return `rows` with each key once: of equal rows one is kept, rows that differ get keys of their own.

    Rows are equal if all columns other than `line`, and `identity(line)`, are; the first in the file is kept, and the
    others are filtered as `duplicate row`. Rows that differ but have the same key are different annotations, whose
    numbering is not unique: all of them get a key that also depends on their content (`shards.keys.distinct_key`). So
    no key depends on the order of the rows.
    """
    if not rows.num_rows:
        return rows
    codes = pc.dictionary_encode(rows["key"].combine_chunks()).indices.to_numpy()
    repeated = np.bincount(codes)[codes] > 1
    if not repeated.any():
        return rows
    where = np.flatnonzero(repeated)
    first: dict[str, dict[str, int]] = {}  # key → content → line of its first row
    dropped: list[int] = []
    contents: dict[int, tuple[str, str]] = {}  # row → key and content
    for index, row in sorted(
        zip(where.tolist(), rows.take(where).to_pylist(), strict=True), key=lambda r: r[1]["line"]
    ):
        line, key = row.pop("line"), row.pop("key")
        content = json.dumps([*row.values(), identity(line)])
        kept = first.setdefault(key, {}).setdefault(content, line)
        if kept == line:
            contents[index] = key, content
            continue
        dropped.append(index)
        rejects.add(
            set_name,
            location=location(line),
            uid=row["video_uid"],
            status="filtered",
            reason="duplicate row",
            detail=f"the same annotation as {location(kept)}, word for word",
        )
    keys = np.array(rows["key"].to_pylist(), dtype=object)
    for index, (key, content) in contents.items():
        if len(first[key]) > 1:
            keys[index] = distinct_key(key, content)
    keep = np.ones(rows.num_rows, bool)
    keep[dropped] = False
    at = rows.schema.get_field_index("key")
    return rows.set_column(at, rows.schema.field(at), pa.array(keys, pa.string())).filter(pa.array(keep))


def exclude(
    rows: pa.Table, set_name: str, location: Callable[[int], str], excluded: Mapping[str, str], rejects: RejectedRows
) -> pa.Table:
    """Return `rows` without those of `excluded` videos (uid → the file that lists it), which are rejected."""
    if not excluded or not rows.num_rows:
        return rows
    is_excluded = pc.is_in(rows["video_uid"], pa.array(list(excluded), pa.string()))
    dropped = rows.filter(is_excluded).select(["key", "video_uid", "line"])
    for key, uid, line in zip(*(dropped[name].to_pylist() for name in dropped.column_names), strict=True):
        rejects.add(
            set_name,
            location=location(line),
            uid=uid,
            key=key,
            status="filtered",
            reason="excluded: used by evaluation",
            detail=f"video {uid} is listed in {excluded[uid]}",
        )
    return rows.filter(pc.invert(is_excluded))


def redact(
    rows: pa.Table,
    set_name: str,
    location: Callable[[int], str],
    videos: Mapping[str, VideoMetadata],
    rejects: RejectedRows,
) -> pa.Table:
    """Return `rows` without those that touch a redacted interval of their video, which are rejected as filtered."""
    redacted = {uid: video.redacted for uid, video in videos.items() if video.redacted}
    if not redacted or not rows.num_rows:
        return rows
    candidates = np.flatnonzero(pc.is_in(rows["video_uid"], pa.array(list(redacted), pa.string())).to_numpy())
    dropped = []
    columns = ["key", "video_uid", "clip_start", "clip_end", "line"]
    for index, row in zip(candidates.tolist(), rows.select(columns).take(candidates).to_pylist(), strict=True):
        start, end = row["clip_start"], row["clip_end"]
        touched = [f"{a:.3f}–{b:.3f} s" for a, b in redacted[row["video_uid"]] if start <= b and end >= a]
        if touched:
            dropped.append(index)
            rejects.add(
                set_name,
                location=location(row["line"]),
                uid=row["video_uid"],
                key=row["key"],
                status="filtered",
                reason="redacted",
                detail=f"{start:.3f}–{end:.3f} s touches redacted_intervals {', '.join(touched[:3])}",
            )
    keep = np.ones(rows.num_rows, bool)
    keep[dropped] = False
    return rows.filter(pa.array(keep))


def finish(tables: list[pa.Table], schema: pa.Schema, set_name: str) -> pa.Table:
    """Return the rows of one set as one table, sorted by (video_uid, clip_start, key).

    Clears `tables`, so that the unsorted rows can be freed. Raises `AnnotationError` where two tables share a key.
    """
    rows = pa.concat_tables(tables).select(schema.names)
    if len(tables) > 1 and pc.count_distinct(rows["key"]).as_py() != rows.num_rows:
        raise AnnotationError(f"two annotation files describe the same {set_name}; give only one of them")
    tables.clear()
    if not rows.num_rows:
        return schema.empty_table()
    # Videos as ranks: integers sort several times faster than strings of 36 characters.
    uids = pc.dictionary_encode(rows["video_uid"].combine_chunks())
    rank = np.empty(len(uids.dictionary), np.int64)
    rank[pc.sort_indices(uids.dictionary).to_numpy()] = np.arange(len(rank))
    order = sort_by_start(rank[uids.indices.to_numpy()], rows["clip_start"].to_numpy(), rows["key"])
    columns = []
    for name in schema.names:  # column by column, so that at most one column exists twice
        columns.append(rows[name].combine_chunks().take(pa.array(order)))
        rows = rows.drop_columns([name])
    return pa.table(columns, schema=schema)


def sort_by_start(group: np.ndarray, start: np.ndarray, keys: pa.ChunkedArray) -> np.ndarray:
    """Return the order of rows by (group, start, key); keys are compared only where the numbers are equal."""
    order = np.lexsort((start, group))
    group, start = group[order], start[order]
    equal = (group[1:] == group[:-1]) & (start[1:] == start[:-1])
    if equal.any():
        tied = np.append(equal, False) | np.insert(equal, 0, False)
        run = np.cumsum(~np.insert(equal, 0, False))[tied]
        rows = order[tied]
        table = pa.table({"run": run, "key": keys.take(pa.array(rows))})
        order[tied] = rows[pc.sort_indices(table, [("run", "ascending"), ("key", "ascending")]).to_numpy()]
    return order


def videos_table(
    described: Mapping[str, VideoMetadata], durations: Mapping[str, float], val: frozenset[str]
) -> pa.Table:
    """Return the videos table: all videos that the metadata describe or the annotations mention.

    A duration (s) of the metadata takes precedence over one of the annotations. Videos in `val` are in the val split,
    unless the metadata put them into test.
    """
    columns: list[list[Any]] = [[], [], [], []]
    for uid in sorted({*described, *durations}):
        video = described.get(uid, VideoMetadata())
        duration = durations.get(uid, math.nan) if math.isnan(video.duration) else video.duration
        split = "val" if uid in val and video.split != "test" else video.split
        for column, value in zip(columns, (uid, duration, video.is_stereo, split), strict=True):
            column.append(value)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, VIDEO_SCHEMA, strict=True)], schema=VIDEO_SCHEMA)
