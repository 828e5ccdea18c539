"""Reads HowTo100M's classification lists: clips of several minutes, each with the class of its video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from preprocessing.annotations.benchmark import (
    BenchmarkItems,
    Clip,
    MalformedError,
    for_each_row,
    parse_uid,
    read_lines,
    require_order,
    seconds,
    whole_number,
)
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import ReaderOutput, RejectedRows
from preprocessing.annotations.tables import AnnotationError
from shards.companions import HowToLabels, HowToVideo

_MAX_CLASSES = 10**6  # larger labels are malformed rather than filtered


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: RejectedRows) -> ReaderOutput:
    """Read `config.howto100m`; rows with labels from `num_classes` on are filtered. `durations` is unused.

    A clip that occurs with different labels, or in both splits, is kept with each.
    """
    files = config.howto100m
    assert files is not None
    items = BenchmarkItems("howto100m", rejects, distinct=("label",))
    classes = _read_classes(files.classes, files.num_classes) if files.classes is not None else ()
    lists = {
        split: _read_list(path, split, classes, files.num_classes, items)
        for split, path in (("train", files.train), ("val", files.val))
        if path is not None
    }
    for split, labels in lists.items():  # after both are read, since keys may depend on both
        videos = tuple(HowToVideo(key=items.key_of(clip), label=label) for clip, label in labels.items())
        items.set_companion(split, HowToLabels(classes=classes, videos=videos))
    return items.output()


def _read_classes(path: Path, count: int) -> tuple[str, ...]:
    """Return the names of the first `count` classes; raise `AnnotationError` where the file has none."""
    names = [line.strip() for line in read_lines(path) if line.strip()]
    if not names:
        raise AnnotationError(f"{path}: contains no class; expected one name per line, class 0 first")
    return tuple(names[:count])


def _read_list(path: Path, split: str, classes: tuple[str, ...], count: int, items: BenchmarkItems) -> dict[Clip, int]:
    """Read the list of one split; return the label of each clip in file order."""
    labels: dict[Clip, int] = {}

    def read_row(location: str, cells: dict[str, str]) -> None:
        uid = parse_uid(cells["video_uid"], "video_uid")
        start, end = (seconds(cells[name], name) for name in ("clip_start", "clip_end"))
        require_order(start, end, ("clip_start", "clip_end"))
        label = whole_number(cells["label"].removesuffix(".0"), "label", _MAX_CLASSES)
        if classes and len(classes) <= label < count:
            detail = f"label = {label}; the file of classes has names for 0 … {len(classes) - 1}"
            raise MalformedError("malformed label", detail)
        if label >= count:
            detail = f"label = {label}; classes from num_classes = {count} on are left out"
            raise MalformedError("class left out", detail, status="filtered")
        key = items.key(uid, start, end)
        times = {"video_uid": uid, "split": split, "clip_start": start, "clip_end": end}
        text = classes[label] if classes else ""
        clip, is_new = items.add(key, {**times, "text": text, "label": label}, location=location)
        if is_new:
            labels[clip] = label
        else:
            items.reject_repeated(clip, location=location)

    for_each_row(items, path, ("video_uid", "clip_start", "clip_end", "label"), read_row, video="video_uid")
    return labels
