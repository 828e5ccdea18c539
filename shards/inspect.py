"""Shows what is in a dataset: tables in the terminal, one sample's record, or a page of pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shards import files, page, schema
from shards.dataset import Dataset, Shard, open_dataset, read_member, read_rows
from shards.stats import ShardError
from shards.summary import PERCENTILES, SplitSummary, human_bytes, human_hours, summarize


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where one sample lies, and what its record says."""

    set_name: str
    split: str
    shard: Shard
    row: dict[str, Any]  # of the shard's parquet
    record: dict[str, Any]  # the json member


def find_sample(dataset: Dataset, key: str) -> Located:
    """Return the sample of a key; raise `ShardError` where the dataset has none."""
    for set_name, split, entry in dataset.splits():
        for shard in entry.shards:
            found = shard.rows()
            found = found.filter(pc.equal(found["key"], key)).to_pylist()
            if found:
                raw = read_member(shard.path, found[0]["json_offset"], found[0]["json_size"])
                return Located(set_name=set_name, split=split, shard=shard, row=found[0], record=json.loads(raw))
    raise ShardError(f"{dataset.root}: no sample has the key {key!r}; keys are listed in the shards' parquet files")


def tables(dataset: Dataset) -> Iterator[Table]:
    """Yield the tables that show a dataset: splits, clip lengths, ledger, spans, toolchain."""
    summaries = [summarize(split) for _, _, split in dataset.splits()]
    yield _table(
        "Splits",
        ("split", "shards", "samples", "failed", "videos", "clips", "stored"),
        [
            (_split_name(s), f"{s.shards:,}", f"{s.samples:,}", f"{s.failed:,}", f"{s.videos:,}",
             human_hours(s.clip_hours), human_hours(s.stored_hours))
            for s in summaries
        ],
    )  # fmt: skip
    yield _table(
        "Bytes",
        ("split", "tars", "a sample", "fingerprint"),
        [
            (_split_name(s), human_bytes(s.bytes), human_bytes(s.bytes_per_sample), s.fingerprint[:16])
            for s in summaries
        ],
    )
    quantiles = {0: "shortest", 50: "median", 100: "longest"}
    yield _table(
        "Clip length (s)",
        ("split", *(quantiles.get(q, f"{q} %") for q in PERCENTILES)),
        [(_split_name(s), *(f"{v:.2f}" for v in s.clip_seconds)) for s in summaries if s.samples],
    )
    yield from _account_tables(dataset.root)
    made = [*dataset.toolchain.items(), ("code revision", str(dataset.provenance.get("code_revision", "unknown")))]
    yield _table("Made by", ("part", "version"), made, numbers=False)


def _split_name(summary: SplitSummary) -> str:
    return f"{summary.set_name}/{summary.split}"


def _account_tables(root: Path) -> Iterator[Table]:
    """Yield ledger and spans, where they are, by status and reason."""
    if (root / "ledger.parquet").exists():
        ledger = read_rows(root / "ledger.parquet", ["set", "status", "reason"])
        grouped = _grouped(ledger, ["set", "status", "reason"], "status", "count")
        yield _table("Ledger", ("set", "status", "reason", "items"), [(*key, f"{n:,}") for key, n in grouped])
    if (root / "spans.parquet").exists():
        spans = read_rows(root / "spans.parquet", ["status", "reason", "start", "end"])
        spans = spans.append_column("seconds", pc.subtract(spans["end"], spans["start"]))
        grouped = _grouped(spans, ["status", "reason"], "seconds", "sum")
        rows = [(*key, human_hours(seconds / 3600)) for key, seconds in grouped]
        yield _table("Source", ("status", "reason", "duration"), rows)


def _grouped(table: pa.Table, keys: list[str], column: str, how: str) -> list[tuple[tuple[str, ...], Any]]:
    rows = table.group_by(keys).aggregate([(column, how)]).to_pylist()
    return sorted((tuple(row[key] for key in keys), row[f"{column}_{how}"]) for row in rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False, box=None)
    for index, name in enumerate(head):
        is_number = numbers and index > 0 and name not in ("status", "reason", "fingerprint")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _show_sample(found: Located, console: Console) -> None:
    place = f"{found.set_name}/{found.split}/{found.shard.name}"
    console.print(f"[bold]{found.row['key']}[/] in {place}", highlight=False)
    members = [
        (ext, f"{found.row[f'{ext}_offset']:,}", f"{found.row[f'{ext}_size']:,}") for ext in schema.MEMBERS
    ]  # fmt: skip
    console.print(_table("Members", ("member", "offset", "bytes"), members))
    console.print_json(json.dumps(found.record, ensure_ascii=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 where there is no such dataset or key, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m shards.inspect", description=__doc__)
    parser.add_argument("root", type=Path, help="the dataset's folder")
    parser.add_argument("--key", help="show this sample's place and record")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page of pictures there")
    parser.add_argument(
        "--samples", type=int, default=48, metavar="N", help="pictures per split (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error(f"--samples {options.samples}: 1 or more is expected")
    console = Console()
    try:
        dataset = open_dataset(options.root)
        if options.key is not None:
            _show_sample(find_sample(dataset, options.key), console)
        if options.html is not None:
            files.write_bytes(options.html, page.render(dataset, samples=options.samples).encode())
            console.print(f"wrote {options.html}", highlight=False, soft_wrap=True)
        if options.key is None and options.html is None:
            for table in tables(dataset):
                console.print(table, "")
    except ShardError as error:
        Console(stderr=True).print(f"[bold red]✗[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
