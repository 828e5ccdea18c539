"""Reads `egoclip.csv` and `egosummary_full.csv`: tab-separated tables with millions of clips or summaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.csv_rows import DelimitedRows, read_header, read_rows
from preprocessing.annotations.merge import LETTERS, ROW_SCHEMA, ReaderOutput, RejectedRows, deduplicate
from preprocessing.annotations.tables import MAX_SECONDS, NARRATION_PASSES
from preprocessing.annotations.values import MAX_TEXT, is_uid, parse_classes, show
from shards.keys import make_key

TAG_CLASSES = {"tag_verb": 118, "tag_noun": 582}
_TIMES = ("narration_time", "clip_start", "clip_end")
COLUMNS = ("video_uid", "narration_source", "narration_ind", *_TIMES, "clip_text", *TAG_CLASSES)
_DURATION = "video_dur"  # optional, used where metadata state no duration; never a reason to reject a row
_EXPECTED = {
    "video_uid": "an id that can be a file name",
    "narration_source": f"one of {', '.join(NARRATION_PASSES)}",
    "narration_ind": "an integer from 0",
    "clip_text": f"text of at most {MAX_TEXT} bytes without NUL characters",
    **dict.fromkeys(_TIMES, f"seconds from 0 to {MAX_SECONDS:.0f}"),
    **{name: f"a JSON list of classes 0 … {n - 1} such as [93] or []" for name, n in TAG_CLASSES.items()},
}


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: RejectedRows) -> ReaderOutput:
    """Read the configured pair of files; rows that cannot be used are added to `rejects`.

    `durations` is unused, since the files state the clips. Rows are kept as published, including `#unsure` ones,
    because the authors of the files have made their selection; only rows without text or of zero length are filtered.
    Raises `AnnotationError` where a file lacks a column or a header.
    """
    tables, counts = {}, {}
    locations: dict[str, Callable[[int], str]] = {}
    longest: dict[str, float] = {}
    for set_name, path in (("clips", config.egoclip), ("summaries", config.egosummary)):
        tables[set_name], counts[set_name], locations[set_name] = ROW_SCHEMA.empty_table(), 0, str
        if path is not None:
            locations[set_name] = location = _locations(path)
            rows, counts[set_name] = _read_file(path, set_name, rejects, longest)
            tables[set_name] = deduplicate(rows, set_name, location, rejects)
    return ReaderOutput(rows=tables, input_rows=counts, durations=longest, locations=locations)


def _locations(path: Path) -> Callable[[int], str]:
    """Return a function from a line of a file to its location in messages."""
    return lambda line: f"{path.name}:{line}"


def _read_file(path: Path, set_name: str, rejects: RejectedRows, durations: dict[str, float]) -> tuple[pa.Table, int]:
    """Return a file's usable rows and its number of rows; update `durations` with the longest stated of each video."""
    header = read_header(path, "\t")
    columns = header.columns(COLUMNS, (_DURATION,))
    location = _locations(path)
    tables, count = [ROW_SCHEMA.empty_table()], 0
    for rows in read_rows(header, columns):
        count += len(rows.lines) + len(rows.bad)
        for bad in rows.bad:
            rejects.add(set_name, location=location(bad.line), reason=bad.reason, detail=bad.value)
        tables.append(_convert(rows, set_name, location, rejects, durations))
    return pa.concat_tables(tables), count


class _Checks:
    """The rows of a block that failed a check; a row's reason is the first check that it failed."""

    def __init__(self, rows: int) -> None:
        self.code = np.zeros(rows, np.int16)  # 0: good, otherwise 1 + index into `reasons`
        self.reasons: list[tuple[str, str, str]] = []  # status, reason, column

    def fail(self, bad: np.ndarray, reason: str, column: str, status: str = "failed") -> None:
        """Mark the rows where `bad` is true, unless they failed an earlier check."""
        self.reasons.append((status, reason, column))
        self.code[bad & (self.code == 0)] = len(self.reasons)


