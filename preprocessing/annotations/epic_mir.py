"""Reads EPIC-KITCHENS-100's retrieval tables: action clips with their classes, and the sentences to retrieve."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.annotations.benchmark import (
    BenchmarkItems,
    Clip,
    MalformedError,
    for_each_row,
    parse_uid,
    require_order,
    whole_number,
)
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import ReaderOutput, RejectedRows
from preprocessing.annotations.tables import MAX_SECONDS
from preprocessing.annotations.values import is_name, parse_classes, show, text_problem
from shards.companions import EPIC_NOUNS, EPIC_VERBS, EpicLabels, EpicSentence, EpicVideo

_COLUMNS = (
    "narration_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "narration",
    "verb_class",
    "all_noun_classes",
)
_FRAMES = ("start_frame", "stop_frame")  # from 1, as in folders of numbered frames
_CLOCK = re.compile(r"(\d{1,4}):([0-5]\d):([0-5]\d(?:\.\d{1,9})?)", re.ASCII)
# Frame rates of cameras. A short video may fit several; integer ones come first, because EPIC's frame numbers use them.
_RATES = (60.0, 50.0, 30.0, 25.0, 24.0, 48.0, 120.0, 60000 / 1001, 30000 / 1001, 24000 / 1001, 120000 / 1001)
_SLACK = 1.5  # frames by which a frame number may differ from time × rate, since both are rounded


_Frames = dict[str, list[tuple[float, int]]]
"""video_uid → pairs of time (s) and frame number."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A usable row of a table; rows that are equal but for their location have equal digests."""

    narration_id: str  # with a hash of the content where rows that differ share one
    uid: str
    start: float  # s
    end: float  # s
    verb: int
    nouns: tuple[int, ...]
    text: str
    location: str

    @property
    def digest(self) -> str:
        """A hash of everything but the location."""
        content = [self.narration_id, self.uid, self.start, self.end, self.verb, self.nouns, self.text]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: RejectedRows) -> ReaderOutput:
    """Read `config.epic_mir`: the table and the sentences of each split; `durations` is unused.

    Rows that share a narration_id and differ are different annotations: a hash of the content is appended to their
    narration_ids. A sentence takes its text and classes from the row with its narration_id, as in the official
    evaluation, and from the one with its text where there are several; a sentence without such a row is rejected as
    failed. A clip in both splits is kept in both.
    """
    files = config.epic_mir
    assert files is not None
    items = BenchmarkItems("epic_mir", rejects)
    frames: _Frames = {}
    splits: dict[str, tuple[list[tuple[_Row, Clip]], tuple[EpicSentence, ...]]] = {}
    for split, table, sentences in (
        ("train", files.train, files.train_sentences),
        ("test", files.test, files.test_sentences),
    ):
        if table is not None and sentences is not None:
            named = _read_table(table, items, frames)
            rows = [row for same in named.values() for row in same]
            splits[split] = _add(rows, split, items), _read_sentences(sentences, named, items)
    for split, (added, asked) in splits.items():  # after both are read, since keys may depend on both
        videos = tuple(
            EpicVideo(
                key=items.key_of(clip),
                narration_id=row.narration_id,
                text=row.text,
                verb_class=row.verb,
                noun_classes=row.nouns,
            )
            for row, clip in added
        )
        items.set_companion(split, EpicLabels(videos=videos, sentences=asked))
    items.frame_rates = {uid: rate for uid, stamps in frames.items() if (rate := frame_rate(stamps)) is not None}
    return items.output()


def frame_rate(stamps: list[tuple[float, int]]) -> float | None:
    """Return the frame rate (frames/s) that explains pairs of (time in s, frame number); None if none does."""
    if not stamps:
        return None
    return next((r for r in _RATES if all(abs(frame - time * r) <= _SLACK for time, frame in stamps)), None)


def _read_table(path: Path, items: BenchmarkItems, frames: _Frames) -> dict[str, list[_Row]]:
    """Return the usable rows by narration_id, in file order; add their frame numbers to `frames`."""
    rows: dict[tuple[str, str], _Row] = {}  # by narration_id and digest

    def read_row(location: str, cells: dict[str, str]) -> None:
        row = _row(location, cells)
        identity = row.narration_id, row.digest
        if identity in rows:
            detail = f"narration_id {row.narration_id} occurs at {rows[identity].location}, word for word"
            raise MalformedError("duplicate row", detail, status="filtered")
        rows[identity] = row
        for time, column in ((row.start, _FRAMES[0]), (row.end, _FRAMES[1])):
            number = cells.get(column, "")
            if number.isascii() and number.isdigit() and len(number) <= 9:
                frames.setdefault(row.uid, []).append((time, int(number)))
            elif number:
                items.rejects.ignore(location, column, number)

    for_each_row(items, path, _COLUMNS, read_row, _FRAMES, video="video_id")
    named: dict[str, list[_Row]] = {}
    uses = Counter(name for name, _ in rows)
    for (name, digest), row in rows.items():
        distinct = name if uses[name] == 1 else f"{name}-{digest[:12]}"
        named.setdefault(name, []).append(dataclasses.replace(row, narration_id=distinct))
    return named


