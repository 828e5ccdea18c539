"""Reads own videos and their captions into the tables of annotations, and accounts for every row."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import (
    ROW_SCHEMA,
    RejectedRows,
    VideoMetadata,
    deduplicate,
    exclude,
    finish,
    videos_table,
)
from preprocessing.annotations.metadata import read_uids
from preprocessing.annotations.tables import NARRATION_SCHEMA, AnnotationError, Annotations, OwnVideos
from preprocessing.annotations.values import plain, show, text_problem
from preprocessing.own.config import CaptionsConfig
from preprocessing.own.rows import CaptionRow, CaptionSource, UnreadableRow
from preprocessing.own.subtitles import open_subtitles
from preprocessing.own.tables import open_table
from preprocessing.own.tags import Vocabulary, split_words
from preprocessing.own.times import FORMS, parse_time
from preprocessing.own.videos import OwnFiles, VideoNames
from preprocessing.video.probe import ProbedVideo
from preprocessing.video.sources import ProbeTask, probe_video
from shards.keys import make_key
from shards.schema import set_spec

_LEVELS = {"": "clips", "clip": "clips", "clips": "clips", "narration": "clips", "summary": "summaries"} | {
    "summaries": "summaries"
}
_SPLITS = {"": "", "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"} | {
    "dev": "val",
    "test": "test",
}
_STRICTEST = ("test", "val", "train")
_ROUNDING = 0.01  # s by which a caption may end after its video because containers round their times
_MAX_EXTRA = 1 << 16  # bytes of a row's further columns
_UNKNOWN_SECONDS = 1.0  # length by which the rows of a video that cannot be read are planned; packing will refuse them
_SCHEMA = ROW_SCHEMA.append(pa.field("extra", pa.string()))
Say = Callable[[str], None]


class _RejectedError(ValueError):
    """A row that is not used; `reason` names the kind of problem."""

    def __init__(self, reason: str, detail: str, *, status: str = "failed") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.status = reason, detail, status


@dataclass(kw_only=True)
class _Collected:
    """What the rows of all sources add up to while they are read."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"clips": [], "summaries": []})
    read: dict[str, int] = field(default_factory=lambda: {"clips": 0, "summaries": 0})  # rows of the files
    locations: list[str] = field(default_factory=list)  # number of a row → file:line
    splits: dict[str, set[str]] = field(default_factory=dict)  # uid → what its rows say
    clamped: int = 0
    most: float = 0.0  # s by which a clamped caption ended after its video


def probe_durations(files: OwnFiles) -> dict[str, float]:
    """Return the duration (s) of every video; NaN where it cannot be read, which a build reports later."""

    def duration(item: tuple[str, Path]) -> tuple[str, float]:
        found = probe_video(ProbeTask(video_uid=item[0], path=item[1], root=files.root))
        return item[0], found.duration if isinstance(found, ProbedVideo) else math.nan

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(pool.map(duration, files.videos.items()))


