"""Shared code of the benchmark readers: collects distinct clips under keys made of times, and rejects bad rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from preprocessing.annotations.csv_rows import BadRow, read_header, read_rows
from preprocessing.annotations.files import open_head, read_text
from preprocessing.annotations.merge import ReaderOutput, RejectedRows
from preprocessing.annotations.tables import ITEM_SCHEMAS, MAX_SECONDS, AnnotationError
from preprocessing.annotations.values import is_uid, show, text_problem
from shards.companions import Companion, companion_path, to_json
from shards.keys import distinct_key, make_key
from shards.schema import set_spec

MAX_LINE = 1 << 16  # bytes of a line that names a class
WHOLE = (0.0, math.inf)  # s: from a video's first frame to its last


class MalformedError(ValueError):
    """An input row that cannot be used; `reason` names the kind of problem, `detail` the value and what is expected."""

    def __init__(self, reason: str, detail: str, *, status: str = "failed") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.status = reason, detail, status


@dataclass(frozen=True)
class Clip:
    """A distinct clip of a benchmark while its files are read: other rows may turn out to have the same key."""

    key: str  # made of video and times
    content: str  # what distinguishes it from other clips with this key


@dataclass
class BenchmarkItems:
    """Collects the distinct clips of one benchmark while its files are read, and counts the rows read.

    Clips with the same video and times that differ otherwise (their split, or a field in `distinct`) are different
    clips: once all files are read, `key_of` gives each a key that also depends on its content.
    """

    set_name: str
    rejects: RejectedRows
    distinct: tuple[str, ...] = ()  # fields that make clips with equal times different ones
    input_rows: int = 0
    durations: dict[str, float] = field(default_factory=dict)  # uid → s, NaN where the files do not state it
    frame_rates: dict[str, float] = field(default_factory=dict)  # uid → frames/s of the files' frame numbers
    companions: dict[str, Any] = field(default_factory=dict)  # path below the dataset's root → JSON value
    _rows: dict[Clip, dict[str, Any]] = field(default_factory=dict)  # clip → item without key
    _locations: dict[Clip, str] = field(default_factory=dict)  # clip → location of its first row
    _contents: dict[str, int] = field(default_factory=dict)  # key → number of clips that have it

    def key(self, video_uid: str, start: float, end: float, *more: str) -> str:
        """Return the key of a clip: made of its times (s) to the microsecond, and of `more` if given."""
        times = ["whole"] if (start, end) == WHOLE else [f"{round(time * 1e6):010d}" for time in (start, end)]
        return make_key(video_uid, set_spec(self.set_name).letter, 0, "-".join([*times, *more]))

    def add(self, key: str, item: Mapping[str, Any], *, location: str) -> tuple[Clip, bool]:
        """Add a clip; return it, and whether it is new. Of equal clips, one is stored, whatever the order of the rows.

        Raises `MalformedError` where the text cannot be stored.
        """
        if problem := text_problem(item["text"]):
            raise MalformedError("malformed text", f"{show(item['text'])}: {problem}")
        clip = Clip(key, json.dumps([item[name] for name in ("split", *self.distinct)]))
        kept = self._rows.get(clip)
        if kept is None:
            self._rows[clip], self._locations[clip] = dict(item), location
            self._contents[key] = self._contents.get(key, 0) + 1
            self.durations.setdefault(item["video_uid"], math.nan)
        elif _rank(item) < _rank(kept):
            self._rows[clip] = dict(item)
        return clip, kept is None

    def note_duration(self, uid: str, text: str, location: str) -> None:
        """Note the stated duration (s) of a video, the longest of several; report text that is none."""
        try:
            stated = seconds(text, "length")
        except MalformedError:
            stated = 0.0
        if stated > 0:
            before = self.durations.get(uid, math.nan)
            self.durations[uid] = stated if math.isnan(before) else max(before, stated)
        else:
            self.rejects.ignore(location, "length", text)

    def key_of(self, clip: Clip) -> str:
        """Return the final key of a clip; call this once all rows are added."""
        return clip.key if self._contents[clip.key] == 1 else distinct_key(clip.key, clip.content)

    def reject_repeated(self, clip: Clip, *, location: str) -> None:
        """Reject, as filtered, a row whose clip is stored already."""
        self.reject(
            MalformedError(
                "repeated clip", f"the same clip as {self._locations[clip]}; stored once", status="filtered"
            ),
            location=location,
            uid=self._rows[clip]["video_uid"],
        )

    def reject(self, error: MalformedError, *, location: str, uid: str = "") -> None:
        """Reject a row that cannot be used."""
        self.rejects.add(
            self.set_name, location=location, uid=uid, status=error.status, reason=error.reason, detail=error.detail
        )

    def set_companion(self, split: str, companion: Companion) -> None:
        """Set the questions or labels of a split."""
        self.companions[companion_path(self.set_name, split)] = to_json(companion)

    def output(self) -> ReaderOutput:
        """Return everything collected, as the output of the reader."""
        rows = [{"key": self.key_of(clip), **item} for clip, item in self._rows.items()]
        table = pa.Table.from_pylist(rows, schema=ITEM_SCHEMAS[self.set_name])
        return ReaderOutput(
            rows={self.set_name: table},
            input_rows={self.set_name: self.input_rows},
            durations=self.durations,
            companions=self.companions,
            frame_rates=self.frame_rates,
        )


def _rank(item: Mapping[str, Any]) -> tuple[bool, str]:
    """Return by what the item of a clip is chosen among equal ones: one with a text, then by content."""
    return not item["text"], json.dumps(list(item.values()))


def table_rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, str] | BadRow]]:
    """Yield location and cells of each row of a table in file order.

    Columns are separated by tabs if the first line has any, otherwise by commas. Raises `AnnotationError` where one of
    `columns` is missing.
    """
    delimiter = "\t" if b"\t" in open_head(path).readline() else ","
    header = read_header(path, delimiter)
    for rows in read_rows(header, header.columns(columns, optional)):
        block: list[tuple[int, dict[str, str] | BadRow]] = [(bad.line, bad) for bad in rows.bad]
        block += zip(rows.lines.tolist(), rows.cells.to_pylist(), strict=True)
        for line, cells in sorted(block, key=lambda row: row[0]):  # labels keep the order of the file
            yield f"{path.name}:{line}", cells


def for_each_row(
    items: BenchmarkItems,
    path: Path,
    columns: tuple[str, ...],
    read_row: Callable[[str, dict[str, str]], None],
    optional: tuple[str, ...] = (),
    *,
    video: str = "",
) -> None:
    """Call `read_row(location, cells)` for every row of a table; rows that raise `MalformedError` are rejected.

    `video` is the column with the row's video uid, if there is one.
    """
    for location, cells in table_rows(path, columns, optional):
        items.input_rows += 1
        try:
            if isinstance(cells, BadRow):
                raise MalformedError(cells.reason, cells.value)
            read_row(location, cells)
        except MalformedError as error:
            items.reject(error, location=location, uid="" if isinstance(cells, BadRow) else cells.get(video, ""))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; raise `AnnotationError` where it is not UTF-8 or a line cannot be stored."""
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        if problem := text_problem(line, MAX_LINE):
            raise AnnotationError(f"{path} line {number}: {show(line)}: {problem}; correct it or download it again")
    return lines


