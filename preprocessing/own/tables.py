"""Reads a table of own captions as text: CSV, TSV, JSON lines, a JSON list, or parquet.

Nothing is inferred from values: `007`, `NA` and `1:30` stay what they are. The delimiter follows from the header.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.annotations.csv_rows import read_header, read_rows
from preprocessing.annotations.files import format_suffix, open_head, open_utf8
from preprocessing.annotations.tables import AnnotationError
from preprocessing.annotations.values import plain, show
from preprocessing.own.config import ColumnsConfig
from preprocessing.own.rows import CaptionRow, CaptionSource, UnreadableRow
from preprocessing.own.text import as_utf8, first_line

_REQUIRED = ("video", "caption")
_DELIMITERS = (",", "\t", ";", "|")
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_MAX_LINE = 16 << 20  # bytes of a JSON line
_MAX_LIST = 1 << 30  # bytes of a file that is one JSON list
_BATCH = 8192  # rows of a parquet file at a time


@dataclass(frozen=True, kw_only=True)
class _Header:
    """Which columns of a table have a meaning, and which are kept in `extra`."""

    columns: dict[str, str]  # field of `ColumnsConfig` → the table's name for it, for those that the table has
    extra: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, names: Sequence[str], config: ColumnsConfig, hint: str = "") -> _Header:
        """Match names exactly, then without regard to case; raise `AnnotationError` where a needed one is missing."""
        wanted: dict[str, str] = vars(config)
        columns: dict[str, str] = {}
        for field, name in wanted.items():
            same = [each for each in names if each == name]
            same = same or [each for each in names if name and each.strip().lower() == name.lower()]
            if len(same) > 1:
                raise AnnotationError(f"{path}: the column {name} occurs {len(same)} times; rename all but one")
            if same:
                columns[field] = same[0]
        for field in _REQUIRED:
            if field not in columns:
                raise AnnotationError(_missing(path, field, wanted[field], names, set(columns.values()), hint))
        extra = [name for name in names if name not in columns.values() and name.strip()]
        repeated = sorted({name for name in extra if extra.count(name) > 1})
        if repeated:
            raise AnnotationError(f"{path}: the column {repeated[0]} occurs more than once; rename all but one")
        for field, default in vars(ColumnsConfig()).items():
            if field not in columns and wanted[field] != default:
                raise AnnotationError(
                    f"{path}: captions.columns.{field} = {wanted[field]}: the table has no such column; it has "
                    f"{plain(', '.join(names), 500)}"
                )
        return cls(columns=columns, extra=tuple(extra))

    def row(self, location: str, cells: Mapping[str, str]) -> CaptionRow:
        """Return a row of which `cells` are the columns by the table's names; absent ones are empty."""
        known = {field: cells.get(name, "") for field, name in self.columns.items()}
        extra = {name: cells.get(name, "") for name in self.extra}
        return CaptionRow(**{"start": "", "end": "", **known}, location=location, extra=extra)


def _missing(path: Path, field: str, name: str, names: Sequence[str], used: set[str], hint: str) -> str:
    """Return the message about a column that a table must have and has not."""
    free = [each for each in names if each not in used]
    near = difflib.get_close_matches(name, free, n=1, cutoff=0.5) or free[:1]
    remedy = f"; if it is {near[0]!r}, set captions.columns.{field}={near[0]}" if near else ""
    return f"{path}: no column {name!r}; the table has {plain(', '.join(map(repr, names)), 500)}{hint}{remedy}"


@contextmanager
def open_table(path: Path, config: ColumnsConfig) -> Iterator[CaptionSource]:
    """Open a table of captions: its format is decided by its content and extension.

    Raises `AnnotationError` where the file cannot be read or has not the columns `video` and `caption`; also while its
    rows are read.
    """
    if path.is_dir():
        raise AnnotationError(f"annotations.captions = {path}: a folder; expected one file")
    with path.open("rb") as file:
        magic = file.read(4)
    suffix = format_suffix(path)
    if magic == b"PAR1" or suffix in (".parquet", ".pq"):
        yield _parquet(path, config)
        return
    if suffix in (".xlsx", ".xls", ".ods"):
        raise AnnotationError(f"{path}: a spreadsheet; save it as CSV (UTF-8) and give that file")
    with as_utf8(path) as text:
        head = open_head(text.path).read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if suffix in (".json", ".jsonl", ".ndjson") or head[:1] in (b"{", b"["):
            rows = _json_list(path, text.path) if head[:1] == b"[" else _json_lines(path, text.path)
            yield _json(path, rows, config, text.decided, lambda: _names(path, text.path, head))
        else:
            yield _delimited(path, text.path, config, text.decided)