def read_own(
    files: OwnFiles,
    annotations: AnnotationsConfig,
    captions: CaptionsConfig,
    *,
    tolerance: float,
    allow_missing: bool = False,
    before: Mapping[str, Any] | None = None,
    say: Say = lambda text: None,
) -> Annotations:
    """Return own videos and their captions as tables; each row of a file is in exactly one of the tables.

    `tolerance` (s): how much later than its video a caption may end; it is then cut at the video's end. `before` is the
    published provenance of the same dataset, whose words keep their numbers. `say` gets a sentence about each decision.
    Raises `AnnotationError` where a file cannot be used as a whole.
    """
    for message in files.messages:
        say(message)
    durations = probe_durations(files)
    rejects = RejectedRows()
    got = _Collected()
    names = VideoNames(files)
    reader = _Reader(durations, names, rejects, got, tolerance=tolerance, allow_missing=allow_missing)
    extra: dict[str, None] = {}
    sources: dict[str, Path] = {}
    for name, opened in _sources(files, annotations, captions):
        with opened as source:
            if source.decided:
                say(source.decided)
            extra.update(dict.fromkeys(source.extra))
            count = sum(reader.take(row) for row in source.rows)
            say(f"{source.path.name}: {count} captions")
        sources[name] = source.path
    if not any(got.read.values()):
        if annotations.captions is not None:
            raise AnnotationError(f"{annotations.captions}: has no row; set annotations.captions=null to use windows")
        _add_windows(reader, durations, captions.windows)
        say(f"no captions: {len(durations)} videos in windows of {captions.windows:g} s ({got.read['clips']} in all)")
    if got.clamped:
        say(
            f"{got.clamped} captions end after their video, by at most {got.most:.2f} s, and are cut at its end "
            f"(end_tolerance = {tolerance:g} s)"
        )
    taxonomy = _number_words(got, (before or {}).get("taxonomy") or {}, say)
    excluded = {names.find(name)[0] or name: path.name for path in annotations.exclude for name in read_uids(path)}
    tables = _tables(got, tuple(extra), excluded, rejects)
    splits = _splits(durations, got, annotations, captions, names, say)
    described = {uid: VideoMetadata(duration=seconds, split=splits[uid]) for uid, seconds in durations.items()}
    return Annotations(
        videos=videos_table(described, {}, frozenset()),
        sets=tables,
        rejects=rejects.table(tables),
        sources=_hashes(sources, annotations),
        input_rows={**{name: got.read[name] for name in tables}, "videos": 0},
        alpha=None,
        own=OwnVideos(taxonomy=taxonomy, extra_columns=tuple(extra), excluded=excluded, clamped=got.clamped),
    )


def _sources(
    files: OwnFiles, annotations: AnnotationsConfig, captions: CaptionsConfig
) -> Iterator[tuple[str, AbstractContextManager[CaptionSource]]]:
    """Yield the name and the opener of every file of captions."""
    if annotations.captions is not None:
        if not annotations.captions.is_file() and not annotations.captions.is_dir():
            raise AnnotationError(f"annotations.captions = {annotations.captions}: there is no such file")
        yield annotations.captions.name, open_table(annotations.captions, captions.columns)
    for uid, path in files.subtitles.items() if captions.subtitles else ():
        yield path.relative_to(files.root).as_posix(), open_subtitles(path, uid)


