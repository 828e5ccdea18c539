"""Reads Ego4D's `narration.json` and makes clips of its narrations by EgoClip's rule."""

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
from preprocessing.annotations.json_stream import JsonText
from preprocessing.annotations.merge import (
    LETTERS,
    ROWS,
    ReaderOutput,
    Rejects,
    deduplicate,
    is_text,
    is_uid,
    show,
    sort_by_start,
)
from preprocessing.annotations.tables import LONGEST, PASSES, AnnotationError
from shards.keys import make_key

MAX_CLIP = 60.0  # s, as in EgoClip
_PASS = re.compile(r"narration_pass_\d+")
_BATCH = 1 << 16  # rows
_LISTS = {"narrations": "clips", "summaries": "summaries"}
_SETS = tuple(_LISTS.values())
# The names that releases of the file use for one thing; the first that a row has is taken.
_TIME = ("timestamp_sec", "time")
_START, _END = ("start_sec", "start_time"), ("end_sec", "end_time")
_TEXT = ("narration_text", "summary_text", "text")


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: Rejects) -> ReaderOutput:
    """Read `config.narrations`, whose top level, or whose `videos`, maps video uids to passes or to bare lists.

    Lists directly under a video count as pass 1; their narrations are grouped by `annotation_uid`, so that two
    annotators' narrations are not taken for one dense pass when gaps are measured.

    A key is made from what a row says, never from where it stands: of a narration its time in milliseconds and a
    hash of its text, of a summary both its times and the hash. `narration_ind` is the rank in time order within
    the pass. Narrations that are empty, say `#unsure`, or repeat an earlier row are rejects and do not count for
    the windows of the others: EgoClip's gaps, too, are those of the narrations that it kept.

    `durations` (uid → s, NaN where unknown) clamps what reaches past the end; what lies there wholly is filtered.
    Raises `AnnotationError` where the file is not JSON, or holds no videos.
    """
    assert config.narrations is not None
    found = _Found(file=config.narrations.name, rejects=rejects)
    _walk(JsonText(config.narrations), found)
    narrations = deduplicate(found.table("clips"), "clips", found.place, rejects)
    alpha = config.alpha
    if narrations.num_rows:
        narrations, alpha = _clips(narrations, found, durations, config.alpha)
    summaries = deduplicate(found.table("summaries"), "summaries", found.place, rejects)
    if summaries.num_rows:
        summaries = _within_video(summaries, "summaries", found, durations)
    return ReaderOutput(
        rows={"clips": narrations, "summaries": summaries},
        input_rows=found.input_rows,
        durations=dict.fromkeys(sorted(found.videos), math.nan),
        places={"clips": found.place, "summaries": found.place},
        alpha=alpha,
    )


def window(time: np.ndarray, beta: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end (s) of EgoClip's clips, [t − β/2α, t + β/2α], not yet clamped to the video.

    `beta` (s) is the mean gap between consecutive narrations of each one's pass, and `alpha` (s) the mean of β over
    all passes (EgoVLP, section 3.1); the ratio is taken as seconds. A pass without a gap (one narration, or all at
    one moment) has no β (NaN or 0): it counts as an average pass, β = α, which gives t ± 0.5 s. No clip is longer
    than `MAX_CLIP`.
    """
    half = np.minimum(np.where(beta > 0, beta, alpha) / (2 * alpha), MAX_CLIP / 2)
    return time - half, time + half


def mean_gaps(time: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return β (s) of each group 0 … max(group): the mean gap between its consecutive times, NaN below two."""
    size = int(group.max()) + 1
    count = np.bincount(group, minlength=size)
    first, last = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(first, group, time)
    np.maximum.at(last, group, time)
    # The gaps add up to last − first.
    return np.divide(last - first, count - 1, out=np.full(size, np.nan), where=count > 1)


class _Columns:
    """The rows of one set as they are found, moved into Arrow arrays a batch at a time: Python's objects are large."""

    schema = pa.schema([ROWS.field(name) for name in ("key", "text", "clip_start", "clip_end", "line")])

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

    path: str  # as <uid>.narration_pass_1.narrations
    uid: str
    source: str


@dataclass
class _Found:
    """Everything found so far; a row's `line` is its running number, an index into `lists_at` … `groups`."""

    file: str
    rejects: Rejects
    rows: dict[str, _Columns] = field(default_factory=lambda: {name: _Columns() for name in _SETS})
    input_rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SETS, 0))
    videos: set[str] = field(default_factory=set)
    lists: list[_List] = field(default_factory=list)
    lists_at: array[int] = field(default_factory=lambda: array("q"))  # the list that a row stands in
    index_at: array[int] = field(default_factory=lambda: array("q"))  # and where in it
    groups: array[int] = field(default_factory=lambda: array("q"))  # whose gaps are measured together
    group_of: dict[tuple[str, str, str], int] = field(default_factory=dict)  # uid, pass, annotator → group

    def place(self, line: int) -> str:
        """Name where a row stands."""
        return f"{self.file}:{self.lists[self.lists_at[line]].path}[{self.index_at[line]}]"

    def fail(self, place: str, reason: str, detail: str, *, uid: str = "", set_name: str = "clips") -> None:
        """Count something that should have held rows, and cannot, as one failed row."""
        self.input_rows[set_name] += 1
        self.rejects.add(set_name, place=f"{self.file}:{place}", uid=uid, reason=reason, detail=detail)

    def table(self, set_name: str) -> pa.Table:
        """Return the rows of a set as `ROWS`, without windows, ranks and tags yet."""
        rows = self.rows[set_name].table()
        where = pa.array(np.array(self.lists_at, np.int64)[rows["line"].to_numpy()])
        no_tags = pa.ListArray.from_arrays(np.zeros(len(rows) + 1, np.int32), pa.array([], pa.int32()))
        columns = {
            **{name: rows[name] for name in rows.column_names},
            "video_uid": pa.array([found.uid for found in self.lists], pa.string()).take(where),
            "narration_source": pa.array([found.source for found in self.lists], pa.string()).take(where),
            "narration_ind": pa.array(np.zeros(len(rows), np.int64)),
            "narration_time": rows["clip_start"],
            "tag_verb": no_tags,
            "tag_noun": no_tags,
        }
        return pa.table([columns[name] for name in ROWS.names], schema=ROWS)


