"""Reads `egoclip.csv` and `egosummary_full.csv`: tab-separated rows, a clip or a summary each, millions of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.csv_rows import DelimitedRows, read_header, read_rows
from preprocessing.annotations.merge import LETTERS, ROWS, ReaderOutput, Rejects, deduplicate, is_uid, show
from preprocessing.annotations.tables import LONGEST, PASSES
from shards.keys import make_key

TAG_CLASSES = {"tag_verb": 118, "tag_noun": 582}
_TIMES = ("narration_time", "clip_start", "clip_end")
COLUMNS = ("video_uid", "narration_source", "narration_ind", *_TIMES, "clip_text", *TAG_CLASSES)
_DURATION = "video_dur"  # a hint where metadata are absent: optional, and never a reason to reject a row
_NEEDED = {
    "video_uid": "an id that can name a file",
    "narration_source": f"one of {', '.join(PASSES)}",
    "narration_ind": "a whole number from 0",
    **dict.fromkeys(_TIMES, f"seconds from 0 to {LONGEST:.0f}"),
    **{name: f"a JSON list of classes 0 … {n - 1}, as [93] or []," for name, n in TAG_CLASSES.items()},
}


def read(config: AnnotationsConfig, durations: Mapping[str, float], rejects: Rejects) -> ReaderOutput:
    """Read the configured pair of files; a row that cannot be used goes to `rejects`.

    `durations` is not needed: these clips are ready-made. Rows stay as published, `#unsure` included, because the
    files' authors made their selection; only rows without text or of no length are filtered.
    """
    tables, counts = {}, {}
    places: dict[str, Callable[[int], str]] = {}
    seen: dict[str, float] = {}
    for set_name, path in (("clips", config.egoclip), ("summaries", config.egosummary)):
        tables[set_name], counts[set_name], places[set_name] = ROWS.empty_table(), 0, str
        if path is not None:
            places[set_name] = place = RowSource(path.name)
            rows, counts[set_name] = _read_file(path, set_name, rejects, seen)
            tables[set_name] = deduplicate(rows, set_name, place, rejects)
    return ReaderOutput(
        rows=tables,
        input_rows=counts,
        durations=seen,
        places=places,
    )


@dataclass(frozen=True)
class RowSource:
    """Names a line of a file."""

    file: str

    def __call__(self, line: int) -> str:
        return f"{self.file}:{line}"


def _read_file(path: Path, set_name: str, rejects: Rejects, durations: dict[str, float]) -> tuple[pa.Table, int]:
    """Return a file's usable rows and the count of all; note each video's duration, the longest that is stated."""
    header = read_header(path, "\t")
    columns = header.columns(COLUMNS, (_DURATION,))
    place = RowSource(path.name)
    tables, count = [ROWS.empty_table()], 0
    for rows in read_rows(header, columns):
        count += len(rows.lines) + len(rows.bad)
        for bad in rows.bad:
            rejects.add(set_name, place=place(bad.line), reason=bad.reason, detail=bad.value)
        tables.append(_convert(rows, set_name, place, rejects, durations))
    return pa.concat_tables(tables), count


class _Checks:
    """Which rows of a block failed, and why: the first check that a row fails is the reason it is given."""

    def __init__(self, rows: int) -> None:
        self.code = np.zeros(rows, np.int16)  # 0: good, else 1 + index into `reasons`
        self.reasons: list[tuple[str, str, str]] = []  # status, reason, column

    def fail(self, bad: np.ndarray, reason: str, column: str, status: str = "failed") -> None:
        """Mark the rows where `bad` holds."""
        self.reasons.append((status, reason, column))
        self.code[bad & (self.code == 0)] = len(self.reasons)


def _convert(
    rows: DelimitedRows, set_name: str, place: RowSource, rejects: Rejects, durations: dict[str, float]
) -> pa.Table:
    """Return the good rows of a block as `ROWS`, and put the others into `rejects`."""
    cells = {name: rows.cells[name].combine_chunks() for name in rows.cells.column_names}
    checks = _Checks(len(rows.lines))
    uids = pc.dictionary_encode(cells["video_uid"])
    strange = np.array([not is_uid(uid) for uid in uids.dictionary.to_pylist()], bool)
    checks.fail(strange[uids.indices.to_numpy()], "malformed video_uid", "video_uid")
    passes = pc.index_in(cells["narration_source"], pa.array(PASSES)).fill_null(-1).to_numpy()
    checks.fail(passes < 0, "malformed narration_source", "narration_source")
    index = _integers(cells["narration_ind"])
    checks.fail(index < 0, "malformed narration_ind", "narration_ind")
    times = {name: _floats(cells[name]) for name in _TIMES}
    for name, values in times.items():
        checks.fail(~((values >= 0) & (values <= LONGEST)), f"malformed {name}", name)
    checks.fail(times["clip_end"] < times["clip_start"], "reversed times", "clip_end")
    tags = {}
    for name, classes in TAG_CLASSES.items():
        tags[name], bad = _tags(cells[name], classes)
        checks.fail(bad, f"malformed {name}", name)
    checks.fail(times["clip_end"] == times["clip_start"], "empty span", "clip_end", "filtered")
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(cells["clip_text"])), 0).to_numpy(False)
    checks.fail(blank, "empty text", "clip_text", "filtered")

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
    table = pa.table([columns[name] for name in ROWS.names], schema=ROWS)
    _reject(table, cells, checks, set_name, place, rejects)
    usable = np.array([True, *(status == "filtered" for status, _, _ in checks.reasons)])[checks.code]
    _note_durations(cells, usable, durations)
    good = checks.code == 0
    return table if good.all() else table.filter(pa.array(good))


def _reject(
    table: pa.Table, cells: dict[str, pa.Array], checks: _Checks, set_name: str, place: RowSource, rejects: Rejects
) -> None:
    identity = {"video_uid", "narration_source", "narration_ind"}
    for row in np.flatnonzero(checks.code).tolist():
        status, reason, column = checks.reasons[checks.code[row] - 1]
        value = show(cells[column][row].as_py())
        if reason in ("reversed times", "empty span"):
            detail = f"clip_start = {show(cells['clip_start'][row].as_py())}, clip_end = {value}"
        else:
            detail = f"{column} = {value}" + (f"; {_NEEDED[column]} is needed" if column in _NEEDED else "")
        rejects.add(
            set_name,
            place=place(table["line"][row].as_py()),
            uid=cells["video_uid"][row].as_py(),
            key="" if column in identity else table["key"][row].as_py(),
            status=status,
            reason=reason,
            detail=detail,
        )


def _note_durations(cells: dict[str, pa.Array], usable: np.ndarray, durations: dict[str, float]) -> None:
    """Add the block's videos to `durations`."""
    uids = pc.dictionary_encode(cells["video_uid"].filter(pa.array(usable)))
    longest = np.full(len(uids.dictionary), -math.inf)
    if _DURATION in cells:
        values = _floats(cells[_DURATION])[usable]
        known = np.isfinite(values) & (values > 0) & (values <= LONGEST)
        np.maximum.at(longest, uids.indices.to_numpy()[known], values[known])
    for uid, value in zip(uids.dictionary.to_pylist(), longest.tolist(), strict=True):
        before = durations.get(uid, math.nan)
        durations[uid] = before if value < 0 else value if math.isnan(before) else max(before, value)


