"""Reads Charades-Ego: action segments for training, and whole videos with all their classes for testing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocessing.annotations.benchmark import (
    WHOLE,
    BenchmarkItems,
    Clip,
    MalformedError,
    for_each_row,
    parse_uid,
    read_lines,
    require_order,
    seconds,
)
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import ReaderOutput, RejectedRows
from preprocessing.annotations.tables import AnnotationError
from preprocessing.annotations.values import show
from shards.companions import CharadesLabels, CharadesVideo

_CLASS = re.compile(r"c(\d{3})", re.ASCII)
_NO_ACTION = -1


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: RejectedRows) -> ReaderOutput:
    """Read `config.charades_ego`; `durations` is unused.

    A test video is used as a whole; the column `length`, if there is one, only provides its duration for the ledger.
    Rows with the same times and class but different narrations, or the same test video with different actions, are
    different annotations, and all are kept.
    """
    files = config.charades_ego
    assert files is not None
    items = BenchmarkItems("charades_ego", rejects, distinct=("text",))
    classes = read_classes(files.classes)
    if files.train is not None:
        _read_train(files.train, classes, items)
    if files.test is not None:
        videos = _read_test(files.test, classes, items)
        labels = tuple(CharadesVideo(key=items.key_of(clip), actions=actions) for clip, actions in videos.items())
        items.set_companion("test", CharadesLabels(classes=tuple(classes), videos=labels))
    return items.output()


def read_classes(path: Path) -> list[str]:
    """Return the sentences of the classes, in order; raise `AnnotationError` unless lines start with c000, c001, …"""
    classes: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        name, _, sentence = line.partition(" ")
        if name != f"c{len(classes):03d}" or not sentence.strip():
            raise AnnotationError(f"{path} line {number}: {show(line)}; expected `c{len(classes):03d}` and a sentence")
        classes.append(sentence.strip())
    if not classes:
        raise AnnotationError(f"{path}: contains no class; expected lines such as `c000 Holding some clothes`")
    return classes


def _read_train(path: Path, classes: Sequence[str], items: BenchmarkItems) -> None:
    """Read the table of action segments."""

    def read_row(location: str, cells: dict[str, str]) -> None:
        uid = parse_uid(cells["id"], "id")
        action = _action(cells["cls"], "cls", classes)
        start, end = seconds(cells["t_start"], "t_start"), seconds(cells["t_end"], "t_end")
        require_order(start, end, ("t_start", "t_end"))
        # The class is part of the key, because two actions may have the same times.
        key = items.key(uid, start, end, f"c{action:03d}")
        times = {"video_uid": uid, "split": "train", "clip_start": start, "clip_end": end}
        text = cells["narration"].strip() or classes[action]
        clip, is_new = items.add(key, {**times, "text": text, "action": action}, location=location)
        if not is_new:
            items.reject_repeated(clip, location=location)

    for_each_row(items, path, ("id", "cls", "t_start", "t_end", "narration"), read_row, video="id")


def _read_test(path: Path, classes: Sequence[str], items: BenchmarkItems) -> dict[Clip, tuple[int, ...]]:
    """Read the table of whole videos; return the classes of each in file order."""
    videos: dict[Clip, tuple[int, ...]] = {}

    def read_row(location: str, cells: dict[str, str]) -> None:
        uid = parse_uid(cells["id"], "id")
        actions = sorted({_action(part.split()[0], "actions", classes) for part in _parts(cells["actions"])})
        key = items.key(uid, *WHOLE)
        text = "; ".join(classes[action] for action in actions)
        times = {"video_uid": uid, "split": "test", "clip_start": WHOLE[0], "clip_end": WHOLE[1]}
        clip, is_new = items.add(key, {**times, "text": text, "action": _NO_ACTION}, location=location)
        if is_new:
            videos[clip] = tuple(actions)
        else:
            items.reject_repeated(clip, location=location)
        if length := cells.get("length", "").strip():
            items.note_duration(uid, length, location)

    for_each_row(items, path, ("id", "actions"), read_row, ("length",), video="id")
    return videos


def _parts(text: str) -> list[str]:
    """Return the actions of a cell such as `c092 11.90 21.20;c147 0.00 12.60`."""
    return [part for part in text.split(";") if part.strip()]


def _action(text: str, name: str, classes: Sequence[str]) -> int:
    """Return the number of a class such as c092; raise `MalformedError` where there is no such class."""
    match = _CLASS.fullmatch(text)
    if match is None or int(match[1]) >= len(classes):
        detail = f"{name} = {show(text)}; expected a class c000 … c{len(classes) - 1:03d}"
        raise MalformedError(f"malformed {name}", detail)
    return int(match[1])
