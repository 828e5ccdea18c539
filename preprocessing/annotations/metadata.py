"""Reads metadata of whole videos (durations, stereo, splits) and lists of video uids (val split, exclusions)."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.annotations.config import EGO4D_SPLIT_FIELDS, AnnotationsConfig
from preprocessing.annotations.csv_rows import BadRow, read_header, read_rows
from preprocessing.annotations.files import format_suffix, open_head, read_text
from preprocessing.annotations.json_stream import JsonCursor, RepeatingObject, pairs
from preprocessing.annotations.merge import MetadataFile, RejectedRows, VideoMetadata
from preprocessing.annotations.redaction import FIELD, read_intervals
from preprocessing.annotations.tables import MAX_SECONDS, AnnotationError
from preprocessing.annotations.values import is_uid, show

_DURATION_COLUMN = 2  # of manifest.csv, if no column is named duration_sec
_STRICTEST = ("test", "val", "train")
_TRUTH = {"": False, "0": False, "false": False, "1": True, "true": True}


def read_metadata(config: AnnotationsConfig, rejects: RejectedRows) -> MetadataFile:
    """Return the content of `config.metadata` (ego4d.json or manifest.csv); empty if None.

    A video's split is test if any of `split_fields` is test, otherwise val if any is val, otherwise train. A row with a
    malformed duration, stereo flag or redacted interval is rejected as failed, but what can be read of it still counts:
    otherwise a test video could end up in training. Of rows about one video that differ, the strictest split, all
    redacted intervals and the longest duration count, whatever their order. Raises `AnnotationError` where the file
    cannot be read or a configured split field occurs in no row.
    """
    path = config.metadata
    if path is None:
        return MetadataFile()
    records = _ego4d(path) if _is_json(path) else _manifest(path, config.split_fields)
    rows = 0
    videos: dict[str, VideoMetadata] = {}
    locations: dict[str, str] = {}
    missing = set(config.split_fields)
    for location, record in records:
        rows += 1
        uid = record.get("video_uid") if isinstance(record, dict) else None
        if isinstance(record, BadRow):
            rejects.add("videos", location=location, reason=record.reason, detail=record.value)
        elif not is_uid(uid):
            rejects.add("videos", location=location, reason="malformed video_uid", detail=f"video_uid = {show(uid)}")
        else:
            missing -= record.keys()
            video, problem = _video(record, config.split_fields)
            is_repeated = isinstance(record, RepeatingObject)
            status, reason = "failed", "repeated field" if is_repeated else f"malformed {problem.partition(' ')[0]}"
            if uid in videos:
                same = not problem and repr(video) == repr(videos[uid])  # repr, as NaN is not equal to itself
                status, reason = ("filtered", "duplicate row") if same else ("failed", "duplicate identity")
                problem = f"video {uid} was already described at {locations[uid]}"
                problem += ", word for word" if same else "; the stricter of their values count"
                videos[uid] = _merged(videos[uid], video)
            else:
                videos[uid], locations[uid] = video, location
            if problem:
                rejects.add("videos", location=location, uid=uid, status=status, reason=reason, detail=problem)
    if config.split_fields != EGO4D_SPLIT_FIELDS and missing and videos:
        raise AnnotationError(
            f"{path}: no video has the field {', '.join(sorted(missing))} of annotations.split_fields; "
            "name existing fields, or set split_fields to []"
        )
    return MetadataFile(videos=videos, input_rows=rows)


def read_val_list(config: AnnotationsConfig) -> frozenset[str]:
    """Return the video uids in `config.val_list`; an empty set if it is None."""
    return frozenset(read_uids(config.val_list)) if config.val_list is not None else frozenset()


def read_excluded(config: AnnotationsConfig) -> dict[str, str]:
    """Return uid → name of the first file of `config.exclude` that lists it."""
    return {uid: path.name for path in reversed(config.exclude) for uid in read_uids(path)}


def read_uids(path: Path) -> list[str]:
    """Return the distinct video uids in a file, sorted.

    The file is JSON (every `video_uid` at any depth, as in egomcq.json, or a list of uids), a table with a column
    `video_uid` (separated by commas or tabs), or text with one uid per line and comment lines that start with `#`.
    Raises `AnnotationError` where it has no uid, because an exclusion list must not be ignored silently.
    """
    uids = _json_uids(path) if _is_json(path) else _text_uids(path)
    if not uids:
        raise AnnotationError(
            f"{path}: contains no video uid; list one uid per line, or give JSON or a table with video_uid fields"
        )
    return sorted(uids)


def _video(record: Mapping[str, Any], split_fields: Sequence[str]) -> tuple[VideoMetadata, str]:
    """Return the video that a record describes, and the problem with its values (empty if there is none)."""
    problem = ""
    if isinstance(record, RepeatingObject):
        problem = f"{min(record.repeated)} occurs more than once, with different values"
    duration, stereo = record.get("duration_sec"), record.get("is_stereo")
    if duration is None:
        seconds = math.nan
    elif isinstance(duration, int | float) and not isinstance(duration, bool) and 0 < duration <= MAX_SECONDS:
        seconds = float(duration)
    else:
        seconds = math.nan
        problem = problem or f"duration_sec = {show(duration)}; expected seconds above 0"
    if not (stereo is None or isinstance(stereo, bool)):
        problem = problem or f"is_stereo = {show(stereo)}; expected true or false"
    redacted, redacted_problem = read_intervals(record)
    problem = problem or redacted_problem
    splits = {word for name, value in pairs(record) if name in split_fields for word in _words(value)}
    split = next((split for split in _STRICTEST if split in splits), "train")
    return VideoMetadata(duration=seconds, is_stereo=stereo is True, split=split, redacted=redacted), problem


def _merged(one: VideoMetadata, other: VideoMetadata) -> VideoMetadata:
    """Return what counts of two descriptions of one video; independent of their order."""
    stated = [seconds for seconds in (one.duration, other.duration) if not math.isnan(seconds)]
    return VideoMetadata(
        duration=max(stated, default=math.nan),
        is_stereo=one.is_stereo or other.is_stereo,
        split=next(split for split in _STRICTEST if split in (one.split, other.split)),
        redacted=tuple(sorted({*one.redacted, *other.redacted})),
    )


def _words(value: Any) -> Iterator[str]:
    """Yield the lower-case text in a field that is a string or a list of strings."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item.strip().lower()


