"""What readers return, and how it becomes one set of tables: duplicates, exclusion, order, sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.annotations.tables import NARRATIONS, REJECTS, VIDEOS, AnnotationError
from shards.schema import SETS

LETTERS = {name: spec.letter for name, spec in SETS.items()}  # set → the letter in its keys
PRETRAINING = tuple(name for name, spec in SETS.items() if not spec.is_benchmark)  # what exclusion is about
_SHOWN = 80  # characters of a value in a message

ROWS = NARRATIONS.append(pa.field("line", pa.int64()))
"""What readers collect: annotations, each with its line (or its running number) in the file."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """What annotations say of one video."""

    duration: float = math.nan  # s; NaN: unknown
    is_stereo: bool = False
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The videos that a metadata file describes, and how many rows it has."""

    videos: dict[str, Video] = field(default_factory=dict)
    input_rows: int = 0


class Rejects:
    """Collects the rows that no table holds, each with the place it stands at and, where it has one, its key."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str, str, str, str]] = []

    def add(
        self,
        set_name: str,
        *,
        place: str,
        reason: str,
        detail: str,
        status: str = "failed",
        uid: str = "",
        key: str = "",
    ) -> None:
        """Add a row; `place` is file:line, `detail` what is wrong there and with which value."""
        self._rows.append((set_name, key, place, uid, status, reason, f"{place}: {detail}"))

    def count(self, set_name: str) -> int:
        """Return how many rows of a set are here."""
        return sum(row[0] == set_name for row in self._rows)

    def table(self, kept: Mapping[str, pa.Table]) -> pa.Table:
        """Return the rejects as a table sorted by (set, item).

        An item is the row's key, unless `kept` (set → table) or an earlier reject has that key: then its place.
        """
        taken: set[tuple[str, str]] = set()
        for name, table in kept.items():
            keys = pa.array([row[1] for row in self._rows if row[0] == name and row[1]], pa.string())
            taken |= {(name, key) for key in table["key"].filter(pc.is_in(table["key"], keys)).to_pylist()}
        rows = []
        for name, key, place, *rest in self._rows:
            item, number = key, 1
            if not key or (name, key) in taken:
                item = place
            while (name, item) in taken:
                number += 1
                item = f"{place}#{number}"
            taken.add((name, item))
            rows.append((name, item, *rest))
        rows.sort()
        columns = list(zip(*rows, strict=True)) or [() for _ in REJECTS]
        return pa.table([pa.array(column, pa.string()) for column in columns], schema=REJECTS)


@dataclass(frozen=True, kw_only=True)
class ReaderOutput:
    """What one reader found: tables without duplicates, and the count of every row that it looked at."""

    rows: dict[str, pa.Table]  # set → its items (`tables.ITEMS`), with the column `line` in clips and summaries
    input_rows: dict[str, int]  # set → rows that the files hold
    durations: dict[str, float]  # uid of every video with a usable row → s, NaN where not stated
    places: dict[str, Callable[[int], str]] = field(default_factory=dict)  # set → what names a line in messages
    alpha: float | None = None
    companions: dict[str, Any] = field(default_factory=dict)  # path below ROOT → JSON of questions or labels
    frame_rates: dict[str, float] = field(default_factory=dict)  # uid → frames/s by which the files count frames


def is_uid(value: Any) -> TypeGuard[str]:
    """Return whether a value can be a video id: text that can name a file `<video_uid>.mp4`, and not in a folder."""
    if not isinstance(value, str) or value in ("", ".", "..") or not value.isprintable():
        return False
    return "/" not in value and "\\" not in value and is_text(value)


def is_text(value: str) -> bool:
    """Return whether text is free of lone surrogates, which JSON can spell but nothing can store."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def show(value: Any) -> str:
    """Return a value as it appears in a message: its repr, cut where long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def deduplicate(rows: pa.Table, set_name: str, place: Callable[[int], str], rejects: Rejects) -> pa.Table:
    """Return `rows` with each key once: of equal keys the row that stands first in the file stays.

    A later row that says the same is filtered (`duplicate row`); one that says something else is failed
    (`duplicate identity`), and its detail names both places. All columns but `line` are compared.
    """
    if not rows.num_rows:
        return rows
    codes = pc.dictionary_encode(rows["key"].combine_chunks()).indices.to_numpy()
    repeated = np.bincount(codes)[codes] > 1
    if not repeated.any():
        return rows
    where = np.flatnonzero(repeated)
    first: dict[str, dict[str, Any]] = {}
    dropped = []
    for index, row in sorted(
        zip(where.tolist(), rows.take(where).to_pylist(), strict=True), key=lambda r: r[1]["line"]
    ):
        kept = first.setdefault(row["key"], row)
        if kept is row:
            continue
        dropped.append(index)
        differing = [name for name in row if name != "line" and row[name] != kept[name]]
        same = f"the same annotation as {place(kept['line'])}"
        if differing:
            name = differing[0]
            detail = f"{same}, but {name} is {show(row[name])} here and {show(kept[name])} there; the first is kept"
        else:
            detail = f"{same}, word for word"
        rejects.add(
            set_name,
            place=place(row["line"]),
            uid=row["video_uid"],
            status="failed" if differing else "filtered",
            reason="duplicate identity" if differing else "duplicate row",
            detail=detail,
        )
    keep = np.ones(rows.num_rows, bool)
    keep[dropped] = False
    return rows.filter(pa.array(keep))


def exclude(
    rows: pa.Table, set_name: str, place: Callable[[int], str], excluded: Mapping[str, str], rejects: Rejects
) -> pa.Table:
    """Return `rows` without those of `excluded` videos (uid → the file that lists it), which become rejects."""
    if not excluded or not rows.num_rows:
        return rows
    out = pc.is_in(rows["video_uid"], pa.array(list(excluded), pa.string()))
    gone = rows.filter(out).select(["key", "video_uid", "line"])
    for key, uid, line in zip(*(gone[name].to_pylist() for name in gone.column_names), strict=True):
        rejects.add(
            set_name,
            place=place(line),
            uid=uid,
            key=key,
            status="filtered",
            reason="excluded: used by evaluation",
            detail=f"video {uid} is listed in {excluded[uid]}",
        )
    return rows.filter(pc.invert(out))


def finish(tables: list[pa.Table], schema: pa.Schema, set_name: str) -> pa.Table:
    """Return the readers' rows of one set as one table, sorted by (video_uid, clip_start, key); empties `tables`."""
    rows = pa.concat_tables(tables).select(schema.names)
    if len(tables) > 1 and pc.count_distinct(rows["key"]).as_py() != rows.num_rows:
        raise AnnotationError(f"two annotation files describe the same {set_name}; give only one of them")
    tables.clear()
    if not rows.num_rows:
        return schema.empty_table()
    # Videos as ranks: integers sort several times faster than 36-character texts.
    uids = pc.dictionary_encode(rows["video_uid"].combine_chunks())
    rank = np.empty(len(uids.dictionary), np.int64)
    rank[pc.sort_indices(uids.dictionary).to_numpy()] = np.arange(len(rank))
    order = sort_by_start(rank[uids.indices.to_numpy()], rows["clip_start"].to_numpy(), rows["key"])
    columns = []
    for name in schema.names:  # each unsorted column is let go before the next is sorted: at most one is there twice
        columns.append(rows[name].combine_chunks().take(pa.array(order)))
        rows = rows.drop_columns([name])
    return pa.table(columns, schema=schema)


def sort_by_start(group: np.ndarray, start: np.ndarray, keys: pa.ChunkedArray) -> np.ndarray:
    """Return the order of rows by (group, start, key): numbers first, and keys only where those are equal."""
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


def videos_table(described: Mapping[str, Video], durations: Mapping[str, float], val: frozenset[str]) -> pa.Table:
    """Return the videos table: all that metadata describe and annotations mention.

    Metadata's duration goes before that of annotations. A uid of `val` is val, unless metadata call it test.
    """
    columns: list[list[Any]] = [[], [], [], []]
    for uid in sorted({*described, *durations}):
        video = described.get(uid, Video())
        duration = durations.get(uid, math.nan) if math.isnan(video.duration) else video.duration
        split = "val" if uid in val and video.split != "test" else video.split
        for column, value in zip(columns, (uid, duration, video.is_stereo, split), strict=True):
            column.append(value)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, VIDEOS, strict=True)], schema=VIDEOS)
