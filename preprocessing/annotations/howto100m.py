"""Reads HowTo100M's classification lists: stretches of minutes, each with the class of its video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from preprocessing.annotations.benchmark import (
    Items,
    MalformedError,
    for_each_row,
    read_lines,
    require_order,
    seconds,
    whole_number,
)
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import ReaderOutput, Rejects, is_uid, show
from preprocessing.annotations.tables import AnnotationError
from shards.companions import HowToLabels, HowToVideo

_MOST_CLASSES = 10**6  # a label past it is an error, and not a class that is left out


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: Rejects) -> ReaderOutput:
    """Read `config.howto100m`; videos of classes from `num_classes` on are filtered, malformed rows fail."""
    files = config.howto100m
    assert files is not None
    items = Items("howto100m", rejects)
    classes = _read_classes(files.classes, files.num_classes) if files.classes is not None else ()
    for split, path in (("train", files.train), ("val", files.val)):
        if path is not None:
            videos = _read_list(path, split, classes, files.num_classes, items)
            items.accompany(split, HowToLabels(classes=classes, videos=videos))
    return items.part()


def _read_classes(path: Path, count: int) -> tuple[str, ...]:
    names = [line.strip() for line in read_lines(path) if line.strip()]
    if not names:
        raise AnnotationError(f"{path}: there is no class in it; names, one a line, class 0 first, are expected")
    return tuple(names[:count])


def _read_list(path: Path, split: str, classes: tuple[str, ...], count: int, items: Items) -> tuple[HowToVideo, ...]:
    videos: dict[str, HowToVideo] = {}

    def take(place: str, cells: dict[str, str]) -> None:
        uid = cells["video_uid"]
        if not is_uid(uid):
            raise MalformedError(
                "malformed video_uid", f"video_uid = {show(uid)}; an id that can name a file is needed"
            )
        start, end = (seconds(cells[name], name) for name in ("clip_start", "clip_end"))
        require_order(start, end, ("clip_start", "clip_end"))
        label = whole_number(cells["label"].removesuffix(".0"), "label", _MOST_CLASSES)
        if classes and len(classes) <= label < count:
            detail = f"label = {label}; the file of classes names 0 … {len(classes) - 1}"
            raise MalformedError("malformed label", detail)
        if label >= count:
            detail = f"label = {label}; classes from num_classes = {count} on are left out"
            raise MalformedError("class left out", detail, status="filtered")
        key = items.key(uid, start, end)
        times = {"video_uid": uid, "split": split, "clip_start": start, "clip_end": end}
        text = classes[label] if classes else ""
        if not items.add(key, {**times, "text": text, "label": label}, place=place):
            if (before := items.kept(key)["label"]) != label:
                detail = f"label = {label}, but {before} at {items.place_of(key)}; the first is kept"
                raise MalformedError("duplicate identity", detail)
            items.repeated(key, place=place)
            return
        videos[key] = HowToVideo(key=key, label=label)

    for_each_row(items, path, ("video_uid", "clip_start", "clip_end", "label"), take, video="video_uid")
    return tuple(videos.values())