@dataclass
class _Reader:
    """Turns rows of text into items, or rejects them."""

    durations: Mapping[str, float]  # uid → s; NaN where the video cannot be read
    names: VideoNames
    rejects: RejectedRows
    got: _Collected
    tolerance: float
    allow_missing: bool

    def take(self, row: CaptionRow | UnreadableRow) -> bool:
        """Add a row to the items of its set or to the rejected rows; return whether it is an item."""
        level, uid = "clips", ""
        try:
            if isinstance(row, UnreadableRow):
                raise _RejectedError(row.reason, row.detail)
            level = _level(row)
            uid = self._video(row)
            self._add(level, uid, row)
        except _RejectedError as error:
            self.got.read[level] += 1
            self.rejects.add(
                level, location=row.location, uid=uid, status=error.status, reason=error.reason, detail=error.detail
            )
            return False
        self.got.read[level] += 1
        return True

    def _video(self, row: CaptionRow) -> str:
        if row.video in self.durations:
            return row.video
        uid, problem = self.names.find(row.video)
        if problem:
            reason, _, detail = problem.partition(": ")
            is_allowed = reason == "missing" and self.allow_missing
            raise _RejectedError(
                "video absent" if is_allowed else reason, detail, status="filtered" if is_allowed else "failed"
            )
        return uid

    def _add(self, level: str, uid: str, row: CaptionRow) -> None:
        if not row.caption.strip():
            raise _RejectedError("empty text", f"caption = {show(row.caption)}", status="filtered")
        if problem := text_problem(row.caption):
            raise _RejectedError("malformed text", f"{show(row.caption)}: {problem}")
        extra = json.dumps(row.extra, ensure_ascii=False)
        if problem := text_problem(extra, _MAX_EXTRA):
            raise _RejectedError("malformed extra column", problem)
        split = row.split.strip().lower()
        if split not in _SPLITS:
            raise _RejectedError("malformed split", f"split = {show(row.split)}; expected train, val or test")
        verbs, nouns = (split_words(cell) for cell in (row.verbs, row.nouns))
        for cell, words in ((row.verbs, verbs), (row.nouns, nouns)):
            if words is None:
                raise _RejectedError("malformed tags", f"{show(cell)}: expected words separated by `;`, or a JSON list")
        start, end, identity = self._times(uid, row)
        self.add_item(level, uid, start, end, identity, row.caption.strip(), extra, row.location)
        if _SPLITS[split]:
            self.got.splits.setdefault(uid, set()).add(_SPLITS[split])
        self.got.rows[level][-1] |= {"verbs": verbs, "nouns": nouns}

    def add_item(
        self, level: str, uid: str, start: float, end: float, identity: str, text: str, extra: str, location: str
    ) -> None:
        """Append an item whose tags are still words."""
        self.got.rows[level].append(
            {
                "key": make_key(uid, set_spec(level).letter, 0, identity),
                "video_uid": uid,
                "narration_source": "narration_pass_1",
                "narration_ind": 0,
                "narration_time": (start + end) / 2,
                "clip_start": start,
                "clip_end": end,
                "text": text,
                "verbs": [],
                "nouns": [],
                "line": len(self.got.locations),
                "extra": extra,
            }
        )
        self.got.locations.append(location)

    def _times(self, uid: str, row: CaptionRow) -> tuple[float, float, str]:
        """Return start and end (s), cut at the video's end within the tolerance, and what identifies them."""
        stated: list[float | None] = []
        for name, cell in (("start", row.start), ("end", row.end)):
            seconds = parse_time(cell) if cell.strip() else None
            if seconds is None and cell.strip():
                raise _RejectedError(f"malformed {name}", f"{name} = {show(cell)}; expected {FORMS}")
            stated.append(seconds)
        start, end = stated[0] or 0.0, stated[1]
        length = self.durations[uid]
        last = (length if end is None else end) if not math.isnan(length) else (end or start + _UNKNOWN_SECONDS)
        if last < start and end is not None:
            raise _RejectedError("reversed times", f"start = {row.start}, end = {row.end}")
        if start >= length:
            raise _RejectedError(
                "past the end of the video", f"starts at {start:.3f} s, the video ends at {length:.3f} s"
            )
        if last > length + self.tolerance:
            raise _RejectedError("ends after the video", f"ends at {last:.3f} s, the video at {length:.3f} s")
        if last > length:
            if last > length + _ROUNDING:
                self.got.clamped += 1
                self.got.most = max(self.got.most, last - length)
            last = length
        return start, last, _identity(stated[0], stated[1])


def _identity(start: float | None, end: float | None) -> str:
    """Return what identifies a caption within its video: its times as stated, to the microsecond."""
    if start is None and end is None:
        return "whole"
    return "-".join("end" if time is None else f"{round(time * 1e6):010d}" for time in (start or 0.0, end))


def _level(row: CaptionRow) -> str:
    level = _LEVELS.get(row.level.strip().lower())
    if level is None:
        raise _RejectedError("malformed level", f"level = {show(row.level)}; expected clip or summary")
    return level


def _add_windows(reader: _Reader, durations: Mapping[str, float], seconds: float) -> None:
    """Cut every video into windows with empty captions; a rest of less than half a window belongs to the one before."""
    for uid, length in durations.items():
        known = seconds if math.isnan(length) else length  # planned, so that packing says why it cannot be read
        count = max(1, math.floor(known / seconds + 0.5))
        for index in range(count):
            start, end = index * seconds, known if index == count - 1 else (index + 1) * seconds
            identity = _identity(start, (index + 1) * seconds)
            reader.add_item("clips", uid, start, end, identity, "", "{}", uid)
            reader.got.read["clips"] += 1