def _walk(text: JsonText, found: _Found) -> None:
    """Step through the file video by video."""
    nested, plain = False, []
    for name in text.members():
        if name == "videos" and text.peek() == "{":
            nested = True
            for uid in text.members():
                _video(uid, text.value(), found)
        else:
            value = text.value()
            if isinstance(value, dict) and any(key in _LISTS or _PASS.fullmatch(key) for key in value):
                _video(name, value, found)
            else:
                plain.append((name, value))
    text.end()
    for name, value in [] if nested else plain:  # beside `videos` they are the file's date, version, taxonomy …
        _video(name, value, found)
    if not found.videos and not any(found.input_rows.values()):
        raise AnnotationError(f"{text.path}: no video in it; narration.json maps video uids to narration passes")


def _video(uid: str, value: Any, found: _Found) -> None:
    if not is_uid(uid):
        found.fail(show(uid), "malformed video_uid", f"video_uid = {show(uid)}")
    elif not isinstance(value, dict):
        found.fail(uid, "malformed video", f"an object of narration passes is needed, not {show(value)}", uid=uid)
    else:
        found.videos.add(uid)
        _pass(uid, PASSES[0], {name: value[name] for name in _LISTS if name in value}, uid, found, flat=True)
        for name, content in value.items():
            if not _PASS.fullmatch(name):
                continue
            where = f"{uid}.{name}"
            if name not in PASSES:
                detail = f"{name}; one of {', '.join(PASSES)} is needed"
                found.fail(where, "malformed narration_source", detail, uid=uid)
            elif not isinstance(content, dict):
                found.fail(where, "malformed pass", f"an object is needed, not {show(content)}", uid=uid)
            else:
                _pass(uid, name, content, where, found, flat=False)


def _pass(uid: str, source: str, content: dict[str, Any], where: str, found: _Found, *, flat: bool) -> None:
    """Read the two lists of one pass of one video."""
    for name, set_name in _LISTS.items():
        items = content.get(name)
        if items is None:
            continue
        place = f"{where}.{name}"
        if not isinstance(items, list):
            detail = f"a list is needed, not {show(items)}"
            found.fail(place, f"malformed {name}", detail, uid=uid, set_name=set_name)
            continue
        stem = make_key(uid, LETTERS[set_name], PASSES.index(source) + 1, "0")[:-1]
        found.lists.append(_List(place, uid, source))
        found.input_rows[set_name] += len(items)
        whole = group = found.group_of.setdefault((uid, source, ""), len(found.group_of))
        for index, item in enumerate(items):
            if flat:
                annotator = item.get("annotation_uid") if isinstance(item, dict) else None
                whose = (uid, source, str(annotator))
                group = whole if annotator is None else found.group_of.setdefault(whose, len(found.group_of))
            found.lists_at.append(len(found.lists) - 1)
            found.index_at.append(index)
            found.groups.append(group)
            _row(item, set_name, stem, found)


