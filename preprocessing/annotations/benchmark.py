"""What the readers of benchmarks share: keys made of times, distinct clips stored once, rejects with their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from preprocessing.annotations.csv_rows import BadRow, read_header, read_rows
from preprocessing.annotations.merge import ReaderOutput, Rejects, show
from preprocessing.annotations.tables import ITEMS, LONGEST, AnnotationError
from shards.companions import Companion, companion_path, to_json
from shards.keys import make_key
from shards.schema import set_spec

WHOLE = (0.0, math.inf)  # s: from a video's first frame to its last
SECONDS = f"seconds from 0 to {LONGEST:.0f} are needed"


class MalformedError(ValueError):
    """An input row that cannot be used; `reason` is the same for all of a kind, `detail` says which value and why."""

    def __init__(self, reason: str, detail: str, *, status: str = "failed") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.status = reason, detail, status


@dataclass
class Items:
    """The distinct clips of one benchmark as its reader finds them, and the account of what it looked at."""

    set_name: str
    rejects: Rejects
    input_rows: int = 0
    durations: dict[str, float] = field(default_factory=dict)  # uid → s, NaN where the files do not say
    frame_rates: dict[str, float] = field(default_factory=dict)  # uid → frames/s
    companions: dict[str, Any] = field(default_factory=dict)  # path below ROOT → JSON
    _rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # key → item
    _places: dict[str, str] = field(default_factory=dict)  # key → where it stands first

    def key(self, video_uid: str, start: float, end: float, *more: str) -> str:
        """Return the key of a stretch of a video: made of its times to the microsecond, and of `more` where given."""
        times = ["whole"] if (start, end) == WHOLE else [f"{round(time * 1e6):010d}" for time in (start, end)]
        return make_key(video_uid, set_spec(self.set_name).letter, 0, "-".join([*times, *more]))

    def add(self, key: str, item: Mapping[str, Any], *, place: str) -> bool:
        """Take in a clip; return whether it is a new one. Of equal clips the first that is found stays.

        Raise `MalformedError` where the same clip belongs to another split.
        """
        kept = self._rows.get(key)
        if kept is None:
            self._rows[key], self._places[key] = {"key": key, **item}, place
            self.durations.setdefault(item["video_uid"], math.nan)
            return True
        if kept["split"] != item["split"]:
            detail = f"the same clip as {self._places[key]}, which is of the {kept['split']} split; the first is kept"
            raise MalformedError("duplicate identity", detail)
        return False

    def kept(self, key: str) -> Mapping[str, Any]:
        """Return the clip that is stored under a key."""
        return self._rows[key]

    def place_of(self, key: str) -> str:
        """Return where the clip of a key stands first."""
        return self._places[key]

    def repeated(self, key: str, *, place: str) -> None:
        """Account for a row whose clip is stored already: it needs no second copy."""
        self.reject(
            MalformedError("repeated clip", f"the same clip as {self._places[key]}; stored once", status="filtered"),
            place=place,
            uid=self._rows[key]["video_uid"],
        )

    def reject(self, error: MalformedError, *, place: str, uid: str = "") -> None:
        """Account for a row that cannot be used."""
        self.rejects.add(
            self.set_name, place=place, uid=uid, status=error.status, reason=error.reason, detail=error.detail
        )

    def accompany(self, split: str, companion: Companion) -> None:
        """Put questions or labels beside the shards of a split."""
        self.companions[companion_path(self.set_name, split)] = to_json(companion)

    def part(self) -> ReaderOutput:
        """Return all of it as what readers return."""
        table = pa.Table.from_pylist(list(self._rows.values()), schema=ITEMS[self.set_name])
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
    """Yield place and cells of each row of a table, separated by tabs if its first line has any, else by commas."""
    with path.open("rb") as file:
        delimiter = "\t" if b"\t" in file.readline(1 << 16) else ","
    header = read_header(path, delimiter)
    wanted = header.columns(columns, optional)
    for rows in read_rows(header, wanted):
        found: list[tuple[int, dict[str, str] | BadRow]] = [(bad.line, bad) for bad in rows.bad]
        found += zip(rows.lines.tolist(), rows.cells.to_pylist(), strict=True)
        for line, cells in sorted(found, key=lambda row: row[0]):  # in the order of the file, as labels keep it
            yield f"{path.name}:{line}", cells


def for_each_row(
    items: Items,
    path: Path,
    columns: tuple[str, ...],
    take: Callable[[str, dict[str, str]], None],
    optional: tuple[str, ...] = (),
    *,
    video: str = "",
) -> None:
    """Give every row of a table to `take(place, cells)`; what it raises as `MalformedError` becomes a reject.

    `video` is the column that names the row's video, where there is one.
    """
    for place, cells in table_rows(path, columns, optional):
        items.input_rows += 1
        try:
            if isinstance(cells, BadRow):
                raise MalformedError(cells.reason, cells.value)
            take(place, cells)
        except MalformedError as error:
            items.reject(error, place=place, uid="" if isinstance(cells, BadRow) else cells.get(video, ""))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; raise `AnnotationError` where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 at byte {error.start}; mend that or fetch it anew") from None


def seconds(value: Any, name: str) -> float:
    """Return a time in s, given as a number or as its decimal text; raise `MalformedError` where it is none."""
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and value.isascii() and "_" not in value:
        with suppress(ValueError):
            number = float(value)
    if not 0 <= number <= LONGEST:
        raise MalformedError(f"malformed {name.rpartition('.')[2]}", f"{name} = {show(value)}; {SECONDS}")
    return number


def whole_number(text: str, name: str, below: int) -> int:
    """Return a class number from 0 to `below` − 1; raise `MalformedError` where the text is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) < below):
        raise MalformedError(f"malformed {name}", f"{name} = {show(text)}; a class 0 … {below - 1} is needed")
    return int(text)


def require_order(start: float, end: float, names: tuple[str, str]) -> None:
    """Raise `MalformedError` where a clip ends before it starts."""
    if end < start:
        raise MalformedError("reversed times", f"{names[0]} = {start}, {names[1]} = {end}")
