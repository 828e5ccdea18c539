"""The ledger: the outcome of every video and every annotated item, and of every second of source video."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocessing.video.chunks import Chunk
from shards.dataset import read_rows
from shards.files import replacing
from shards.stats import ShardStats, shard_number, shard_paths

PACKED, FILTERED, FAILED = "packed", "filtered", "failed"

_STATED_TOLERANCE = 0.5  # s by which a video may end before the time that its header or metadata state

LEDGER_SCHEMA = pa.schema(
    [
        ("set", pa.string()),  # videos | clips | summaries | …
        ("item", pa.string()),  # video_uid, sample key, or file:line of a row that has no key
        ("video_uid", pa.string()),
        ("status", pa.string()),  # packed | filtered (by a rule) | failed
        ("reason", pa.string()),  # kind of failure, counted in dataset.json; empty where packed
        ("detail", pa.string()),  # file, line, value and time
        ("key", pa.string()),  # of the sample, where packed
        ("shard", pa.string()),  # such as clips/train/00000.tar, where packed
    ]
)


@dataclass(frozen=True, kw_only=True, order=True)
class SourceSpan:
    """One time span of one source video: a row of `spans.parquet`. The spans of a video leave no gap between them."""

    video_uid: str
    start: float  # s
    end: float  # s
    status: str  # packed | failed
    reason: str = ""
    chunk: int = -1  # index of the chunk that holds it; −1: none


class UnbalancedError(RuntimeError):
    """The ledger does not add up: an item was lost or counted twice. Always a bug in this program."""


def make_rows(
    set_name: str,
    items: Sequence[str] | pa.ChunkedArray,
    video_uids: Sequence[str] | pa.ChunkedArray,
    *,
    status: str | Sequence[str],
    reason: str | Sequence[str] = "",
    detail: str | Sequence[str] = "",
    shard: str = "",
) -> pa.Table:
    """Return ledger rows of one set; a string applies to all rows, a sequence has one value per row."""
    n = len(items)

    def column(value: str | Sequence[str] | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        if isinstance(value, pa.ChunkedArray):
            return value
        return pa.array([value] * n if isinstance(value, str) else value, pa.string())

    key = items if shard else ""
    values = (set_name, items, video_uids, status, reason, detail, key, shard)
    return pa.table([column(value) for value in values], schema=LEDGER_SCHEMA)


def reject_rows(rejects: pa.Table) -> pa.Table:
    """Return the ledger rows of rejected annotation rows (columns of `annotations.tables.REJECT_SCHEMA`)."""
    empty = pa.array([""] * len(rejects), pa.string())
    columns = [rejects[name] for name in ("set", "item", "video_uid", "status", "reason", "detail")]
    return pa.table([*columns, empty, empty], schema=LEDGER_SCHEMA)


def shard_rows(root: Path, stats: ShardStats, video_of: Mapping[str, str]) -> pa.Table:
    """Return the ledger rows of one written shard: its samples, and planned samples that could not be made.

    `video_of` gives the video of each failed key.
    """
    set_name, split, name = stats.shard.split("/")
    tables = []
    if stats.samples:
        _, parquet, _ = shard_paths(root, set_name, split, shard_number(name))
        packed = read_rows(parquet, ["key", "video_uid"])
        tables.append(make_rows(set_name, packed["key"], packed["video_uid"], status=PACKED, shard=stats.shard))
    failed = stats.failed
    tables.append(
        make_rows(
            set_name,
            [item.key for item in failed],
            [video_of.get(item.key, "") for item in failed],
            status=FAILED,
            reason=[item.reason for item in failed],
            detail=[item.detail for item in failed],
        )
    )
    return pa.concat_tables(tables)


def require_balanced(ledger: pa.Table, expected: Mapping[str, int]) -> None:
    """Raise `UnbalancedError` unless each set has exactly one row per input item (`expected`: set → items)."""
    counted = {row["set"]: row["set_count"] for row in ledger.group_by("set").aggregate([("set", "count")]).to_pylist()}
    wrong = {name: (n, counted.get(name, 0)) for name, n in expected.items() if counted.get(name, 0) != n}
    items = ledger.group_by(["set", "item"]).aggregate([("item", "count")])
    doubled = items.filter(pc.greater(items["item_count"], 1))["item"].to_pylist()
    if wrong or doubled:
        raise UnbalancedError(f"(input items, ledger rows) differ: {wrong}; items entered twice: {doubled[:5]}")


def summarise(ledger: pa.Table) -> list[tuple[str, str, str, int]]:
    """Return a sorted list of (set, status, reason, number of items)."""
    grouped = ledger.group_by(["set", "status", "reason"]).aggregate([("item", "count")])
    return sorted((r["set"], r["status"], r["reason"], r["item_count"]) for r in grouped.to_pylist())


def write(root: Path, ledger: pa.Table, spans: Iterable[SourceSpan]) -> None:
    """Write `ledger.parquet` and `spans.parquet`, sorted: the same rows give the same bytes."""
    _write(root / "ledger.parquet", ledger.sort_by([("set", "ascending"), ("item", "ascending")]).combine_chunks())
    types = {"str": pa.string(), "float": pa.float64(), "int": pa.int64()}
    columns = list(zip(*map(astuple, sorted(spans)), strict=True)) or [() for _ in fields(SourceSpan)]
    arrays = [pa.array(column, types[str(f.type)]) for column, f in zip(columns, fields(SourceSpan), strict=True)]
    _write(root / "spans.parquet", pa.table(arrays, names=[f.name for f in fields(SourceSpan)]))


def read_ledger(root: Path) -> pa.Table:
    """Return the ledger of a published dataset; an empty table if there is none."""
    path = root / "ledger.parquet"
    return pq.read_table(path) if path.exists() else LEDGER_SCHEMA.empty_table()


def read_spans(root: Path) -> list[SourceSpan]:
    """Return the spans of a published dataset; an empty list if there are none."""
    path = root / "spans.parquet"
    return [SourceSpan(**row) for row in pq.read_table(path).to_pylist()] if path.exists() else []


def video_spans(video_uid: str, chunks: Sequence[Chunk]) -> list[SourceSpan]:
    """Return the spans of a video, packed or failed, from the records of its chunks."""
    spans = []
    for chunk in chunks:
        at = chunk.start
        for damage in chunk.damage:
            if damage.start > at:
                spans.append(
                    SourceSpan(video_uid=video_uid, start=at, end=damage.start, status=PACKED, chunk=chunk.index)
                )
            start = max(at, damage.start)
            spans.append(
                SourceSpan(video_uid=video_uid, start=start, end=damage.end, status=FAILED, reason=damage.reason)
            )
            at = damage.end
        if chunk.end > at:
            spans.append(SourceSpan(video_uid=video_uid, start=at, end=chunk.end, status=PACKED, chunk=chunk.index))
    last = chunks[-1] if chunks else None
    if last is not None and last.stated_end - last.end > _STATED_TOLERANCE:
        reason = f"the source ends at {last.end:.3f} s, its header or metadata state {last.stated_end:.3f} s"
        span = SourceSpan(video_uid=video_uid, start=last.end, end=last.stated_end, status=FAILED, reason=reason)
        spans.append(span)
    return spans


def unusable_span(video_uid: str, duration: float, reason: str) -> SourceSpan:
    """Return the only span of a video that could not be used; of length 0 where its duration (s) is NaN."""
    end = 0.0 if math.isnan(duration) else duration
    return SourceSpan(video_uid=video_uid, start=0.0, end=end, status=FAILED, reason=reason)


def _write(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", store_schema=False)
