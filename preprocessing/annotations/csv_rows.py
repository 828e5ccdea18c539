"""Splits a delimited text file into rows, vectorised where possible, and reports the physical line of each row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from preprocessing.annotations.files import open_head, open_utf8
from preprocessing.annotations.tables import AnnotationError
from preprocessing.annotations.values import plain

BLOCK = 32 << 20  # bytes read at a time
_MAX_LINE = 16 << 20  # bytes; a longer line is a bad row, so that a file without line ends does not fill the memory
_MAX_HEADER = 1 << 16  # bytes
_BOM = b"\xef\xbb\xbf"
_LF, _CR, _QUOTE = 10, 13, 34


@dataclass(frozen=True, kw_only=True)
class Header:
    """The column names of a delimited file, and the start of its rows."""

    path: Path
    delimiter: str
    names: tuple[str, ...]
    offset: int  # bytes before the first row
    lines: int  # physical lines before the first row

    def columns(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, int]:
        """Return column name → position; raise `AnnotationError` where one is missing or occurs twice."""
        missing = [name for name in required if name not in self.names]
        if missing:
            raise AnnotationError(
                f"{self.path}: missing columns {', '.join(missing)}; the first line has "
                f"{plain(', '.join(self.names), 500)}; columns are separated by {self.delimiter!r}"
            )
        present = [name for name in required + optional if name in self.names]
        repeated = [name for name in present if self.names.count(name) > 1]
        if repeated:
            raise AnnotationError(f"{self.path}: column {repeated[0]} occurs {self.names.count(repeated[0])} times")
        return {name: self.names.index(name) for name in present}


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be split into the columns of the header."""

    line: int  # physical, from 1
    reason: str
    value: str  # the offending text and details


@dataclass(frozen=True, kw_only=True)
class DelimitedRows:
    """A block of N rows of a file."""

    cells: pa.Table  # the requested columns as text, N rows
    lines: np.ndarray  # (N,) the first physical line of each row, from 1
    bad: list[BadRow]  # further rows, which could not be split


def read_header(path: Path, delimiter: str) -> Header:
    """Return the header of a file; raise `AnnotationError` where the first line is not one."""
    file = open_head(path)
    start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(start)
    lines = _PhysicalLines(b"", 0, file)
    try:
        names = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise AnnotationError(
            f"{path}: the first line is not a header: {error}; expected column names in UTF-8, separated by "
            f"{delimiter!r}"
        ) from None
    offset = file.tell()
    if not names:
        raise AnnotationError(f"{path}: the file is empty; expected a line of column names")
    if offset > _MAX_HEADER:
        raise AnnotationError(f"{path}: the first line has {offset} bytes; expected a line of column names")
    return Header(path=path, delimiter=delimiter, names=tuple(names), offset=offset, lines=lines.count)


def read_rows(header: Header, columns: Mapping[str, int], *, block: int = BLOCK) -> Iterator[DelimitedRows]:
    """Yield the rows of a file in blocks of about `block` bytes, unordered within a block; blank lines are skipped.

    Lines without quotes and with the right number of columns are split vectorised, others by Python's csv module in
    strict mode: a quoted cell may contain delimiters, doubled quotes and line ends. A cell whose opening quote is not
    closed correctly (or within 128 KiB) makes its own line a bad row, and parsing continues with the next line, so that
    a stray quote does not consume the rows after it. A line of more than 16 MiB is a bad row.
    """
    line = header.lines + 1
    with open_utf8(header.path) as file:
        file.seek(header.offset)
        while data := file.read(block):
            data += b"" if data.endswith(b"\n") else file.readline(_MAX_LINE)
            at = data.rfind(b"\n") + 1
            rest = b"" if len(data) - at < _MAX_LINE else data[at:]  # the beginning of a line that is too long
            if rest:
                data = data[:at]
                _skip_line(file)
            if data:
                rows, taken = _split(data, file, header, columns, line)
                line += taken
                yield rows
            if rest:
                reason = BadRow(line=line, reason="over-long line", value=f"more than {_MAX_LINE} bytes: {_show(rest)}")
                yield DelimitedRows(cells=_no_cells(columns), lines=np.empty(0, np.int64), bad=[reason])
                line += 1


def _skip_line(file: BinaryIO) -> None:
    """Read up to the next line end, in pieces."""
    while (piece := file.readline(_MAX_LINE)) and not piece.endswith(b"\n"):
        pass


def _no_cells(columns: Mapping[str, int]) -> pa.Table:
    return pa.table([pa.array([], pa.string()) for _ in columns], names=list(columns))


@dataclass
class _PhysicalLines:
    """Iterates over physical lines as text: those of `data` from offset `at`, then those of `file`."""

    data: bytes
    at: int
    file: BinaryIO
    count: int = field(default=0)

    def __iter__(self) -> _PhysicalLines:
        return self

    def __next__(self) -> str:
        if self.at < len(self.data):
            end = self.data.find(b"\n", self.at) + 1 or len(self.data)
            raw, self.at = self.data[self.at : end], end
        else:
            raw = self.file.readline(_MAX_LINE)
        if not raw:
            raise StopIteration
        self.count += 1
        return raw.decode()


@dataclass
class _SlowRows:
    """The rows of a block that were split by the csv module."""

    cells: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


