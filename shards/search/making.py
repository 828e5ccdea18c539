"""Makes a catalog: one SQLite file with the samples, captions, videos, tags and losses of a dataset.

It is made once, from the parquet files, the ledger and the records in the tars, and read by `shards.search.catalog`.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.dataset import read_bounded, read_rows
from shards.files import replacing
from shards.sources import LocalSource, Source
from shards.stats import ShardError, open_regular

VERSION = 1
TABLES = Path(__file__).with_name("tables.sql")
_READERS = 8  # shards whose records are read at a time
_MAX_RECORD = 16 << 20  # bytes
_MEMBERS = [f"{member}_{what}" for member in ("jpg", "json", "mp4") for what in ("offset", "size")]
_COLUMNS = ("key", "video_uid", "clip_start", "clip_end", "text", "fps", "first_frame", "clip_frames", *_MEMBERS)
_SAMPLE = "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_LOSS_COLUMNS = ("set", "item", "video_uid", "status", "reason", "detail")

Classes = dict[str, list[int]]  # field of a record → its classes
Progress = Callable[[int, int], None]  # samples done, samples in all


@dataclass(kw_only=True)
class _Video:
    """What is counted of a video."""

    number: int
    seconds: float = 0.0
    samples: int = 0
    lost: int = 0
    status: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(kw_only=True)
class _Counts:
    """What is counted while samples are read."""

    videos: dict[str, _Video] = field(default_factory=dict)
    splits: Counter[tuple[int, int]] = field(default_factory=Counter)  # (split, video) → samples
    tags: Counter[tuple[str, int, int]] = field(default_factory=Counter)  # (field, class, video) → samples
    seconds: dict[int, list[np.ndarray]] = field(default_factory=dict)  # split → lengths of clips, s
    words: dict[int, list[np.ndarray]] = field(default_factory=dict)  # split → words of captions

    def video(self, uid: str) -> _Video:
        """Return the entry of a video, a new one if it has none."""
        found = self.videos.get(uid)
        if found is None:
            found = self.videos[uid] = _Video(number=len(self.videos) + 1)
        return found


def identity_of(source: Source) -> str:
    """Return a text that differs between datasets whose catalogs differ."""
    dataset = source.dataset
    files = {name: digest for name, digest in dataset.files.items() if name.endswith(".parquet")}
    return json.dumps([VERSION, dataset.fingerprint, files, isinstance(source, LocalSource)], sort_keys=True)


def make_catalog(source: Source, path: Path, *, progress: Progress | None = None) -> None:
    """Write the catalog of a dataset to `path`, atomically.

    Of a remote dataset the tars are not read, so its catalog has no tags. Records that cannot be read count as having
    none. Raises `ShardError` or `SourceError` if an index of the dataset cannot be read, and `OSError` without space.
    """
    with replacing(path) as temporary:
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -262144", "temp_store = FILE"):
                connection.execute(f"PRAGMA {setting}")
            connection.executescript(TABLES.read_text(encoding="utf-8"))
            connection.execute("BEGIN")
            counts = _add_samples(connection, source, progress)
            _add_losses(connection, source, counts)
            _add_spans(connection, source, counts)
            _add_videos(connection, counts)
            _add_histograms(connection, counts)
            _add_indexes(connection)
            connection.execute("INSERT INTO about VALUES ('identity', ?)", (identity_of(source),))
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: the catalog cannot be written: {error}") from error
        finally:
            connection.close()


def _add_samples(connection: sqlite3.Connection, source: Source, progress: Progress | None) -> _Counts:
    counts, first, shard_number = _Counts(), 1, 0
    total = sum(split.samples for _, _, split in source.dataset.splits())
    for number, (set_name, split_name, split) in enumerate(source.dataset.splits(), 1):
        begin = first
        for shard, table, records in _read_shards(source, set_name, split.shards):
            shard_number += 1
            connection.execute("INSERT INTO shards VALUES (?, ?, ?, ?)", (shard_number, number, shard.name, first))
            _add_shard(connection, counts, number, first, table, records)
            first += len(table)
            if progress is not None:
                progress(first - 1, total)
        seconds = sum(float(part.sum()) for part in counts.seconds.get(number, []))
        row = (number, set_name, split_name, begin, first, seconds)
        connection.execute("INSERT INTO splits VALUES (?, ?, ?, ?, ?, ?)", row)
    return counts


def _read_shards(source: Source, set_name: str, shards: Sequence[Any]) -> Iterator[tuple[Any, pa.Table, list[Classes]]]:
    """Yield each shard with its rows and the classes in their records, reading a few ahead."""
    fields = [name for name in schema.CLASSES if name in schema.own_fields(set_name)]
    needs_records = bool(fields) and isinstance(source, LocalSource)

    def read(shard: Any) -> tuple[Any, pa.Table, list[Classes]]:
        table = read_rows(source.parquet(shard), _COLUMNS, rows=shard.samples)
        return shard, table, _read_classes(shard.path, table, fields) if needs_records else []

    with ThreadPoolExecutor(_READERS) as pool:
        for begin in range(0, len(shards), _READERS):  # bounded: what was read of a few shards is held in memory
            yield from pool.map(read, shards[begin : begin + _READERS])


def _read_classes(tar: Path, table: pa.Table, fields: Sequence[str]) -> list[Classes]:
    """Return the fields of each row's record that hold classes; an empty one where it cannot be read."""
    found = []
    try:
        with open_regular(tar) as handle:
            for offset, size in zip(table["json_offset"].to_pylist(), table["json_size"].to_pylist(), strict=True):
                raw = os.pread(handle.fileno(), size, offset) if 0 < size <= _MAX_RECORD else b""
                found.append(_classes_of(raw, fields))
    except (OSError, ShardError, ValueError, OverflowError):
        found += [{}] * (len(table) - len(found))
    return found


