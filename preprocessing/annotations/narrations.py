"""Reads Ego4D's `narration.json` and turns its narrations into clips by EgoClip's rule."""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.json_stream import JsonCursor, RepeatingObject, pairs
from preprocessing.annotations.merge import (
    LETTERS,
    ROW_SCHEMA,
    ReaderOutput,
    RejectedRows,
    deduplicate,
    sort_by_start,
)
from preprocessing.annotations.tables import MAX_SECONDS, NARRATION_PASSES
from preprocessing.annotations.values import is_uid, show, text_problem
from shards.keys import make_key

MAX_CLIP = 60.0  # s; longest clip, as in EgoClip
_PASS = re.compile(r"narration_pass_\d+")
_BATCH = 1 << 16  # rows
_LISTS = {"narrations": "clips", "summaries": "summaries"}
_SETS = tuple(_LISTS.values())
# Field names of different releases of the file; the first that a row has is used.
_TIME = ("timestamp_sec", "time")
_START, _END = ("start_sec", "start_time"), ("end_sec", "end_time")
_TEXT = ("narration_text", "summary_text", "text")
_FIELDS = {*_TIME, *_START, *_END, *_TEXT, "annotation_uid"}


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: RejectedRows) -> ReaderOutput:
    """Read `config.narrations`, whose top level or `videos` maps video uids to annotator passes or to bare lists.

    Lists directly under a video count as pass 1. Their narrations are grouped by `annotation_uid` when gaps are
    measured, so that the narrations of two annotators are not taken for one dense pass.

    Keys depend on the content of a row, not on its position: they consist of the time in milliseconds (of a summary,
    both times) and a hash of the text. `narration_ind` is the rank in time order within the pass. Narrations that are
    empty, contain `#unsure` or repeat an earlier row are rejected and do not affect the clips of others, because
    EgoClip also measures gaps between the narrations that it keeps. Rows that only differ in their `annotation_uid` are
    different annotations. An object that has a name twice is read as if both were given.

    `durations` (uid → s, NaN where unknown) clamps clips to the end of the video; clips entirely past it are filtered.
    Raises `AnnotationError` where the file is not JSON.
    """
    assert config.narrations is not None
    entries = _Entries(file=config.narrations.name, rejects=rejects)
    _read_videos(JsonCursor(config.narrations), entries)
    narrations = deduplicate(entries.table("clips"), "clips", entries.location, rejects, entries.annotator)
    alpha = config.alpha
    if narrations.num_rows:
        narrations, alpha = _clips(narrations, entries, durations, config.alpha)
    summaries = deduplicate(entries.table("summaries"), "summaries", entries.location, rejects, entries.annotator)
    if summaries.num_rows:
        summaries = _within_video(summaries, "summaries", entries, durations)
    has_rows = bool(entries.videos) or any(entries.input_rows.values())
    problem = f"{config.narrations}: contains no video; narration.json maps video uids to narration passes"
    return ReaderOutput(
        rows={"clips": narrations, "summaries": summaries},
        input_rows=entries.input_rows,
        durations=dict.fromkeys(sorted(entries.videos), math.nan),
        locations={"clips": entries.location, "summaries": entries.location},
        alpha=alpha,
        problem="" if has_rows else problem,
    )


