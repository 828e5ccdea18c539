"""Summarises a dataset as tables for the terminal, and finds single samples in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape
from rich.table import Table

from shards import schema
from shards.dataset import Dataset, Shard, read_member, read_rows, row_schema
from shards.stats import ShardError, parse_json
from shards.summary import PERCENTILES, SplitSummary, human_bytes, human_hours, printable, summarize


@dataclass(frozen=True, kw_only=True)
class Located:
    """The location and the record of one sample."""

    set_name: str
    split: str
    shard: Shard
    row: dict[str, Any]  # of the shard's parquet
    record: dict[str, Any]  # the parsed json member


def find_sample(dataset: Dataset, key: str) -> Located:
    """Return the sample with a key; raise `ShardError` if the dataset has none."""
    for set_name, split, entry in dataset.splits():
        for shard in entry.shards:
            table = shard.rows(row_schema(set_name).names)
            rows = table.filter(pc.equal(table["key"], key)).to_pylist()
            if rows:
                record = read_record(set_name, shard, rows[0])
                return Located(set_name=set_name, split=split, shard=shard, row=rows[0], record=record)
    raise ShardError(f"{dataset.root}: no sample has the key {key!r}; the shards' parquet files list all keys")


def read_record(set_name: str, shard: Shard, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a row of a shard's parquet as parsed JSON; raise `ShardError` if it is damaged."""
    try:
        raw = read_member(shard.path, row["json_offset"], row["json_size"])
        record = schema.from_json(set_name, parse_json(raw))
        schema.check_values(record)
    except OSError as error:
        raise ShardError(f"{shard.path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{shard.path}: {row['key']}: {error}: run python -m shards.verify") from None
    return schema.to_json(record)


def tables(dataset: Dataset) -> Iterator[Table]:
    """Yield the tables of a dataset: splits, bytes, clip lengths, ledger, source spans, toolchain."""
    summaries = [summarize(split) for _, _, split in dataset.splits()]
    yield table(
        "Splits",
        ("split", "shards", "samples", "failed", "videos", "clips", "stored"),
        [
            (_split_name(s), f"{s.shards:,}", f"{s.samples:,}", f"{s.failed:,}", f"{s.videos:,}",
             human_hours(s.clip_hours), human_hours(s.stored_hours))
            for s in summaries
        ],
    )  # fmt: skip
    yield table(
        "Bytes",
        ("split", "tars", "per sample", "fingerprint"),
        [
            (_split_name(s), human_bytes(s.bytes), human_bytes(s.bytes_per_sample), s.fingerprint[:16])
            for s in summaries
        ],
    )
    quantiles = {0: "shortest", 50: "median", 100: "longest"}
    yield table(
        "Clip length (s)",
        ("split", *(quantiles.get(q, f"{q} %") for q in PERCENTILES)),
        [(_split_name(s), *(f"{v:.2f}" for v in s.clip_seconds)) for s in summaries if s.samples],
    )
    yield from _account_tables(dataset.root)
    revision = str(dataset.provenance.get("code_revision", "unknown"))
    toolchain = [*dataset.toolchain.items(), ("code revision", revision)]
    yield table("Toolchain", ("part", "version"), toolchain, numbers=False)


def _split_name(summary: SplitSummary) -> str:
    return f"{summary.set_name}/{summary.split}"


def _account_tables(root: Path) -> Iterator[Table]:
    """Yield the ledger and the source spans, if they exist, grouped by status and reason."""
    if (root / "ledger.parquet").exists():
        ledger = read_rows(root / "ledger.parquet", ["set", "status", "reason"])
        grouped = _grouped(ledger, ["set", "status", "reason"], "status", "count")
        yield table("Ledger", ("set", "status", "reason", "items"), [(*key, f"{n:,}") for key, n in grouped])
    if (root / "spans.parquet").exists():
        spans = read_rows(root / "spans.parquet", ["status", "reason", "start", "end"])
        spans = spans.append_column("seconds", pc.subtract(spans["end"], spans["start"]))
        grouped = _grouped(spans, ["status", "reason"], "seconds", "sum")
        rows = [(*key, human_hours(seconds / 3600)) for key, seconds in grouped]
        yield table("Source", ("status", "reason", "duration"), rows)


def _grouped(table: pa.Table, keys: list[str], column: str, how: str) -> list[tuple[tuple[str, ...], Any]]:
    rows = table.group_by(keys).aggregate([(column, how)]).to_pylist()
    return sorted((tuple(row[key] for key in keys), row[f"{column}_{how}"]) for row in rows)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> Table:
    """Return a borderless table; with `numbers`, all columns of numbers are right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False, box=None)
    for index, name in enumerate(head):
        is_number = numbers and index > 0 and name not in ("status", "reason", "fingerprint")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    return table
