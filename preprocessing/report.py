"""Reports the result of a build: a table of outcomes, the most frequent failures, and the throughput."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preprocessing import ledger
from preprocessing.config import BuildConfig
from preprocessing.errors import TooManyFailuresError
from preprocessing.video.chunks import Chunk
from shards.dataset import Dataset


def require_few_failures(config: BuildConfig, ledger_table: pa.Table, sets: Iterable[str]) -> None:
    """Raise `TooManyFailuresError` with the most frequent reasons where too many samples of `sets` failed.

    Other sets of the same dataset were checked when they were built. On failure, the ledger is written to the
    work folder.
    """
    samples = ledger_table.filter(pc.is_in(ledger_table["set"], pa.array(list(sets), pa.string())))
    failed = samples.filter(pc.equal(samples["status"], ledger.FAILED))
    tried = len(samples.filter(pc.not_equal(samples["status"], ledger.FILTERED)))
    if len(failed) > config.max_failed_fraction * tried:
        ledger.write(config.work_folder, ledger_table, [])
        reasons = sorted(ledger.summarise(failed), key=lambda row: -row[3])[:5]
        shown = "; ".join(f"{count} {name} {reason}" for name, _, reason, count in reasons)
        raise TooManyFailuresError(
            f"{len(failed)} of {tried} samples failed ({shown}), more than max_failed_fraction = "
            f"{config.max_failed_fraction} allows; {config.work_folder / 'ledger.parquet'} lists each. The shards are "
            "kept: raise max_failed_fraction to publish them as they are, or repair the sources and rerun with "
            "retry=failed"
        )


def summary(
    dataset: Dataset,
    ledger_table: pa.Table,
    chunks: Mapping[str, Sequence[Chunk] | str],
    *,
    seconds: float,
    console: Console,
) -> None:
    """Print the outcomes of a build that took `seconds`, its throughput and its shards."""
    table = Table(title=f"{dataset.root}: outcome of every video and every item")
    for name in ("set", "status", "reason"):
        table.add_column(name)
    table.add_column("items", justify="right")
    for set_name, status, reason, count in ledger.summarise(ledger_table):
        style = {"packed": "green", "filtered": "yellow", "failed": "red"}[status]
        table.add_row(set_name, f"[{style}]{status}[/]", escape(reason), f"{count:,}")
    console.print(table)
    records = [chunk for records in chunks.values() if not isinstance(records, str) for chunk in records]
    video = sum(chunk.end - chunk.start for chunk in records)
    cpu = sum(chunk.cpu_seconds for chunk in records)
    console.print(
        f"{video:,.1f} s of video in {seconds:,.1f} s ({video / max(seconds, 1e-3):,.1f} times real time); "
        f"ffmpeg took {cpu:,.1f} CPU-seconds ({cpu / max(video, 1e-3):.3f} per second of video)"
    )
    for set_name, split, entry in dataset.splits():
        console.print(
            f"{set_name}/{split}: {entry.samples:,} samples, {len(entry.shards):,} shards, {entry.bytes / 1e6:,.1f} MB"
        )
    console.print(f"[bold green]done[/]: {dataset.root} (python -m shards.inspect {dataset.root})")