def _convert(
    rows: DelimitedRows,
    set_name: str,
    location: Callable[[int], str],
    rejects: RejectedRows,
    durations: dict[str, float],
) -> pa.Table:
    """Return the good rows of a block with the columns of `ROW_SCHEMA`, and add the others to `rejects`."""
    cells = {name: rows.cells[name].combine_chunks() for name in rows.cells.column_names}
    checks = _Checks(len(rows.lines))
    uids = pc.dictionary_encode(cells["video_uid"])
    is_malformed = np.array([not is_uid(uid) for uid in uids.dictionary.to_pylist()], bool)
    checks.fail(is_malformed[uids.indices.to_numpy()], "malformed video_uid", "video_uid")
    passes = pc.index_in(cells["narration_source"], pa.array(NARRATION_PASSES)).fill_null(-1).to_numpy()
    checks.fail(passes < 0, "malformed narration_source", "narration_source")
    index = _integers(cells["narration_ind"])
    checks.fail(index < 0, "malformed narration_ind", "narration_ind")
    times = {name: _floats(cells[name]) for name in _TIMES}
    for name, values in times.items():
        checks.fail(~((values >= 0) & (values <= MAX_SECONDS)), f"malformed {name}", name)
    checks.fail(times["clip_end"] < times["clip_start"], "reversed times", "clip_end")
    tags = {}
    for name, classes in TAG_CLASSES.items():
        tags[name], bad = _tags(cells[name], classes)
        checks.fail(bad, f"malformed {name}", name)
    checks.fail(times["clip_end"] == times["clip_start"], "empty span", "clip_end", "filtered")
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(cells["clip_text"])), 0).to_numpy(False)
    checks.fail(blank, "empty text", "clip_text", "filtered")
    for reason, bad in _bad_texts(cells["clip_text"]):
        checks.fail(bad, reason, "clip_text")

    keys = _keys(uids, LETTERS[set_name], np.maximum(passes, 0), index)
    columns = {
        "key": keys,
        "video_uid": cells["video_uid"],
        "narration_source": cells["narration_source"],
        "narration_ind": index,
        **times,
        "text": cells["clip_text"],
        **tags,
        "line": rows.lines,
    }
    table = pa.table([columns[name] for name in ROW_SCHEMA.names], schema=ROW_SCHEMA)
    _reject(table, cells, checks, set_name, location, rejects)
    usable = np.array([True, *(status == "filtered" for status, _, _ in checks.reasons)])[checks.code]
    _note_durations(cells, usable, durations)
    _report_durations(cells, rows.lines, location, rejects)
    good = checks.code == 0
    return table if good.all() else table.filter(pa.array(good))


def _reject(
    table: pa.Table,
    cells: dict[str, pa.Array],
    checks: _Checks,
    set_name: str,
    location: Callable[[int], str],
    rejects: RejectedRows,
) -> None:
    identity = {"video_uid", "narration_source", "narration_ind"}
    for row in np.flatnonzero(checks.code).tolist():
        status, reason, column = checks.reasons[checks.code[row] - 1]
        value = show(cells[column][row].as_py())
        if reason in ("reversed times", "empty span"):
            detail = f"clip_start = {show(cells['clip_start'][row].as_py())}, clip_end = {value}"
        else:
            detail = f"{column} = {value}" + (f"; expected {_EXPECTED[column]}" if column in _EXPECTED else "")
        rejects.add(
            set_name,
            location=location(table["line"][row].as_py()),
            uid=cells["video_uid"][row].as_py(),
            key="" if column in identity else table["key"][row].as_py(),
            status=status,
            reason=reason,
            detail=detail,
        )


def _note_durations(cells: dict[str, pa.Array], usable: np.ndarray, durations: dict[str, float]) -> None:
    """Update `durations` (uid → s) with the longest duration that the usable rows of a block state for each video."""
    uids = pc.dictionary_encode(cells["video_uid"].filter(pa.array(usable)))
    longest = np.full(len(uids.dictionary), -math.inf)
    if _DURATION in cells:
        values = _floats(cells[_DURATION])[usable]
        known = np.isfinite(values) & (values > 0) & (values <= MAX_SECONDS)
        np.maximum.at(longest, uids.indices.to_numpy()[known], values[known])
    for uid, value in zip(uids.dictionary.to_pylist(), longest.tolist(), strict=True):
        before = durations.get(uid, math.nan)
        durations[uid] = before if value < 0 else value if math.isnan(before) else max(before, value)


