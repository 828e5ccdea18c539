"""Readers of hierarchies: Ego4D Goal-Step, Ego4D-HCap, Ego-Exo4D, and EPIC-KITCHENS' narrations.

Each yields rows of two levels, clip and summary; `kind` and `parent` keep what the dataset itself calls them.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.hierarchies.rows import (
    AnnotationFileError,
    Rejects,
    Row,
    checked,
    read_json,
    read_plain_pickle,
    split_of,
)

Reader = Callable[[Path, Rejects], Iterator[Row]]


def goalstep(path: Path, rejects: Rejects) -> Iterator[Row]:
    """Yield goals and steps with substeps as summaries, substeps and steps without any as clips.

    Videos `grp-…` are several videos joined, which no file of that name shows: they are rejected. A goal without a
    summary is described by `goal_description`.
    """
    value = read_json(path)
    split = split_of(path, _get(value, "split"))
    for video in _list(value, "videos", path):
        uid = str(_get(video, "video_uid") or "")
        if uid.startswith("grp-"):
            rejects.add("a group of videos", uid)
            continue
        goal_id = f"{uid}/goal"
        summary = " ".join(map(str, _get(video, "summary") or [])) or str(_get(video, "goal_description") or "")
        yield from _row(
            video, ("start_time", "end_time"), rejects, goal_id, video=uid, caption=summary, level="summary",
            split=split, kind="goal", id=goal_id,
        )  # fmt: skip
        for number, step in enumerate(_get(video, "segments") or []):
            step_id, substeps = f"{uid}/{number}", _get(step, "segments") or []
            yield from _row(
                step, ("start_time", "end_time"), rejects, step_id, video=uid,
                caption=str(_get(step, "step_description") or ""), level="summary" if substeps else "clip",
                split=split, kind="step", id=step_id, parent=goal_id,
            )  # fmt: skip
            for place, substep in enumerate(substeps):
                own = f"{step_id}/{place}"
                yield from _row(
                    substep, ("start_time", "end_time"), rejects, own, video=uid,
                    caption=str(_get(substep, "step_description") or ""), level="clip", split=split,
                    kind="substep", id=own, parent=step_id,
                )  # fmt: skip


def hcap(path: Path, rejects: Rejects) -> Iterator[Row]:
    """Yield clip captions as clips, segment descriptions and video summaries as summaries.

    The pickles hold tuples (video, start, end, caption), or records with `vid`, `start_sec`, `end_sec` and
    `segment_description` or `video_summary`. They are joined by video and time, as the build does.
    """
    split = split_of(path)
    kind = next((name for name in ("clips", "segments", "videos") if path.stem.startswith(name)), "")
    if not kind:
        raise AnnotationFileError(f"{path}: expected clips_….pkl, segments_….pkl or videos_….pkl")
    field = {"segments": "segment_description", "videos": "video_summary"}.get(kind, "caption")
    value = read_plain_pickle(path)
    for number, item in enumerate(value if isinstance(value, (list, tuple)) else []):
        where = f"{path.name}: {number}"
        if isinstance(item, (list, tuple)) and len(item) >= 4:
            item = {"vid": item[0], "start_sec": item[1], "end_sec": item[2], field: item[3]}
        if not isinstance(item, Mapping):
            rejects.add("not a record", where)
            continue
        caption = item.get(field)
        text = " ".join(map(str, caption)) if isinstance(caption, (list, tuple)) else str(caption or "")
        yield from _row(
            item, ("start_sec", "end_sec"), rejects, where, video=str(item.get("vid") or ""), caption=text,
            level="clip" if kind == "clips" else "summary", split=split, kind=kind.removesuffix("s"),
            id=f"{kind}/{number}",
        )  # fmt: skip


def egoexo(path: Path, rejects: Rejects) -> Iterator[Row]:
    """Yield atomic descriptions as clips, key steps as summaries.

    A description is a point in time. Its clip is t ± β/2α as in EgoClip: β the mean gap between the descriptions of the
    same annotator and take, α the mean of β; annotators are never merged. Rejected annotations, and what the wearer's
    camera does not show, are left out.
    """
    value = read_json(path)
    split, takes = split_of(path, _get(value, "split")), _get(value, "annotations")
    if not isinstance(takes, Mapping):
        raise AnnotationFileError(f"{path}: no `annotations` by take")
    if all(isinstance(take, Mapping) for take in takes.values()):
        yield from _keysteps(takes, split, rejects)
        return
    described = list(_described(takes, rejects))
    gaps = [gap for _, _, times in described if (gap := _mean_gap(sorted(t for t, _ in times))) > 0]
    alpha = statistics.fmean(gaps) if gaps else 1.0
    for take, annotator, times in described:
        half = max(_mean_gap(sorted(t for t, _ in times)) / (2 * alpha), 0.1)
        for number, (time, text) in enumerate(sorted(times)):
            span = {"start": max(0.0, time - half), "end": time + half}
            own = f"{take}/{annotator}/{number}"
            yield from _row(
                span, ("start", "end"), rejects, own, video=take, caption=text, level="clip", split=split,
                kind="description", id=own, annotator=annotator,
            )  # fmt: skip


def epic(path: Path, rejects: Rejects) -> Iterator[Row]:
    """Yield the narrated actions of EPIC_100_{train,validation}.csv as clips, with their verb and nouns."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AnnotationFileError(f"{path}: cannot be read: {error}") from None
    needed = {"narration_id", "video_id", "start_timestamp", "stop_timestamp", "narration"}
    if not needed <= set(reader.fieldnames or ()):
        raise AnnotationFileError(
            f"{path}: its columns lack {', '.join(sorted(needed - set(reader.fieldnames or ())))}"
        )
    split = split_of(path)
    for row in rows:
        span = {"start": _clock(row["start_timestamp"]), "end": _clock(row["stop_timestamp"])}
        nouns = str(row.get("all_nouns") or row.get("noun") or "").strip("[]").replace("'", "").replace(", ", ";")
        yield from _row(
            span, ("start", "end"), rejects, row["narration_id"], video=row["video_id"], caption=row["narration"],
            level="clip", split=split, kind="narration", id=row["narration_id"], verbs=str(row.get("verb") or ""),
            nouns=nouns,
        )  # fmt: skip