def _split(
    data: bytes, file: BinaryIO, header: Header, columns: Mapping[str, int], first: int
) -> tuple[DelimitedRows, int]:
    """Split `data`, complete physical lines starting with line `first`; return its rows and the number of lines read.

    A quoted cell at the end of `data` may continue in `file`, whose position is then after that row.
    """
    buffer = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(buffer == _LF)  # of each line, the offset of its line feed (of the last: or of the end)
    if not len(ends) or ends[-1] != len(data) - 1:
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])
    positions = np.flatnonzero(buffer == ord(header.delimiter))
    delimiters = np.diff(np.searchsorted(positions, ends), prepend=0)
    returns = np.flatnonzero(buffer == _CR)
    closing = (returns + 1 == len(data)) | (buffer[np.minimum(returns + 1, len(data) - 1)] == _LF)
    stops = ends.copy()  # of each line, the end of its content
    stops[np.searchsorted(ends, returns[closing])] -= 1
    odd = np.zeros(len(ends), bool)  # lines to be split by the csv module
    odd[np.searchsorted(ends, np.flatnonzero(buffer == _QUOTE))] = True
    odd[np.searchsorted(ends, returns[~closing])] = True
    odd[_not_utf8(data, buffer, starts, ends)] = True
    filled = stops > starts
    plain = ~odd & filled & (delimiters == len(header.names) - 1)

    slow = _SlowRows()
    taken = len(ends)  # lines read
    done = 0  # lines before this one belong to an accepted row
    for index in np.flatnonzero(~plain & filled).tolist():
        if index < done:
            continue
        text = data[starts[index] : stops[index]]
        if odd[index]:
            here = file.tell()
            lines = _PhysicalLines(data, int(starts[index]), file)
            if _slow_row(lines, text, header, columns, first + index, slow):
                done = index + lines.count
                plain[index:done] = False
                taken = max(taken, done)
            else:
                file.seek(here)
        else:
            slow.bad.append(_wrong_count(first + index, int(delimiters[index]) + 1, header, text))
    cells = [_fast_cells(data, starts, ends, plain, header, columns)]
    slow_columns = zip(*slow.cells, strict=True) if slow.cells else [[] for _ in columns]
    cells.append(pa.table([pa.array(list(column), pa.string()) for column in slow_columns], names=list(columns)))
    numbers = np.concatenate([first + np.flatnonzero(plain), np.array(slow.lines, np.int64)])
    return DelimitedRows(cells=pa.concat_tables(cells), lines=numbers, bad=slow.bad), taken


def _not_utf8(data: bytes, buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> list[int]:
    """Return the indices of the lines that are not UTF-8."""
    if _is_utf8(data):
        return []
    suspects = np.unique(np.searchsorted(ends, np.flatnonzero(buffer >= 0x80))).tolist()
    return [index for index in suspects if not _is_utf8(data[starts[index] : ends[index]])]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _slow_row(
    lines: _PhysicalLines, text: bytes, header: Header, columns: Mapping[str, int], number: int, slow: _SlowRows
) -> bool:
    """Read one row with the csv module into `slow`; return whether it is well formed. `text` is its first line."""
    reason, value = "", _show(text)
    try:
        cells = next(csv.reader(lines, delimiter=header.delimiter, strict=True))
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start} of the line"
        reason = "invalid UTF-8"
        value = f"{_show(error.object)} ({where}); if it is Latin-1, convert the file with `iconv -f latin1 -t utf-8`"
    except csv.Error as error:
        reason = "stray carriage return" if "new-line" in str(error) else "malformed quoting"
        reason = "over-long cell" if "field limit" in str(error) else reason
        value = f"{value} ({error})"
    else:
        if len(cells) == len(header.names):
            slow.cells.append([cells[position] for position in columns.values()])
            slow.lines.append(number)
            return True
        slow.bad.append(_wrong_count(number, len(cells), header, text))
        return False
    slow.bad.append(BadRow(line=number, reason=reason, value=value))
    return False


def _wrong_count(line: int, found: int, header: Header, text: bytes) -> BadRow:
    value = f"{found} instead of {len(header.names)} in {_show(text)}"
    return BadRow(line=line, reason="wrong number of columns", value=value)


def _show(text: bytes) -> str:
    """Return the beginning of a line, for a message."""
    return repr(text[:80].decode(errors="replace")) + ("…" if len(text) > 80 else "")


def _fast_cells(
    data: bytes, starts: np.ndarray, ends: np.ndarray, plain: np.ndarray, header: Header, columns: Mapping[str, int]
) -> pa.Table:
    """Return the requested cells of the plain lines, as text."""
    names = [f"f{i}" for i in range(len(header.names))]
    wanted = [names[position] for position in columns.values()]
    if not plain.any():
        return _no_cells(columns)
    if not plain.all():
        edges = np.flatnonzero(np.diff(plain.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        data = b"".join(data[starts[a] : ends[b - 1] + 1] for a, b in edges.tolist())
    table = pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(column_names=names, block_size=len(data) + 1, use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=header.delimiter, quote_char=False, double_quote=False),
        convert_options=pacsv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), check_utf8=False
        ),
    )
    return table.rename_columns(list(columns))