def _ego4d(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield location and record of each video: of the list `videos`, of an object by uid, or of a list at the top."""
    cursor = JsonCursor(path)
    has_videos = cursor.peek() == "["
    if has_videos:
        for index in cursor.elements():
            yield f"{path.name}:[{index}]", cursor.value()
    else:
        for name in cursor.members():
            if name == "videos" and cursor.peek() == "[":
                has_videos = True
                for index in cursor.elements():
                    yield f"{path.name}:videos[{index}]", cursor.value()
            elif name == "videos" and cursor.peek() == "{":
                has_videos = True
                for uid in cursor.members():
                    record = cursor.value()
                    if isinstance(record, dict) and "video_uid" not in record:
                        record = {**record, "video_uid": uid}
                    yield f"{path.name}:videos.{show(uid)}", record
            else:
                cursor.value()
    cursor.end()
    if not has_videos:
        raise AnnotationError(f'{path}: no list "videos", so this is not an ego4d.json; see annotations.metadata')


def _manifest(path: Path, split_fields: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield location and record of each row of a manifest.csv; a row that cannot be split is a `BadRow`."""
    header = read_header(path, "," if format_suffix(path) != ".tsv" else "\t")
    columns = header.columns(("video_uid",), ("duration_sec", "is_stereo", FIELD, *split_fields))
    if "duration_sec" not in columns:
        if len(header.names) <= _DURATION_COLUMN:
            raise AnnotationError(f"{path}: no column duration_sec, and no third column to take durations from")
        columns["duration_sec"] = _DURATION_COLUMN
    for rows in read_rows(header, columns):
        for bad in rows.bad:
            yield f"{path.name}:{bad.line}", bad
        for line, cells in zip(rows.lines.tolist(), rows.cells.to_pylist(), strict=True):
            cells["duration_sec"] = _number(cells["duration_sec"])
            if "is_stereo" in cells:
                cells["is_stereo"] = _TRUTH.get(cells["is_stereo"].lower(), cells["is_stereo"])
            yield f"{path.name}:{line}", cells


def _number(text: str) -> float | str | None:
    """Return the number in a cell, None for an empty cell, or the text itself where it is not a number."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _is_json(path: Path) -> bool:
    """Return whether a file is JSON: by its extension, or by its first character for other extensions."""
    suffix = format_suffix(path)
    if suffix in (".json", ".csv", ".tsv"):
        return suffix == ".json"
    return open_head(path).read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _json_uids(path: Path) -> set[str]:
    cursor = JsonCursor(path)
    stack = [cursor.value()]
    cursor.end()
    uids = {item for item in stack[0] if isinstance(item, str)} if isinstance(stack[0], list) else set()
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            uids.update(value for name, value in pairs(item) if name == "video_uid" and isinstance(value, str))
            stack.extend(value for _, value in pairs(item))
        elif isinstance(item, list):
            stack.extend(item)
    return uids - {""}


def _cells(line: str, delimiter: str) -> list[str]:
    """Return the cells of a line; none where it cannot be split."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _text_uids(path: Path) -> set[str]:
    lines = read_text(path).splitlines()
    uids: set[str] = set()
    for delimiter in ",\t":
        if lines and "video_uid" in _cells(lines[0], delimiter):
            header = read_header(path, delimiter)
            for rows in read_rows(header, header.columns(("video_uid",))):
                if rows.bad:
                    bad = rows.bad[0]
                    raise AnnotationError(f"{path} line {bad.line}: {bad.reason}: {bad.value}; correct the line")
                uids.update(rows.cells["video_uid"].to_pylist())
            return uids - {""}
    for number, line in enumerate(lines, start=1):
        uid = line.strip()
        if uid and not uid.startswith("#"):
            if len(uid.split()) > 1 or "," in uid:
                raise AnnotationError(f"{path} line {number}: {show(uid)} is not a video uid; list one uid per line")
            uids.add(uid)
    return uids