READERS: dict[str, Reader] = {"goalstep": goalstep, "hcap": hcap, "egoexo": egoexo, "epic": epic}


def _keysteps(takes: Mapping[str, Any], split: str, rejects: Rejects) -> Iterator[Row]:
    for take, entry in takes.items():
        for number, segment in enumerate(_get(entry, "segments") or []):
            own = f"{take}/{number}"
            yield from _row(
                segment, ("start_time", "end_time"), rejects, own, video=take,
                caption=str(_get(segment, "step_description") or _get(segment, "step_name") or ""), level="summary",
                split=split, kind="keystep", id=own, parent=str(_get(entry, "scenario") or ""),
            )  # fmt: skip


def _described(takes: Mapping[str, Any], rejects: Rejects) -> Iterator[tuple[str, str, list[tuple[float, str]]]]:
    """Yield take, annotator and (time, text) of each annotation that is not rejected."""
    for take, entries in takes.items():
        for number, annotation in enumerate(entries if isinstance(entries, list) else []):
            annotator = str(_get(annotation, "annotator_id") or number)
            if _is_true(_get(annotation, "rejected")):
                rejects.add("rejected by its dataset", f"{take}/{annotator}")
                continue
            times: list[tuple[float, str]] = []
            for place, one in enumerate(_get(annotation, "descriptions") or []):
                time = _number(_get(one, "timestamp"))
                if time is None:
                    rejects.add("no time", f"{take}/{annotator}/{place}")
                elif not _is_true(_get(one, "ego_visible"), default=True):
                    rejects.add("not visible in the wearer's camera", f"{take}/{annotator}/{place}")
                else:
                    times.append((time, str(_get(one, "text") or "")))
            yield take, annotator, times


def _row(value: Any, names: tuple[str, str], rejects: Rejects, where: str, **fields: Any) -> Iterator[Row]:
    start, end = (_number(_get(value, name)) for name in names)
    if start is None or end is None:
        rejects.add("no span of time", where)
        return
    row = checked(Row(start=start, end=end, **fields), rejects, where)
    if row is not None:
        yield row


def _mean_gap(times: Sequence[float]) -> float:
    """Return the mean gap between ascending times; 0 for fewer than two."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def _is_true(value: Any, *, default: bool = False) -> bool:
    """Return whether a flag is set, which may be a boolean, a number, or text such as "0"."""
    if value is None:
        return default
    return str(value).strip().lower() not in ("", "0", "0.0", "false", "none", "no")


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _list(value: Any, name: str, path: Path) -> list[Any]:
    found = _get(value, name)
    if not isinstance(found, list):
        raise AnnotationFileError(f"{path}: no list `{name}`")
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e9 else None


def _clock(text: str) -> float | None:
    """Return the seconds of h:m:s; None if it is none."""
    try:
        hours, minutes, seconds = str(text).split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return None