def window(time: np.ndarray, beta: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end (s) of EgoClip's clips, [t − β/2α, t + β/2α], not yet clamped to the video.

    `time` (s) and `beta` (s) are arrays of one value per narration: β is the mean gap between consecutive narrations of
    its pass, and `alpha` (s) the mean of β over all passes (EgoVLP, section 3.1); their ratio is taken as seconds. In a
    pass without gaps (a single narration, or all at the same time), β is NaN or 0 and α is used instead, which gives
    t ± 0.5 s. Clips are at most `MAX_CLIP` long.

    >>> window(np.array([10.0]), np.array([4.9]), 4.9)
    (array([9.5]), array([10.5]))
    """
    half = np.minimum(np.where(beta > 0, beta, alpha) / (2 * alpha), MAX_CLIP / 2)
    return time - half, time + half


def mean_gaps(time: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return β (s) of each group 0 … max(group): the mean gap between its consecutive times; NaN for a single time."""
    size = int(group.max()) + 1
    count = np.bincount(group, minlength=size)
    first, last = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(first, group, time)
    np.maximum.at(last, group, time)
    gaps = np.full(size, np.nan)
    np.divide(last - first, count - 1, out=gaps, where=count > 1)  # the gaps add up to last − first
    return gaps


class _Columns:
    """The rows of one set, converted to Arrow in batches, since Python objects take much more memory."""

    schema = pa.schema([ROW_SCHEMA.field(name) for name in ("key", "text", "clip_start", "clip_end", "line")])

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[tuple[str, str, float, float, int]] = []

    def add(self, key: str, text: str, start: float, end: float, line: int) -> None:
        """Add a row; `start` and `end` in s."""
        self._rows.append((key, text, start, end, line))
        if len(self._rows) == _BATCH:
            self._flush()

    def table(self) -> pa.Table:
        """Return the rows, with the columns of `schema`."""
        if self._rows:
            self._flush()
        return pa.Table.from_batches(self._batches, self.schema)

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(column, f.type) for column, f in zip(columns, self.schema, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        self._rows = []


@dataclass(frozen=True)
class _List:
    """One list of narrations or summaries in the file."""

    path: str  # such as <uid>.narration_pass_1.narrations
    uid: str
    source: str  # narration_source


@dataclass
class _Entries:
    """All entries read so far. The `line` of a row is its running number: an index into `lists_at` … `groups`."""

    file: str
    rejects: RejectedRows
    rows: dict[str, _Columns] = field(default_factory=lambda: {name: _Columns() for name in _SETS})
    input_rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SETS, 0))
    videos: set[str] = field(default_factory=set)
    lists: list[_List] = field(default_factory=list)
    lists_at: array[int] = field(default_factory=lambda: array("q"))  # row → index into `lists`
    index_at: array[int] = field(default_factory=lambda: array("q"))  # row → index within its list
    groups: array[int] = field(default_factory=lambda: array("q"))  # row → group whose gaps are measured together
    annotators: dict[str, int] = field(default_factory=dict)  # annotation_uid → its number, in order of appearance
    annotator_at: array[int] = field(default_factory=lambda: array("q"))  # row → number of its annotation_uid
    group_of: dict[tuple[str, str, str], int] = field(default_factory=dict)  # uid, pass, annotator → group
    _annotator_names: list[str] = field(default_factory=list)

    def location(self, line: int) -> str:
        """Return the location of a row, for messages."""
        return f"{self.file}:{self.lists[self.lists_at[line]].path}[{self.index_at[line]}]"

    def annotator(self, line: int) -> str:
        """Return the annotation_uid of a row."""
        if len(self._annotator_names) != len(self.annotators):
            self._annotator_names = list(self.annotators)
        return self._annotator_names[self.annotator_at[line]]

    def fail(self, location: str, reason: str, detail: str, *, uid: str = "", set_name: str = "clips") -> None:
        """Reject a malformed container, which counts as one failed row."""
        self.input_rows[set_name] += 1
        self.rejects.add(set_name, location=f"{self.file}:{location}", uid=uid, reason=reason, detail=detail)

    def table(self, set_name: str) -> pa.Table:
        """Return the rows of a set with the columns of `ROW_SCHEMA`; clips, ranks and tags are not filled in yet."""
        rows = self.rows[set_name].table()
        where = pa.array(np.array(self.lists_at, np.int64)[rows["line"].to_numpy()])
        no_tags = pa.ListArray.from_arrays(np.zeros(len(rows) + 1, np.int32), pa.array([], pa.int32()))
        columns = {
            **{name: rows[name] for name in rows.column_names},
            "video_uid": pa.array([item.uid for item in self.lists], pa.string()).take(where),
            "narration_source": pa.array([item.source for item in self.lists], pa.string()).take(where),
            "narration_ind": pa.array(np.zeros(len(rows), np.int64)),
            "narration_time": rows["clip_start"],
            "tag_verb": no_tags,
            "tag_noun": no_tags,
        }
        return pa.table([columns[name] for name in ROW_SCHEMA.names], schema=ROW_SCHEMA)