def _classes_of(raw: bytes, fields: Sequence[str]) -> Classes:
    try:
        record = json.loads(raw)
        found = {name: record[name] if isinstance(record[name], list) else [record[name]] for name in fields}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}  # shards.verify reports damaged records
    return {
        name: [tag for tag in dict.fromkeys(tags) if type(tag) is int and 0 <= tag < schema.CLASSES[name]]
        for name, tags in found.items()
    }


def _add_shard(
    connection: sqlite3.Connection,
    counts: _Counts,
    split: int,
    first: int,
    table: pa.Table,
    records: Sequence[Classes],
) -> None:
    columns = {name: table[name].to_pylist() for name in table.column_names}
    videos = []
    for uid, stop in zip(columns["video_uid"], columns["clip_end"], strict=True):
        video = counts.video(uid)
        video.samples += 1
        video.seconds = max(video.seconds, stop)
        videos.append(video.number)
    numbers = range(first, first + len(table))
    texts = columns["text"]
    rows = zip(
        numbers, columns["key"], videos, columns["clip_start"], columns["clip_end"], texts, columns["fps"],
        columns["first_frame"], columns["clip_frames"], *(columns[name] for name in _MEMBERS),
        [json.dumps(record, separators=(",", ":")) for record in records] if records else ["{}"] * len(table),
        strict=True,
    )  # fmt: skip
    connection.executemany(_SAMPLE, rows)
    counts.splits.update(zip(repeat(split), videos))
    if records:
        for video_number, record in zip(videos, records, strict=True):
            for name, tags in record.items():
                counts.tags.update((name, tag, video_number) for tag in tags)
    seconds = np.asarray(columns["clip_frames"]) / np.maximum(np.asarray(columns["fps"]), schema.MIN_FPS)
    counts.seconds.setdefault(split, []).append(seconds)
    words = np.fromiter((len(text.split()) for text in texts), np.int64, len(texts))
    counts.words.setdefault(split, []).append(words)


def _add_losses(connection: sqlite3.Connection, source: Source, counts: _Counts) -> None:
    """Add the ledger's rows of what is not packed, and its rows about videos."""
    table = _read_table(source, "ledger.parquet")
    if table is None:
        return
    names = table.column_names
    if "item" not in names and "key" in names:
        table = table.append_column("item", table["key"])
    if missing := [name for name in _LOSS_COLUMNS if name not in table.column_names]:
        raise ShardError(f"ledger.parquet lacks the column {missing[0]}: run python -m shards.verify")
    of_videos = table.filter(pc.equal(table["set"], "videos"))
    for row in of_videos.select(list(_LOSS_COLUMNS)).to_pylist():
        video = counts.video(row["video_uid"])
        video.status, video.reason, video.detail = row["status"], row["reason"], row["detail"]
    lost = table.filter(pc.not_equal(table["status"], "packed")).select(list(_LOSS_COLUMNS))
    lost = lost.sort_by([("set", "ascending"), ("status", "ascending"), ("reason", "ascending"), ("item", "ascending")])
    for batch in lost.to_batches(max_chunksize=1 << 16):
        columns = [batch.column(name).to_pylist() for name in _LOSS_COLUMNS]
        connection.executemany(
            "INSERT INTO losses (set_name, item, video_uid, status, reason, detail) VALUES (?, ?, ?, ?, ?, ?)",
            zip(*columns, strict=True),
        )
        for uid, set_name in zip(columns[2], columns[0], strict=True):
            if uid and set_name != "videos":
                counts.video(uid).lost += 1
    connection.execute(
        "INSERT INTO loss_reasons SELECT set_name, status, reason, count(*) FROM losses GROUP BY 1, 2, 3"
    )


