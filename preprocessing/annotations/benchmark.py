"""Shared code of the benchmark readers: collects distinct clips under keys made of times, and rejects bad rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from preprocessing.annotations.csv_rows import BadRow, read_header, read_rows
from preprocessing.annotations.merge import ReaderOutput, RejectedRows
from preprocessing.annotations.tables import ITEM_SCHEMAS, MAX_SECONDS, AnnotationError
from preprocessing.annotations.values import is_uid, show
from shards.companions import Companion, companion_path, to_json
from shards.keys import make_key
from shards.schema import set_spec

WHOLE = (0.0, math.inf)  # s: from a video's first frame to its last


class MalformedError(ValueError):
    """An input row that cannot be used; `reason` names the kind of problem, `detail` the value and what is expected."""

    def __init__(self, reason: str, detail: str, *, status: str = "failed") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.status = reason, detail, status


@dataclass
class BenchmarkItems:
    """Collects the distinct clips of one benchmark while its files are read, and counts the rows read."""

    set_name: str
    rejects: RejectedRows
    input_rows: int = 0
    durations: dict[str, float] = field(default_factory=dict)  # uid → s, NaN where the files do not state it
    frame_rates: dict[str, float] = field(default_factory=dict)  # uid → frames/s of the files' frame numbers
    companions: dict[str, Any] = field(default_factory=dict)  # path below the dataset's root → JSON value
    _rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # key → item
    _locations: dict[str, str] = field(default_factory=dict)  # key → location of its first row

    def key(self, video_uid: str, start: float, end: float, *more: str) -> str:
        """Return the key of a clip: made of its times (s) to the microsecond, and of `more` if given."""
        times = ["whole"] if (start, end) == WHOLE else [f"{round(time * 1e6):010d}" for time in (start, end)]
        return make_key(video_uid, set_spec(self.set_name).letter, 0, "-".join([*times, *more]))

    def add(self, key: str, item: Mapping[str, Any], *, location: str) -> bool:
        """Add a clip and return True; return False if the key exists already, whose first item is kept.

        Raises `MalformedError` where the existing item belongs to another split.
        """
        kept = self._rows.get(key)
        if kept is None:
            self._rows[key], self._locations[key] = {"key": key, **item}, location
            self.durations.setdefault(item["video_uid"], math.nan)
            return True
        if kept["split"] != item["split"]:
            detail = f"the same clip as {self._locations[key]} in the {kept['split']} split; the first is kept"
            raise MalformedError("duplicate identity", detail)
        return False

    def kept(self, key: str) -> Mapping[str, Any]:
        """Return the item of a key."""
        return self._rows[key]

    def location_of(self, key: str) -> str:
        """Return the location of the first row with a key."""
        return self._locations[key]

    def reject_repeated(self, key: str, *, location: str) -> None:
        """Reject, as filtered, a row whose clip is stored already."""
        self.reject(
            MalformedError("repeated clip", f"the same clip as {self._locations[key]}; stored once", status="filtered"),
            location=location,
            uid=self._rows[key]["video_uid"],
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
        table = pa.Table.from_pylist(list(self._rows.values()), schema=ITEM_SCHEMAS[self.set_name])
        return ReaderOutput(
            rows={self.set_name: table},
            input_rows={self.set_name: self.input_rows},
            durations=self.durations,
            companions=self.companions,
            frame_rates=self.frame_rates,
        )


def table_rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, str] | BadRow]]:
    """Yield location and cells of each row of a table in file order.

    Columns are separated by tabs if the first line has any, otherwise by commas. Raises `AnnotationError` where one of
    `columns` is missing.
    """
    with path.open("rb") as file:
        delimiter = "\t" if b"\t" in file.readline(1 << 16) else ","
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
    """Return the lines of a text file; raise `AnnotationError` where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 at byte {error.start}; correct it or download it again") from None


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