def parse_uid(value: Any, name: str) -> str:
    """Return a video uid; raise `MalformedError` where the value of the field `name` cannot be one."""
    if not is_uid(value):
        reason = f"malformed {name.rpartition('.')[2]}"
        raise MalformedError(reason, f"{name} = {show(value)}; expected an id that can be a file name")
    return value


def seconds(value: Any, name: str) -> float:
    """Return a time in s from a number or decimal text; raise `MalformedError` where it is not a valid time."""
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and value.isascii() and "_" not in value:
        with suppress(ValueError):
            number = float(value)
    if not 0 <= number <= MAX_SECONDS:
        reason = f"malformed {name.rpartition('.')[2]}"
        raise MalformedError(reason, f"{name} = {show(value)}; expected seconds from 0 to {MAX_SECONDS:.0f}")
    return number


def whole_number(text: str, name: str, below: int) -> int:
    """Return a class number from 0 to `below` − 1; raise `MalformedError` where the text is not one."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) < below):
        raise MalformedError(f"malformed {name}", f"{name} = {show(text)}; expected a class 0 … {below - 1}")
    return int(text)


def require_order(start: float, end: float, names: tuple[str, str]) -> None:
    """Raise `MalformedError` where a clip ends before it starts (s); `names` are the two fields."""
    if end < start:
        raise MalformedError("reversed times", f"{names[0]} = {start}, {names[1]} = {end}")
