"""Reads the redacted intervals of a video's metadata: parts whose frames were made unrecognisable before release."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from preprocessing.annotations.json_stream import pairs
from preprocessing.annotations.tables import MAX_SECONDS
from preprocessing.annotations.values import show

FIELD = "redacted_intervals"
Intervals = tuple[tuple[float, float], ...]
"""Start and end (s) of each interval, sorted."""

_ENDS = (("start_sec", "start_time", "start"), ("end_sec", "end_time", "end"))  # names in different releases


def read_intervals(record: Mapping[str, Any]) -> tuple[Intervals, str]:
    """Return the redacted intervals of a video's record, and the problem with them (empty if there is none).

    The field is in the record itself, as in ego4d.json, or in its `video_metadata`. It is a list of objects with
    `start_sec` and `end_sec`, or of pairs; in a table, the same as JSON. Of an interval whose ends are swapped, the
    part between them counts; one that cannot be read is left out. Both are problems.
    """
    intervals: set[tuple[float, float]] = set()
    problem = ""
    for value in _lists(record):
        if not isinstance(value, list):
            problem = problem or f"{FIELD} = {show(value)}; expected a list"
            continue
        for index, item in enumerate(value):
            start, end = _interval(item)
            if not 0 <= start <= end <= MAX_SECONDS:
                expected = 'expected an interval such as {"start_sec": 1.0, "end_sec": 2.0}'
                problem = problem or f"{FIELD} has {show(item)} at index {index}; {expected}"
            if 0 <= start <= MAX_SECONDS and 0 <= end <= MAX_SECONDS:
                intervals.add((min(start, end), max(start, end)))
    return tuple(sorted(intervals)), problem


def _lists(record: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the values of the field, wherever the record has it; an absent one is null."""
    inner = record.get("video_metadata")
    for holder in (record, inner):
        if isinstance(holder, Mapping):
            for value in [value for name, value in pairs(holder) if name == FIELD]:
                parsed = _parsed(value) if isinstance(value, str) else value
                if parsed is not None:
                    yield parsed


def _interval(item: Any) -> tuple[float, float]:
    """Return start and end (s) of an interval; NaN where they cannot be read."""
    if isinstance(item, Mapping):
        ends = [next((item[name] for name in names if name in item), None) for names in _ENDS]
    else:
        ends = item if isinstance(item, list) and len(item) == 2 else [None, None]
    return _number(ends[0]), _number(ends[1])


def _number(value: Any) -> float:
    """Return a number, or the number that a text states; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _parsed(text: str) -> Any:
    """Return the JSON value of a cell, None for an empty one, or the text itself where it is not JSON."""
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