def _read_videos(cursor: JsonCursor, entries: _Entries) -> None:
    """Read the file video by video; videos are in an object by uid, or in a list, at the top or as `videos`."""
    if cursor.peek() == "[":
        _read_list(cursor, "", entries)
        cursor.end()
        return
    nested, others = False, []
    for name in cursor.members():
        if name == "videos" and cursor.peek() == "{":
            nested = True
            for uid in cursor.members():
                _read_video(uid, cursor.value(), entries)
        elif name == "videos" and cursor.peek() == "[":
            nested = True
            _read_list(cursor, name, entries)
        else:
            value = cursor.value()
            if isinstance(value, dict) and any(key in _LISTS or _PASS.fullmatch(key) for key in value):
                _read_video(name, value, entries)
            else:
                others.append((name, value))
    cursor.end()
    for name, value in [] if nested else others:  # in a file with `videos` they are its date, version, taxonomy …
        _read_video(name, value, entries)


def _read_list(cursor: JsonCursor, name: str, entries: _Entries) -> None:
    """Read a list of videos, each an object with its `video_uid`."""
    for index in cursor.elements():
        value = cursor.value()
        uid = value.get("video_uid") if isinstance(value, dict) else None
        if is_uid(uid):
            _read_video(uid, value, entries)
        else:
            detail = f"expected an object with a video_uid, found {show(value)}"
            entries.fail(f"{name}[{index}]", "malformed video_uid", detail)


def _read_video(uid: str, value: Any, entries: _Entries) -> None:
    """Read all passes of one video."""
    if not is_uid(uid):
        entries.fail(show(uid), "malformed video_uid", f"video_uid = {show(uid)}")
    elif not isinstance(value, dict):
        entries.fail(uid, "malformed video", f"expected an object of narration passes, found {show(value)}", uid=uid)
    else:
        entries.videos.add(uid)
        _read_pass(uid, NARRATION_PASSES[0], value, uid, entries, is_bare=True)
        for name, content in pairs(value):
            if not _PASS.fullmatch(name):
                continue
            where = f"{uid}.{name}"
            if name not in NARRATION_PASSES:
                detail = f"{show(name)}; expected one of {', '.join(NARRATION_PASSES)}"
                entries.fail(where, "malformed narration_source", detail, uid=uid)
            elif not isinstance(content, dict):
                entries.fail(where, "malformed pass", f"expected an object, found {show(content)}", uid=uid)
            else:
                _read_pass(uid, name, content, where, entries, is_bare=False)


def _read_pass(uid: str, source: str, content: dict[str, Any], where: str, entries: _Entries, *, is_bare: bool) -> None:
    """Read the lists of one pass of one video; bare lists are directly under the video."""
    for name, items in pairs(content):
        set_name = _LISTS.get(name)
        if items is None or set_name is None:
            continue
        location = f"{where}.{name}"
        if not isinstance(items, list):
            detail = f"expected a list, found {show(items)}"
            entries.fail(location, f"malformed {name}", detail, uid=uid, set_name=set_name)
            continue
        stem = make_key(uid, LETTERS[set_name], NARRATION_PASSES.index(source) + 1, "0")[:-1]
        entries.lists.append(_List(location, uid, source))
        entries.input_rows[set_name] += len(items)
        whole = group = entries.group_of.setdefault((uid, source, ""), len(entries.group_of))
        for index, item in enumerate(items):
            annotator = item.get("annotation_uid") if isinstance(item, dict) else None
            if is_bare:
                identity = (uid, source, str(annotator))
                group = whole if annotator is None else entries.group_of.setdefault(identity, len(entries.group_of))
            entries.annotator_at.append(entries.annotators.setdefault(str(annotator), len(entries.annotators)))
            entries.lists_at.append(len(entries.lists) - 1)
            entries.index_at.append(index)
            entries.groups.append(group)
            _read_row(item, set_name, stem, entries)