def _report_durations(
    cells: dict[str, pa.Array], lines: np.ndarray, location: Callable[[int], str], rejects: RejectedRows
) -> None:
    """Report the durations that cannot be read; empty ones are merely absent."""
    if _DURATION not in cells:
        return
    values = _floats(cells[_DURATION])
    filled = pc.greater(pc.binary_length(cells[_DURATION]), 0).to_numpy(False)
    for row in np.flatnonzero(filled & ~((values > 0) & (values <= MAX_SECONDS))).tolist():
        rejects.ignore(location(int(lines[row])), _DURATION, cells[_DURATION][row].as_py())


def _bad_texts(cells: pa.Array) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the reasons for which texts cannot be stored, and the rows that each applies to."""
    yield "over-long text", pc.greater(pc.binary_length(cells), MAX_TEXT).to_numpy(False)
    yield "malformed text", pc.match_substring(cells, "\0").to_numpy(False)


def _keys(uids: pa.DictionaryArray, letter: str, passes: np.ndarray, index: np.ndarray) -> pa.Array:
    """Return each row's key: the stem from `make_key`, once per video and pass, followed by the padded index."""
    stems = [_stem(uid, letter, number) for uid in uids.dictionary.to_pylist() for number in (1, 2)]
    stem = pa.array(stems, pa.string()).take(pa.array(uids.indices.to_numpy().astype(np.int64) * 2 + passes))
    digits = pc.utf8_lpad(pc.cast(pa.array(np.maximum(index, 0)), pa.string()), 6, "0")
    return pc.binary_join_element_wise(stem, digits, "")


def _floats(cells: pa.Array) -> np.ndarray:
    """Return the numbers in cells as float64; NaN where a cell is not a number."""
    # Arrow converts only cells that Python reads alike, so that a cell's value does not depend on its neighbours.
    if _only(cells, b"0123456789.eE+-"):
        with suppress(pa.ArrowInvalid):
            values: np.ndarray = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
            return values
    return np.array([_float(cell) for cell in cells.to_pylist()], np.float64)


def _float(text: str) -> float:
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def _integers(cells: pa.Array) -> np.ndarray:
    """Return the integers from 0 in cells as int64; −1 where a cell is none. `12.0`, as pandas writes it, is 12."""
    lengths = pc.min_max(pc.binary_length(cells)).as_py()
    if _only(cells, b"0123456789") and (not len(cells) or (lengths["min"] > 0 and lengths["max"] <= 18)):
        values: np.ndarray = pc.cast(cells, pa.int64()).to_numpy(zero_copy_only=False)
        return values
    whole = [cell.removesuffix(".0") for cell in cells.to_pylist()]
    good = (cell.isascii() and cell.isdigit() and len(cell) <= 18 for cell in whole)
    return np.array([int(cell) if ok else -1 for cell, ok in zip(whole, good, strict=True)], np.int64)


@lru_cache(maxsize=1 << 16)
def _stem(uid: str, letter: str, annotation_pass: int) -> str:
    return make_key(uid, letter, annotation_pass, "0")[:-1]


def _only(cells: pa.Array, alphabet: bytes) -> bool:
    """Return whether all cells consist of bytes of `alphabet`."""
    _, offsets, data = cells.buffers()
    if data is None or not len(cells):
        return True
    bounds = np.frombuffer(offsets, np.int32)
    used = np.frombuffer(data, np.uint8)[bounds[cells.offset] : bounds[cells.offset + len(cells)]]
    allowed = np.zeros(256, bool)
    allowed[list(alphabet)] = True
    return bool(allowed[used].all())


def _tags(cells: pa.Array, classes: int) -> tuple[pa.Array, np.ndarray]:
    """Return the class lists in cells, and which cells are malformed; each distinct text is parsed once."""
    encoded = pc.dictionary_encode(cells)
    parsed = [parse_classes(text, classes) for text in encoded.dictionary.to_pylist()]
    lists = pa.array([tags or [] for tags in parsed], ROW_SCHEMA.field("tag_verb").type)
    bad = np.array([tags is None for tags in parsed], bool)
    indices = encoded.indices
    return lists.take(indices), bad[indices.to_numpy()]
