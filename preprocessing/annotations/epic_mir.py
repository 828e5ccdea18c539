"""Reads EPIC-KITCHENS-100's retrieval tables: actions with their classes, and the sentences to retrieve them by."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from preprocessing.annotations.benchmark import Items, MalformedError, for_each_row, require_order, whole_number
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import ReaderOutput, Rejects, is_uid, show
from preprocessing.annotations.tables import LONGEST
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
_FRAMES = ("start_frame", "stop_frame")  # from 1, as the folders of pictures are numbered
_CLOCK = re.compile(r"(\d{1,4}):([0-5]\d):([0-5]\d(?:\.\d{1,9})?)")
# The rates of cameras. EPIC's own numbers count by whole ones, so these go first where a short video fits several.
_RATES = (60.0, 50.0, 30.0, 25.0, 24.0, 48.0, 120.0, 60000 / 1001, 30000 / 1001, 24000 / 1001, 120000 / 1001)
_SLACK = 1.5  # frames by which a frame number may differ from time × rate: both are rounded


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: Rejects) -> ReaderOutput:
    """Read `config.epic_mir`: each split's table and sentences; rows that cannot be used go to `rejects`.

    A sentence takes text and classes from the row of its narration_id, as the official evaluation does; one without
    such a row is a failed row of its own.
    """
    files = config.epic_mir
    assert files is not None
    items = Items("epic_mir", rejects)
    frames: dict[str, list[tuple[float, int]]] = {}
    for split, table, sentences in (
        ("train", files.train, files.train_sentences),
        ("test", files.test, files.test_sentences),
    ):
        if table is not None and sentences is not None:
            videos = _read_table(table, split, items, frames)
            labels = EpicLabels(videos=tuple(videos.values()), sentences=_read_sentences(sentences, videos, items))
            items.accompany(split, labels)
    items.frame_rates = {uid: rate for uid, found in frames.items() if (rate := frame_rate(found)) is not None}
    return items.part()


def frame_rate(stamps: list[tuple[float, int]]) -> float | None:
    """Return the rate (frames/s) by which a video's frames were numbered, from (time in s, frame number) pairs.

    None where no camera's rate explains them.
    """
    if not stamps:
        return None
    return next((r for r in _RATES if all(abs(frame - time * r) <= _SLACK for time, frame in stamps)), None)


def _read_table(
    path: Path, split: str, items: Items, frames: dict[str, list[tuple[float, int]]]
) -> dict[str, EpicVideo]:
    """Return the usable rows by narration_id, in the order of the file; note frame numbers in `frames`."""
    videos: dict[str, EpicVideo] = {}
    places: dict[str, str] = {}

    def take(place: str, cells: dict[str, str]) -> None:
        uid, name = cells["video_id"], cells["narration_id"]
        if not is_uid(uid):
            raise MalformedError("malformed video_id", f"video_id = {show(uid)}; an id that can name a file is needed")
        if not name.strip():
            raise MalformedError("malformed narration_id", f"narration_id = {show(name)}; a name is needed")
        if name in videos:
            detail = f"narration_id {name} is at {places[name]} already; the first is kept"
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
        is_new = items.add(key, {**times, "text": cells["narration"], **own}, place=place)
        videos[name] = EpicVideo(
            key=key, narration_id=name, text=cells["narration"], verb_class=verb, noun_classes=tuple(nouns)
        )
        places[name] = place
        for time, column in ((start, _FRAMES[0]), (end, _FRAMES[1])):
            number = cells.get(column, "")
            if number.isascii() and number.isdigit() and len(number) <= 9:
                frames.setdefault(uid, []).append((time, int(number)))
        if not is_new:
            items.repeated(key, place=place)

    for_each_row(items, path, _COLUMNS, take, _FRAMES, video="video_id")
    return videos


def _read_sentences(path: Path, videos: Mapping[str, EpicVideo], items: Items) -> tuple[EpicSentence, ...]:
    """Return the sentences in the order of their file; only those that cannot be used count as rows."""
    found: dict[str, EpicSentence] = {}

    def take(place: str, cells: dict[str, str]) -> None:
        name = cells["narration_id"]
        if name not in videos:
            detail = f"narration_id = {show(name)}; no usable row of the table has it, and the sentence is left out"
            raise MalformedError("unknown narration_id", detail)
        if name in found:
            raise MalformedError("duplicate identity", f"narration_id {name} is there already; the first is kept")
        row = videos[name]
        found[name] = EpicSentence(
            narration_id=name, text=row.text, verb_class=row.verb_class, noun_classes=row.noun_classes
        )
        items.input_rows -= 1  # its clip is accounted for as a row of the table

    for_each_row(items, path, ("narration_id",), take)
    return tuple(found.values())


def clock(text: str, name: str) -> float:
    """Return the seconds of a time such as 00:01:59.56; raise `MalformedError` where it is none."""
    match = _CLOCK.fullmatch(text)
    value = math.nan
    if match is not None:
        value = round(int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]), 9)
    if not 0 <= value <= LONGEST:
        raise MalformedError(f"malformed {name}", f"{name} = {show(text)}; a time such as 00:01:59.56 is needed")
    return value


def noun_classes(text: str) -> list[int]:
    """Return the distinct classes in a list such as [2, 11], in their order; else raise `MalformedError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not value or not all(type(n) is int and 0 <= n < EPIC_NOUNS for n in value):
        detail = f"all_noun_classes = {show(text)}; classes 0 … {EPIC_NOUNS - 1} as [2, 11] are needed"
        raise MalformedError("malformed all_noun_classes", detail)
    return list(dict.fromkeys(value))