def _read_row(item: Any, set_name: str, stem: str, entries: _Entries) -> None:
    """Read one narration or summary, the last of `entries.lists_at`."""
    line = len(entries.lists_at) - 1

    def reject(reason: str, detail: str, status: str = "failed", key: str = "") -> None:
        location, uid = entries.location(line), entries.lists[-1].uid
        entries.rejects.add(set_name, location=location, uid=uid, key=key, status=status, reason=reason, detail=detail)

    if not isinstance(item, dict):
        reject("malformed row", f"expected an object, found {show(item)}")
        return
    if isinstance(item, RepeatingObject) and (repeated := item.repeated & _FIELDS):
        reject("repeated field", f"{min(repeated)} occurs more than once, with different values")
        return
    times = []
    for names in (_TIME,) if set_name == "clips" else (_START, _END):
        name = _first(item, names)
        value = item.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
            reject(f"malformed {names[0]}", f"{name} = {show(value)}; expected seconds from 0 to {MAX_SECONDS:.0f}")
            return
        times.append(float(value))
    name = _first(item, _TEXT)
    text = item.get(name)
    if (problem := text_problem(text)) or not isinstance(text, str):
        reject("malformed text", f"{name} = {show(text)}: {problem}")
        return
    start, end = times[0], times[-1]
    if end < start:
        reject("reversed times", f"starts at {start} s, ends at {end} s")
        return
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    key = stem + "-".join([*(f"{round(time * 1000):08d}" for time in times), digest])
    if not text.strip():
        reject("empty text", f"{name} = {show(text)}", "filtered", key)
    elif "#unsure" in text.lower():
        reject("unsure", f"{name} = {show(text)}", "filtered", key)
    elif len(times) == 2 and start == end:
        reject("empty span", f"starts and ends at {start} s", "filtered", key)
    else:
        entries.rows[set_name].add(key, text, start, end, line)


def _first(item: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of `names` that `item` has; the first name if it has none."""
    for name in names:
        if name in item:
            return name
    return names[0]


def _clips(
    narrations: pa.Table, entries: _Entries, durations: Mapping[str, float], alpha: float | None
) -> tuple[pa.Table, float | None]:
    """Return the narrations with their clips, and the α (s) that was used.

    α is measured over all passes of the file that have a gap, regardless of splits and exclusions, so that these do not
    change any clip.
    """
    time = narrations["narration_time"].to_numpy()
    group = np.array(entries.groups, np.int64)[narrations["line"].to_numpy()]
    beta = mean_gaps(time, group)
    if alpha is None:
        alpha = float(beta[beta > 0].mean()) if (beta > 0).any() else 1.0  # without any gap, α cancels out
    start, end = window(time, beta[group], alpha)
    for name, values in (("clip_start", np.maximum(start, 0.0)), ("clip_end", end)):
        narrations = narrations.set_column(ROW_SCHEMA.get_field_index(name), ROW_SCHEMA.field(name), pa.array(values))
    return _within_video(narrations, "clips", entries, durations), alpha


def _within_video(rows: pa.Table, set_name: str, entries: _Entries, durations: Mapping[str, float]) -> pa.Table:
    """Return rows with `narration_ind` set to their rank in the pass and their end clamped to that of the video.

    Rows entirely past the end of the video are rejected.
    """
    encoded = rows["video_uid"].combine_chunks().dictionary_encode()
    lasts = np.array([durations.get(uid, math.nan) for uid in encoded.dictionary.to_pylist()])
    last = np.nan_to_num(lasts, nan=np.inf)[encoded.indices.to_numpy()]
    start, end = rows["clip_start"].to_numpy(), rows["clip_end"].to_numpy()
    past = start >= last
    row: dict[str, Any]
    for row in rows.filter(pa.array(past)).to_pylist():
        entries.rejects.add(
            set_name,
            location=entries.location(row["line"]),
            uid=row["video_uid"],
            key=row["key"],
            status="filtered",
            reason="past the end of the video",
            detail=f"starts at {row['clip_start']} s, the video ends at {durations[row['video_uid']]} s",
        )
    rank = _rank(rows, encoded.indices.to_numpy())
    for name, values in (("clip_end", np.minimum(end, last)), ("narration_ind", rank)):
        rows = rows.set_column(ROW_SCHEMA.get_field_index(name), ROW_SCHEMA.field(name), pa.array(values))
    return rows.filter(pa.array(~past))


def _rank(rows: pa.Table, video: np.ndarray) -> np.ndarray:
    """Return each row's rank within its video and pass, by time, then by key."""
    group = video.astype(np.int64) * 2 + pc.equal(rows["narration_source"], NARRATION_PASSES[1]).to_numpy()
    order = sort_by_start(group, rows["narration_time"].to_numpy(), rows["key"])
    group = group[order]
    position = np.arange(len(group))
    begins = np.insert(group[1:] != group[:-1], 0, True)
    rank = np.empty(len(group), np.int64)
    rank[order] = position - np.maximum.accumulate(np.where(begins, position, 0))
    return rank
