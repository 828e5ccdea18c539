"""Reads what is known of whole videos: durations, stereo and splits, and the lists of videos that evaluation uses."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.annotations.config import EGO4D_SPLIT_FIELDS, AnnotationsConfig
from preprocessing.annotations.csv_rows import BadRow, read_header, read_rows
from preprocessing.annotations.json_stream import JsonText
from preprocessing.annotations.merge import Metadata, Rejects, Video, is_uid, show
from preprocessing.annotations.tables import LONGEST, AnnotationError

_DURATION_COLUMN = 2  # of manifest.csv, where no column is called duration_sec
_TRUTH = {"": False, "0": False, "false": False, "1": True, "true": True}


def read_metadata(config: AnnotationsConfig, rejects: Rejects) -> Metadata:
    """Return what `config.metadata` (ego4d.json or manifest.csv) says of each video; nothing where it is None.

    A video's split is test where any of `split_fields` says test, else val where any says val, else train. A row
    with a duration or a stereo flag that cannot be read is a failed reject, but its split holds all the same:
    losing it would move a test video into training. A second row of a video is a duplicate as in the annotations.
    """
    path = config.metadata
    if path is None:
        return Metadata()
    records = _ego4d(path) if _is_json(path) else _manifest(path, config.split_fields)
    rows = 0
    videos: dict[str, Video] = {}
    places: dict[str, str] = {}
    missing = set(config.split_fields)
    for place, record in records:
        rows += 1
        uid = record.get("video_uid") if isinstance(record, dict) else None
        if isinstance(record, BadRow):
            rejects.add("videos", place=place, reason=record.reason, detail=record.value)
        elif not is_uid(uid):
            rejects.add("videos", place=place, reason="malformed video_uid", detail=f"video_uid = {show(uid)}")
        else:
            missing -= record.keys()
            video, problem = _video(record, config.split_fields)
            status, reason = "failed", f"malformed {problem.partition(' ')[0]}"
            if uid in videos:
                same = not problem and repr(video) == repr(videos[uid])  # repr, as NaN is not equal to itself
                status, reason = ("filtered", "duplicate row") if same else ("failed", "duplicate identity")
                problem = f"video {uid} is at {places[uid]} already; the first is kept"
            else:
                videos[uid], places[uid] = video, place
            if problem:
                rejects.add("videos", place=place, uid=uid, status=status, reason=reason, detail=problem)
    if config.split_fields != EGO4D_SPLIT_FIELDS and missing and videos:
        raise AnnotationError(
            f"{path}: no video has the field {', '.join(sorted(missing))} of annotations.split_fields; "
            "name fields that are there, or set split_fields to []"
        )
    return Metadata(videos=videos, input_rows=rows)


def read_val_list(config: AnnotationsConfig) -> frozenset[str]:
    """Return the video uids of `config.val_list`; none where it is None."""
    return frozenset(read_uids(config.val_list)) if config.val_list is not None else frozenset()


def read_excluded(config: AnnotationsConfig) -> dict[str, str]:
    """Return uid → name of the file that lists it, over `config.exclude`."""
    return {uid: path.name for path in reversed(config.exclude) for uid in read_uids(path)}


def read_uids(path: Path) -> list[str]:
    """Return the distinct video uids that a file lists, sorted.

    The file is JSON (every `video_uid` at any depth, as in egomcq.json, or a list of uids), a table with a column
    `video_uid` (commas or tabs), or text with a uid a line (`#` starts a comment line). A file without any uid
    is an `AnnotationError`: an exclusion that excludes nothing must not pass in silence.
    """
    uids = _json_uids(path) if _is_json(path) else _text_uids(path)
    if not uids:
        raise AnnotationError(f"{path}: no video uid in it; give one a line, or JSON or a table with video_uid fields")
    return sorted(uids)


def _video(record: Mapping[str, Any], split_fields: Sequence[str]) -> tuple[Video, str]:
    """Return the video that a record describes, and what could not be read of it (or an empty text)."""
    problem = ""
    duration, stereo = record.get("duration_sec"), record.get("is_stereo")
    if duration is None:
        seconds = math.nan
    elif isinstance(duration, int | float) and not isinstance(duration, bool) and 0 < duration <= LONGEST:
        seconds = float(duration)
    else:
        seconds = math.nan
        problem = f"duration_sec = {show(duration)}; seconds above 0 are needed"
    if not (stereo is None or isinstance(stereo, bool)):
        problem = problem or f"is_stereo = {show(stereo)}; true or false is needed"
    said = {word for name in split_fields for word in _words(record.get(name))}
    split = "test" if "test" in said else "val" if "val" in said else "train"
    return Video(duration=seconds, is_stereo=stereo is True, split=split), problem


def _words(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item.strip().lower()


def _ego4d(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and record of each of `videos[]`."""
    text = JsonText(path)
    found = False
    for name in text.members():
        if name == "videos" and text.peek() == "[":
            found = True
            for index in text.elements():
                yield f"{path.name}:videos[{index}]", text.value()
        else:
            text.value()
    text.end()
    if not found:
        raise AnnotationError(f'{path}: no list "videos" in it, so it is no ego4d.json; see annotations.metadata')


def _manifest(path: Path, split_fields: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield place and record of each row of a manifest.csv; the record is a `BadRow` where it cannot be split."""
    header = read_header(path, "," if path.suffix.lower() != ".tsv" else "\t")
    columns = header.columns(("video_uid",), ("duration_sec", "is_stereo", *split_fields))
    if "duration_sec" not in columns:
        if len(header.names) <= _DURATION_COLUMN:
            raise AnnotationError(f"{path}: no column duration_sec, and no third column either, which holds it")
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
    """Return a cell's number, None for an empty cell, the text itself where it is no number."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _is_json(path: Path) -> bool:
    """Return whether a file is JSON by its extension, or by how it starts where the extension says nothing."""
    suffix = path.suffix.lower()
    if suffix in (".json", ".csv", ".tsv"):
        return suffix == ".json"
    with path.open("rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _json_uids(path: Path) -> set[str]:
    text = JsonText(path)
    stack = [text.value()]
    text.end()
    found = {item for item in stack[0] if isinstance(item, str)} if isinstance(stack[0], list) else set()
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if isinstance(item.get("video_uid"), str):
                found.add(item["video_uid"])
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return found - {""}


def _text_uids(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 at byte {error.start}; a list of video uids must be UTF-8") from None
    for delimiter in ",\t":
        names = next(csv.reader(lines[:1], delimiter=delimiter), [])
        if "video_uid" in names and lines:
            header = read_header(path, delimiter)
            found: set[str] = set()
            for rows in read_rows(header, header.columns(("video_uid",))):
                if rows.bad:
                    bad = rows.bad[0]
                    raise AnnotationError(f"{path} line {bad.line}: {bad.reason}: {bad.value}; mend the line")
                found.update(rows.cells["video_uid"].to_pylist())
            return found - {""}
    found = set()
    for number, line in enumerate(lines, start=1):
        uid = line.strip()
        if uid and not uid.startswith("#"):
            if len(uid.split()) > 1 or "," in uid:
                raise AnnotationError(f"{path} line {number}: {show(uid)} is no video uid; give one a line")
            found.add(uid)
    return found