def _row(location: str, cells: Mapping[str, str]) -> _Row:
    """Return the content of a row; raise `MalformedError` where it cannot be used."""
    uid, name = parse_uid(cells["video_id"], "video_id"), cells["narration_id"]
    if not is_name(name):
        raise MalformedError("malformed narration_id", f"narration_id = {show(name)}; expected a name")
    start, end = (clock(cells[column], column) for column in ("start_timestamp", "stop_timestamp"))
    require_order(start, end, ("start_timestamp", "stop_timestamp"))
    verb = whole_number(cells["verb_class"], "verb_class", EPIC_VERBS)
    nouns = tuple(noun_classes(cells["all_noun_classes"]))
    text = cells["narration"]
    if not text.strip():
        raise MalformedError("empty text", f"narration = {show(text)}")
    if problem := text_problem(text):
        raise MalformedError("malformed text", f"narration = {show(text)}: {problem}")
    return _Row(narration_id=name, uid=uid, start=start, end=end, verb=verb, nouns=nouns, text=text, location=location)


def _add(rows: Sequence[_Row], split: str, items: BenchmarkItems) -> list[tuple[_Row, Clip]]:
    """Add the clips of a table to the items; return each row with its clip, in the order of the file."""
    added = []
    for row in rows:
        item = {
            "video_uid": row.uid,
            "split": split,
            "clip_start": row.start,
            "clip_end": row.end,
            "text": row.text,
            "narration_id": row.narration_id,
            "verb_class": row.verb,
            "noun_classes": list(row.nouns),
        }
        clip, is_new = items.add(items.key(row.uid, row.start, row.end), item, location=row.location)
        added.append((row, clip))
        if not is_new:
            items.reject_repeated(clip, location=row.location)
    return added


def _read_sentences(path: Path, named: Mapping[str, Sequence[_Row]], items: BenchmarkItems) -> tuple[EpicSentence, ...]:
    """Return the sentences in file order; only those that cannot be used count as input rows."""
    sentences: dict[str, EpicSentence] = {}

    def read_row(location: str, cells: dict[str, str]) -> None:
        name = cells["narration_id"]
        rows = named.get(name, ())
        if len(rows) > 1:
            rows = [row for row in rows if row.text == cells.get("narration")]
            if len(rows) != 1:
                detail = f"narration_id = {show(name)}; {len(named[name])} rows of the table have it, and "
                detail += f"{len(rows)} of them the sentence's text"
                raise MalformedError("ambiguous narration_id", detail)
        if not rows:
            detail = f"narration_id = {show(name)}; no usable row of the table has it, so the sentence is left out"
            raise MalformedError("unknown narration_id", detail)
        row = rows[0]
        if row.narration_id in sentences:
            raise MalformedError("duplicate identity", f"narration_id {name} occurs twice; the first is kept")
        sentences[row.narration_id] = EpicSentence(
            narration_id=row.narration_id, text=row.text, verb_class=row.verb, noun_classes=row.nouns
        )
        items.input_rows -= 1  # the row of the table counts instead

    for_each_row(items, path, ("narration_id",), read_row, ("narration",))
    return tuple(sentences.values())


def clock(text: str, name: str) -> float:
    """Return the seconds of a time such as 00:01:59.56; raise `MalformedError` where the text is not one."""
    match = _CLOCK.fullmatch(text)
    value = math.nan
    if match is not None:
        value = round(int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]), 9)
    if not 0 <= value <= MAX_SECONDS:
        raise MalformedError(f"malformed {name}", f"{name} = {show(text)}; expected a time such as 00:01:59.56")
    return value


def noun_classes(text: str) -> list[int]:
    """Return the distinct classes in a list such as [2, 11], in order; raise `MalformedError` where it has none."""
    classes = parse_classes(text, EPIC_NOUNS)
    if not classes:
        detail = f"all_noun_classes = {show(text)}; expected a list of classes 0 … {EPIC_NOUNS - 1} such as [2, 11]"
        raise MalformedError("malformed all_noun_classes", detail)
    return list(dict.fromkeys(classes))