def _add_spans(connection: sqlite3.Connection, source: Source, counts: _Counts) -> None:
    table = _read_table(source, "spans.parquet")
    if table is None:
        return
    for row in table.to_pylist():
        video = counts.video(row["video_uid"])
        video.seconds = max(video.seconds, row["end"])
        connection.execute(
            "INSERT INTO spans VALUES (?, ?, ?, ?, ?)",
            (video.number, row["start"], row["end"], row["status"], row.get("reason") or ""),
        )


def _read_table(source: Source, name: str) -> pa.Table | None:
    """Return a table beside the shards; None if the dataset has none."""
    if name not in source.dataset.files:
        return None
    path = source.file(name)
    try:
        table = read_bounded(path)
    except (OSError, pa.ArrowException, KeyError, TypeError, OverflowError) as error:
        raise ShardError(f"{path}: cannot be read: {error}: run python -m shards.verify") from None
    texts = {field.name for field in table.schema if pa.types.is_string(field.type)}
    return pa.table({c: pc.fill_null(table[c], "") if c in texts else table[c] for c in table.column_names})


def _add_videos(connection: sqlite3.Connection, counts: _Counts) -> None:
    connection.executemany(
        "INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (v.number, uid, v.seconds, v.samples, v.lost, v.status, v.reason, v.detail)
            for uid, v in counts.videos.items()
        ),
    )
    rows = ((split, video, samples) for (split, video), samples in sorted(counts.splits.items()))
    connection.executemany("INSERT INTO video_splits VALUES (?, ?, ?)", rows)
    tagged = ((kind, tag, video, samples) for (kind, tag, video), samples in sorted(counts.tags.items()))
    connection.executemany("INSERT INTO video_tags VALUES (?, ?, ?, ?)", tagged)


def _add_histograms(connection: sqlite3.Connection, counts: _Counts) -> None:
    """Add the distributions of clip lengths, words a caption, and samples a video."""
    insert = "INSERT INTO histograms VALUES (?, ?, ?, ?, ?)"
    for name, by_split in (("seconds", counts.seconds), ("words", counts.words)):
        for split, parts in by_split.items():
            bins = _histogram(np.concatenate(parts), is_whole=name == "words")
            connection.executemany(insert, ((name, split, *each) for each in bins))
    for split in counts.seconds:
        samples = np.array([n for (other, _), n in counts.splits.items() if other == split])
        connection.executemany(insert, (("samples", split, *each) for each in _histogram(samples, is_whole=True)))


def _histogram(values: np.ndarray, *, is_whole: bool, bins: int = 24) -> list[tuple[float, float, int]]:
    """Return (low, high, count) of up to `bins` equal intervals up to the 99th percentile, and one of what is above."""
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    low, top = min(0.0, float(values.min())), float(np.quantile(values, 0.99))
    width = (top - low) / bins or 1.0
    if is_whole:
        width = max(1.0, float(np.ceil(width)))
    edges = [low + width * i for i in range(int((top - low) // width) + 2)]
    inner, _ = np.histogram(values[values < edges[-1]], edges)
    found = [(a, b, int(n)) for a, b, n in zip(edges[:-1], edges[1:], inner, strict=True)]
    above = values[values >= edges[-1]]
    return [*found, (edges[-1], float(above.max()), len(above))] if len(above) else found


def _add_indexes(connection: sqlite3.Connection) -> None:
    for statement in (
        "CREATE INDEX by_key ON samples (key)",
        "CREATE INDEX by_video ON samples (video, start)",
        "CREATE INDEX by_uid ON videos (uid)",
        "CREATE INDEX by_seconds ON videos (seconds, id)",
        "CREATE INDEX by_samples ON videos (samples, id)",
        "CREATE INDEX tags_of_video ON video_tags (video, kind)",
        "CREATE INDEX splits_of_video ON video_splits (video)",
        "CREATE INDEX spans_of_video ON spans (video, start)",
        "CREATE INDEX losses_of_video ON losses (video_uid, id)",
        "CREATE INDEX losses_by_reason ON losses (set_name, status, reason, id)",
        "INSERT INTO captions (captions) VALUES ('rebuild')",
        """INSERT INTO video_words (rowid, words)
           SELECT v.id, v.uid || ' ' || coalesce(
             (SELECT group_concat(s.text, ' ') FROM samples s WHERE s.video = v.id), '') FROM videos v""",
        "INSERT INTO tag_counts SELECT kind, tag, sum(samples), count(*) FROM video_tags GROUP BY kind, tag",
        "INSERT INTO words SELECT term, doc FROM vocabulary ORDER BY doc DESC, term LIMIT 200",
        "ANALYZE",
    ):
        connection.execute(statement)