def _number_words(got: _Collected, before: Mapping[str, Any], say: Say) -> dict[str, list[str]]:
    """Give every item class numbers in place of its verbs and nouns; return the names of the classes."""
    taxonomy: dict[str, list[str]] = {}
    for kind, column in (("verbs", "tag_verb"), ("nouns", "tag_noun")):
        rows = [row for rows in got.rows.values() for row in rows]
        vocabulary = Vocabulary(kind, (row[kind] for row in rows), before.get(kind) or [])
        for row in rows:
            row[column] = vocabulary.numbers(row.pop(kind))
        for message in vocabulary.messages:
            say(message)
        taxonomy[kind] = vocabulary.names
    return taxonomy


def _tables(
    got: _Collected, extra: tuple[str, ...], excluded: Mapping[str, str], rejects: RejectedRows
) -> dict[str, pa.Table]:
    """Return the items of each set that has rows, without repeated rows and excluded videos."""
    tables = {}
    schema = NARRATION_SCHEMA.append(pa.field("extra", pa.string())) if extra else NARRATION_SCHEMA
    for name, rows in got.rows.items():
        if not got.read[name]:
            continue
        for row in rows:  # every record of a dataset has the same columns, whichever file it is from
            own = json.loads(row["extra"])
            row["extra"] = json.dumps({each: own.get(each, "") for each in extra}, ensure_ascii=False)
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        table = deduplicate(table, name, got.locations.__getitem__, rejects)
        table = exclude(table, name, got.locations.__getitem__, excluded, rejects)
        tables[name] = _numbered(finish([table], schema, name))
    return tables


def _numbered(items: pa.Table) -> pa.Table:
    """Return items, sorted by video, with their number within their video as `narration_ind`."""
    numbers: Counter[str] = Counter()
    column = []
    for uid in items["video_uid"].to_pylist():
        column.append(numbers[uid])
        numbers[uid] += 1
    at = items.schema.get_field_index("narration_ind")
    return items.set_column(at, items.schema.field(at), pa.array(column, pa.int64()))


def _splits(
    durations: Mapping[str, float],
    got: _Collected,
    annotations: AnnotationsConfig,
    captions: CaptionsConfig,
    names: VideoNames,
    say: Say,
) -> dict[str, str]:
    """Return the split of every video: as its rows say, the strictest of several; then the val list; then by hash."""
    listed = set()
    if annotations.val_list is not None:
        for name in read_uids(annotations.val_list):
            uid, problem = names.find(name)
            if problem:
                raise AnnotationError(f"{annotations.val_list}: {problem}")
            listed.add(uid)
    splits = {}
    for uid in durations:
        stated = got.splits.get(uid, set())
        if stated:
            splits[uid] = next(split for split in _STRICTEST if split in stated)
        elif annotations.val_list is not None:
            splits[uid] = "val" if uid in listed else "train"
        else:
            splits[uid] = "val" if _share(captions.seed, uid) < captions.val_fraction else "train"
    mixed = sorted(uid for uid, stated in got.splits.items() if len(stated) > 1)
    if mixed:
        say(
            f"{len(mixed)} videos have rows of several splits, such as {mixed[0]}: a video is in one split, of test, "
            "val and train the first that its rows name"
        )
    if durations and "val" not in splits.values():
        say("no video is in the val split: raise captions.val_fraction, change captions.seed, or use a column split")
    return splits


def _share(seed: int, uid: str) -> float:
    """Return a number from 0 to 1 that depends on seed and uid only."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{uid}".encode(), digest_size=8).digest()) / 2**64


def _hashes(sources: Mapping[str, Path], annotations: AnnotationsConfig) -> dict[str, str]:
    """Return the name of every file that was read → its sha256; the path where two have one name."""
    paths: Sequence[Path] = [*sources.values(), *annotations.exclude]
    paths = [*paths, *([annotations.val_list] if annotations.val_list is not None else [])]
    names = [path.name for path in paths]
    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        hashes[plain(path.name) if names.count(path.name) == 1 else str(path)] = digest
    return hashes