def _delimited(path: Path, utf8: Path, config: ColumnsConfig, decided: str) -> CaptionSource:
    line = first_line(utf8)
    if not line.strip():
        raise AnnotationError(f"{path}: the first line is empty; expected column names such as video,start,end,caption")
    delimiter = _delimiter(line, config)
    header = read_header(utf8, delimiter)
    own = _Header.of(path, header.names, config, hint=f", separated by {_NAMES[delimiter]}")
    positions = {name: header.names.index(name) for name in (*own.columns.values(), *own.extra)}

    def rows() -> Iterator[CaptionRow | UnreadableRow]:
        for block in read_rows(header, positions):
            found: list[tuple[int, CaptionRow | UnreadableRow]] = [
                (bad.line, UnreadableRow(location=f"{path.name}:{bad.line}", reason=bad.reason, detail=bad.value))
                for bad in block.bad
            ]
            for number, cells in zip(block.lines.tolist(), block.cells.to_pylist(), strict=True):
                found.append((number, own.row(f"{path.name}:{number}", cells)))
            yield from (row for _, row in sorted(found, key=lambda each: each[0]))

    return CaptionSource(path=path, rows=rows(), decided=decided, extra=own.extra)


def _delimiter(line: str, config: ColumnsConfig) -> str:
    """Return the delimiter by which a header has most of the wanted names, then most columns."""
    wanted = {name.lower() for name in vars(config).values()}

    def rank(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            names = []
        return sum(name.strip().lower() in wanted for name in names), len(names)

    return max(_DELIMITERS, key=rank)


_Objects = Iterator[tuple[str, "dict[str, Any] | UnreadableRow"]]


def _json(path: Path, rows: _Objects, config: ColumnsConfig, decided: str, names: Any) -> CaptionSource:
    header = _Header.of(path, names(), config)

    def read() -> Iterator[CaptionRow | UnreadableRow]:
        for location, value in rows:
            if isinstance(value, UnreadableRow):
                yield value
            else:
                yield header.row(location, {name: _text(item) for name, item in value.items()})

    return CaptionSource(path=path, rows=read(), decided=decided, extra=header.extra)


def _names(path: Path, utf8: Path, head: bytes) -> list[str]:
    """Return the names of all objects' members, in the order in which they first occur."""
    rows = _json_list(path, utf8) if head[:1] == b"[" else _json_lines(path, utf8)
    names: dict[str, None] = {}
    for _, value in rows:
        if not isinstance(value, UnreadableRow):
            names.update(dict.fromkeys(value))
        if len(names) > 1000:
            raise AnnotationError(f"{path}: more than 1000 different names of columns")
    return list(names)


def _json_lines(path: Path, utf8: Path) -> _Objects:
    with open_utf8(utf8) as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                location = f"{path.name}:{number}"
                yield location, _object(location, line)


def _json_list(path: Path, utf8: Path) -> _Objects:
    with open_utf8(utf8) as file:
        data = file.read(_MAX_LIST + 1)
    if len(data) > _MAX_LIST:
        raise AnnotationError(f"{path}: a JSON list of more than {_MAX_LIST} bytes; save it as JSON lines or parquet")
    value = _object(path.name, data.removeprefix(b"\xef\xbb\xbf"), kind=list)
    if isinstance(value, UnreadableRow):
        raise AnnotationError(f"{path}: {value.detail}; expected a list of objects, or an object a line")
    for index, item in enumerate(value):
        location = f"{path.name}:[{index}]"
        is_object = isinstance(item, dict)
        yield location, item if is_object else _not_an_object(location, f"{show(item)}")


def _object(location: str, data: bytes, kind: type = dict) -> Any:
    """Return a JSON value whose numbers are text as written, or an `UnreadableRow`."""
    try:
        value = json.loads(data.decode(), parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        return _not_an_object(location, f"{data[:80]!r}: {error}")
    return value if isinstance(value, kind) else _not_an_object(location, show(value))


def _not_an_object(location: str, detail: str) -> UnreadableRow:
    return UnreadableRow(location=location, reason="not a JSON object", detail=plain(detail, 300))


def _parquet(path: Path, config: ColumnsConfig) -> CaptionSource:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise AnnotationError(f"{path}: not a parquet file that can be read: {error}") from None
    header = _Header.of(path, file.schema_arrow.names, config)

    def rows() -> Iterator[CaptionRow | UnreadableRow]:
        number = 0
        try:
            for batch in file.iter_batches(_BATCH, columns=[*header.columns.values(), *header.extra]):
                for cells in batch.to_pylist():
                    number += 1
                    yield header.row(f"{path.name}:row {number}", {name: _text(item) for name, item in cells.items()})
        except (OSError, ValueError, pa.ArrowException) as error:
            raise AnnotationError(f"{path}: cannot be read after row {number}: {error}") from None

    return CaptionSource(path=path, rows=rows(), extra=header.extra)


def _text(value: Any) -> str:
    """Return a typed value as text: nothing for null, the shortest form of a number, JSON for lists and objects."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