def _row(item: Any, set_name: str, stem: str, found: _Found) -> None:
    """Take in one narration or summary, the last of `found.lists_at`."""
    line = len(found.lists_at) - 1

    def reject(reason: str, detail: str, status: str = "failed", key: str = "") -> None:
        place, uid = found.place(line), found.lists[-1].uid
        found.rejects.add(set_name, place=place, uid=uid, key=key, status=status, reason=reason, detail=detail)

    if not isinstance(item, dict):
        reject("malformed row", f"an object is needed, not {show(item)}")
        return
    times = []
    for names in (_TIME,) if set_name == "clips" else (_START, _END):
        name = _first(item, names)
        value = item.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST:
            reject(f"malformed {names[0]}", f"{name} = {show(value)}; seconds from 0 to {LONGEST:.0f} are needed")
            return
        times.append(float(value))
    name = _first(item, _TEXT)
    text = item.get(name)
    if not isinstance(text, str) or not is_text(text):
        reject("malformed text", f"{name} = {show(text)}; Unicode text is needed")
        return
    start, end = times[0], times[-1]
    if end < start:
        reject("reversed times", f"it starts at {start} s and ends at {end} s")
        return
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    key = stem + "-".join([*(f"{round(time * 1000):08d}" for time in times), digest])
    if not text.strip():
        reject("empty text", f"{name} = {show(text)}", "filtered", key)
    elif "#unsure" in text.lower():
        reject("unsure", f"{name} = {show(text)}", "filtered", key)
    elif len(times) == 2 and start == end:
        reject("empty span", f"it starts and ends at {start} s", "filtered", key)
    else:
        found.rows[set_name].add(key, text, start, end, line)


def _first(item: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of `names` that `item` has, or of all where it has none."""
    for name in names:
        if name in item:
            return name
    return names[0]


def _clips(
    narrations: pa.Table, found: _Found, durations: Mapping[str, float], alpha: float | None
) -> tuple[pa.Table, float | None]:
    """Return the narrations with their windows, and the α (s) used.

    α is measured over every pass of the file that has a gap, whatever the split and the exclusions, so that a
    choice of these moves no clip.
    """
    time = narrations["narration_time"].to_numpy()
    group = np.array(found.groups, np.int64)[narrations["line"].to_numpy()]
    beta = mean_gaps(time, group)
    if alpha is None:
        alpha = float(beta[beta > 0].mean()) if (beta > 0).any() else 1.0  # with no gap at all it cancels out
    start, end = window(time, beta[group], alpha)
    for name, values in (("clip_start", np.maximum(start, 0.0)), ("clip_end", end)):
        narrations = narrations.set_column(ROWS.get_field_index(name), ROWS.field(name), pa.array(values))
    return _within_video(narrations, "clips", found, durations), alpha


def _within_video(rows: pa.Table, set_name: str, found: _Found, durations: Mapping[str, float]) -> pa.Table:
    """Return rows with their rank in the pass as `narration_ind` and their end clamped to the video's.

    DelimitedRows that lie wholly past the end become rejects.
    """
    encoded = rows["video_uid"].combine_chunks().dictionary_encode()
    lasts = np.array([durations.get(uid, math.nan) for uid in encoded.dictionary.to_pylist()])
    last = np.nan_to_num(lasts, nan=np.inf)[encoded.indices.to_numpy()]
    start, end = rows["clip_start"].to_numpy(), rows["clip_end"].to_numpy()
    past = start >= last
    row: dict[str, Any]
    for row in rows.filter(pa.array(past)).to_pylist():
        found.rejects.add(
            set_name,
            place=found.place(row["line"]),
            uid=row["video_uid"],
            key=row["key"],
            status="filtered",
            reason="past the end of the video",
            detail=f"it starts at {row['clip_start']} s, the video ends at {durations[row['video_uid']]} s",
        )
    rank = _rank(rows, encoded.indices.to_numpy())
    for name, values in (("clip_end", np.minimum(end, last)), ("narration_ind", rank)):
        rows = rows.set_column(ROWS.get_field_index(name), ROWS.field(name), pa.array(values))
    return rows.filter(pa.array(~past))


def _rank(rows: pa.Table, video: np.ndarray) -> np.ndarray:
    """Return each row's rank within its video and pass, by time, then by key."""
    group = video.astype(np.int64) * 2 + pc.equal(rows["narration_source"], PASSES[1]).to_numpy()
    order = sort_by_start(group, rows["narration_time"].to_numpy(), rows["key"])
    group = group[order]
    position = np.arange(len(group))
    begins = np.insert(group[1:] != group[:-1], 0, True)
    rank = np.empty(len(group), np.int64)
    rank[order] = position - np.maximum.accumulate(np.where(begins, position, 0))
    return rank
