"""Reads Charades-Ego: action segments to train on, whole videos with all their classes to test on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocessing.annotations.benchmark import (
    WHOLE,
    Items,
    MalformedError,
    for_each_row,
    read_lines,
    require_order,
    seconds,
)
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import ReaderOutput, Rejects, is_uid, show
from preprocessing.annotations.tables import AnnotationError
from shards.companions import CharadesLabels, CharadesVideo

_CLASS = re.compile(r"c(\d{3})")
_NO_ACTION = -1


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: Rejects) -> ReaderOutput:
    """Read `config.charades_ego`; a row that cannot be used goes to `rejects`.

    A video to test on is taken whole, so it ends where it ends; its `length` column, where there is one, only says
    what its loss would cost.
    """
    files = config.charades_ego
    assert files is not None
    items = Items("charades_ego", rejects)
    classes = read_classes(files.classes)
    if files.train is not None:
        _read_train(files.train, classes, items)
    if files.test is not None:
        items.accompany("test", CharadesLabels(classes=tuple(classes), videos=_read_test(files.test, classes, items)))
    return items.part()


def read_classes(path: Path) -> list[str]:
    """Return the sentences of the classes, in order; raise `AnnotationError` where the lines are not c000, c001, …"""
    classes: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        name, _, sentence = line.partition(" ")
        if name != f"c{len(classes):03d}" or not sentence.strip():
            raise AnnotationError(
                f"{path} line {number}: {show(line)}; `c{len(classes):03d}` and its sentence are expected"
            )
        classes.append(sentence.strip())
    if not classes:
        raise AnnotationError(
            f"{path}: there is no class in it; lines such as `c000 Holding some clothes` are expected"
        )
    return classes


def _read_train(path: Path, classes: Sequence[str], items: Items) -> None:
    def take(place: str, cells: dict[str, str]) -> None:
        uid = _video(cells)
        action = _action(cells["cls"], "cls", classes)
        start, end = seconds(cells["t_start"], "t_start"), seconds(cells["t_end"], "t_end")
        require_order(start, end, ("t_start", "t_end"))
        # Two actions may take the same time: what is stored once is a segment of one class.
        key = items.key(uid, start, end, f"c{action:03d}")
        times = {"video_uid": uid, "split": "train", "clip_start": start, "clip_end": end}
        text = cells["narration"].strip() or classes[action]
        if not items.add(key, {**times, "text": text, "action": action}, place=place):
            items.repeated(key, place=place)

    for_each_row(items, path, ("id", "cls", "t_start", "t_end", "narration"), take, video="id")


def _read_test(path: Path, classes: Sequence[str], items: Items) -> tuple[CharadesVideo, ...]:
    videos: dict[str, CharadesVideo] = {}

    def take(place: str, cells: dict[str, str]) -> None:
        uid = _video(cells)
        actions = sorted({_action(part.split()[0], "actions", classes) for part in _parts(cells["actions"])})
        key = items.key(uid, *WHOLE)
        text = "; ".join(classes[action] for action in actions)
        times = {"video_uid": uid, "split": "test", "clip_start": WHOLE[0], "clip_end": WHOLE[1]}
        if not items.add(key, {**times, "text": text, "action": _NO_ACTION}, place=place):
            if videos[key].actions != tuple(actions):
                detail = f"video {uid} is at {items.place_of(key)} already, with other actions; the first is kept"
                raise MalformedError("duplicate identity", detail)
            items.repeated(key, place=place)
            return
        videos[key] = CharadesVideo(key=key, actions=tuple(actions))
        if length := cells.get("length", "").strip():
            items.durations[uid] = seconds(length, "length") or math.nan

    for_each_row(items, path, ("id", "actions"), take, ("length",), video="id")
    return tuple(videos.values())


def _parts(text: str) -> list[str]:
    """Return the actions of a cell such as `c092 11.90 21.20;c147 0.00 12.60`."""
    return [part for part in text.split(";") if part.strip()]


def _video(cells: Mapping[str, str]) -> str:
    if not is_uid(cells["id"]):
        raise MalformedError("malformed id", f"id = {show(cells['id'])}; an id that can name a file is needed")
    return cells["id"]


def _action(text: str, name: str, classes: Sequence[str]) -> int:
    match = _CLASS.fullmatch(text)
    if match is None or int(match[1]) >= len(classes):
        detail = f"{name} = {show(text)}; a class c000 … c{len(classes) - 1:03d} is needed"
        raise MalformedError(f"malformed {name}", detail)
    return int(match[1])
