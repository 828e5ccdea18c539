"""Reads EPIC-KITCHENS-100's retrieval tables: action clips with their classes, and the sentences to retrieve."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from preprocessing.annotations.benchmark import (
    BenchmarkItems,
    MalformedError,
    for_each_row,
    parse_uid,
    require_order,
    whole_number,
)
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import ReaderOutput, RejectedRows
from preprocessing.annotations.tables import MAX_SECONDS
from preprocessing.annotations.values import parse_classes, show
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
_CLOCK = re.compile(r"(\d{1,4}):([0-5]\d):([0-5]\d(?:\.\d{1,9})?)")
# Frame rates of cameras. A short video may fit several; integer ones come first, because EPIC's frame numbers use them.
_RATES = (60.0, 50.0, 30.0, 25.0, 24.0, 48.0, 120.0, 60000 / 1001, 30000 / 1001, 24000 / 1001, 120000 / 1001)
_SLACK = 1.5  # frames by which a frame number may differ from time × rate, since both are rounded


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: RejectedRows) -> ReaderOutput:
    """Read `config.epic_mir`: the table and the sentences of each split; `durations` is unused.

    A sentence takes its text and classes from the row with its narration_id, as in the official evaluation; a sentence
    without such a row is rejected as failed.
    """
    files = config.epic_mir
    assert files is not None
    items = BenchmarkItems("epic_mir", rejects)
    frames: dict[str, list[tuple[float, int]]] = {}
    for split, table, sentences in (
        ("train", files.train, files.train_sentences),
        ("test", files.test, files.test_sentences),
    ):
        if table is not None and sentences is not None:
            videos = _read_table(table, split, items, frames)
            labels = EpicLabels(videos=tuple(videos.values()), sentences=_read_sentences(sentences, videos, items))
            items.set_companion(split, labels)
    items.frame_rates = {uid: rate for uid, stamps in frames.items() if (rate := frame_rate(stamps)) is not None}
    return items.output()


def frame_rate(stamps: list[tuple[float, int]]) -> float | None:
    """Return the frame rate (frames/s) that explains pairs of (time in s, frame number); None if none does."""
    if not stamps:
        return None
    return next((r for r in _RATES if all(abs(frame - time * r) <= _SLACK for time, frame in stamps)), None)


def _read_table(
    path: Path, split: str, items: BenchmarkItems, frames: dict[str, list[tuple[float, int]]]
) -> dict[str, EpicVideo]:
    """Return the usable rows by narration_id, in file order; add their (time, frame number) pairs to `frames`."""
    videos: dict[str, EpicVideo] = {}
    locations: dict[str, str] = {}

    def read_row(location: str, cells: dict[str, str]) -> None:
        uid, name = parse_uid(cells["video_id"], "video_id"), cells["narration_id"]
        if not name.strip():
            raise MalformedError("malformed narration_id", f"narration_id = {show(name)}; expected a name")
        if name in videos:
            detail = f"narration_id {name} was already used at {locations[name]}; the first row is kept"
            raise MalformedError("duplicate identity", detail)
        start, end = (clock(cells[column], column) for column in ("start_timestamp", "stop_timestamp"))
        require_order(start, end, ("start_timestamp", "stop_timestamp"))
        verb = whole_number(cells["verb_class"], "verb_class", EPIC_VERBS)
        nouns = noun_classes(cells["all_noun_classes"])
        if not cells["narration"].strip():
            raise MalformedError("empty text", f"narration = {show(cells['narration'])}")
        key = items.key(uid, start, end)
        own = {"narration_id": name, "verb_class": verb, "noun_classes": nouns}
        times = {"video_uid": uid, "split": split, "clip_start": start, "clip_end": end}
        is_new = items.add(key, {**times, "text": cells["narration"], **own}, location=location)
        videos[name] = EpicVideo(
            key=key, narration_id=name, text=cells["narration"], verb_class=verb, noun_classes=tuple(nouns)
        )
        locations[name] = location
        for time, column in ((start, _FRAMES[0]), (end, _FRAMES[1])):
            number = cells.get(column, "")
            if number.isascii() and number.isdigit() and len(number) <= 9:
                frames.setdefault(uid, []).append((time, int(number)))
        if not is_new:
            items.reject_repeated(key, location=location)

    for_each_row(items, path, _COLUMNS, read_row, _FRAMES, video="video_id")
    return videos


def _read_sentences(path: Path, videos: Mapping[str, EpicVideo], items: BenchmarkItems) -> tuple[EpicSentence, ...]:
    """Return the sentences in file order; only those that cannot be used count as input rows."""
    sentences: dict[str, EpicSentence] = {}

    def read_row(location: str, cells: dict[str, str]) -> None:
        name = cells["narration_id"]
        if name not in videos:
            detail = f"narration_id = {show(name)}; no usable row of the table has it, so the sentence is left out"
            raise MalformedError("unknown narration_id", detail)
        if name in sentences:
            raise MalformedError("duplicate identity", f"narration_id {name} occurs twice; the first is kept")
        row = videos[name]
        sentences[name] = EpicSentence(
            narration_id=name, text=row.text, verb_class=row.verb_class, noun_classes=row.noun_classes
        )
        items.input_rows -= 1  # the row of the table counts instead

    for_each_row(items, path, ("narration_id",), read_row)
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