def _keys(uids: pa.DictionaryArray, letter: str, passes: np.ndarray, index: np.ndarray) -> pa.Array:
    """Return each row's key: `make_key` once for each video and pass, and the padded index appended."""
    stems = [_stem(uid, letter, number) for uid in uids.dictionary.to_pylist() for number in (1, 2)]
    stem = pa.array(stems, pa.string()).take(pa.array(uids.indices.to_numpy().astype(np.int64) * 2 + passes))
    digits = pc.utf8_lpad(pc.cast(pa.array(np.maximum(index, 0)), pa.string()), 6, "0")
    return pc.binary_join_element_wise(stem, digits, "")


def _floats(cells: pa.Array) -> np.ndarray:
    """Return numbers as float64, NaN where a cell is none."""
    # Arrow gets only what Python reads alike, so that what a cell means never hangs on its neighbours.
    if _only(cells, b"0123456789.eE+-"):
        with suppress(pa.ArrowInvalid):
            return pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    return np.array([_float(cell) for cell in cells.to_pylist()], np.float64)


def _float(text: str) -> float:
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def _integers(cells: pa.Array) -> np.ndarray:
    """Return whole numbers from 0 as int64, -1 where a cell is none; `12.0` is 12, as pandas writes it."""
    lengths = pc.min_max(pc.binary_length(cells)).as_py()
    if _only(cells, b"0123456789") and (not len(cells) or (lengths["min"] > 0 and lengths["max"] <= 18)):
        return pc.cast(cells, pa.int64()).to_numpy(zero_copy_only=False)
    whole = [cell.removesuffix(".0") for cell in cells.to_pylist()]
    good = (cell.isascii() and cell.isdigit() and len(cell) <= 18 for cell in whole)
    return np.array([int(cell) if ok else -1 for cell, ok in zip(whole, good, strict=True)], np.int64)


@lru_cache(maxsize=1 << 16)
def _stem(uid: str, letter: str, annotation_pass: int) -> str:
    return make_key(uid, letter, annotation_pass, "0")[:-1]


def _only(cells: pa.Array, alphabet: bytes) -> bool:
    """Return whether all cells are made of the bytes of `alphabet`."""
    _, offsets, data = cells.buffers()
    if data is None or not len(cells):
        return True
    bounds = np.frombuffer(offsets, np.int32)
    used = np.frombuffer(data, np.uint8)[bounds[cells.offset] : bounds[cells.offset + len(cells)]]
    allowed = np.zeros(256, bool)
    allowed[list(alphabet)] = True
    return bool(allowed[used].all())


def _tags(cells: pa.Array, classes: int) -> tuple[pa.Array, np.ndarray]:
    """Return tag lists and which cells are malformed; each distinct cell text is parsed once."""
    encoded = pc.dictionary_encode(cells)
    parsed = [parse_tags(text, classes) for text in encoded.dictionary.to_pylist()]
    lists = pa.array([tags or [] for tags in parsed], ROWS.field("tag_verb").type)
    bad = np.array([tags is None for tags in parsed], bool)
    indices = encoded.indices
    return lists.take(indices), bad[indices.to_numpy()]


def parse_tags(text: str, classes: int) -> list[int] | None:
    """Return the classes in a JSON list, None where the text is no list of whole numbers from 0 below `classes`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(type(tag) is int and 0 <= tag < classes for tag in value):
        return None
    return value
