"""What is said at the end of a build: the account as a table, what failed and why, and how fast it went."""

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


def require_few_failures(config: BuildConfig, account: pa.Table, sets: Iterable[str]) -> None:
    """Raise `TooManyFailuresError`, naming the most frequent reasons, where too large a share of samples failed.

    Only the sets of this build count: what others of the same dataset lost was judged when they were built.
    """
    samples = account.filter(pc.is_in(account["set"], pa.array(list(sets), pa.string())))
    failed = samples.filter(pc.equal(samples["status"], ledger.FAILED))
    tried = len(samples.filter(pc.not_equal(samples["status"], ledger.FILTERED)))
    if len(failed) > config.max_failed_fraction * tried:
        ledger.write(config.work_folder, account, [])
        reasons = sorted(ledger.summarise(failed), key=lambda row: -row[3])[:5]
        shown = "; ".join(f"{count} {name} {reason}" for name, _, reason, count in reasons)
        raise TooManyFailuresError(
            f"{len(failed)} of {tried} samples failed ({shown}), over max_failed_fraction = "
            f"{config.max_failed_fraction}; {config.work_folder / 'ledger.parquet'} has each. The shards are kept: "
            "raise it to publish them as they are, or mend the sources and run again with retry=failed"
        )


def summary(
    dataset: Dataset,
    account: pa.Table,
    chunks: Mapping[str, Sequence[Chunk] | str],
    *,
    seconds: float,
    console: Console,
) -> None:
    """Print the account of a build."""
    table = Table(title=f"{dataset.root}: what became of every video and every item")
    for name, justify in (("set", "left"), ("status", "left"), ("reason", "left"), ("items", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for set_name, status, reason, count in ledger.summarise(account):
        style = {"packed": "green", "filtered": "yellow", "failed": "red"}[status]
        table.add_row(set_name, f"[{style}]{status}[/]", escape(reason), f"{count:,}")
    console.print(table)
    records = [chunk for made in chunks.values() if not isinstance(made, str) for chunk in made]
    video = sum(chunk.end - chunk.start for chunk in records)
    cpu = sum(chunk.cpu_seconds for chunk in records)
    console.print(
        f"{video:,.1f} s of video in {seconds:,.1f} s ({video / max(seconds, 1e-3):,.1f} times real time); "
        f"ffmpeg took {cpu:,.1f} CPU-seconds ({cpu / max(video, 1e-3):.3f} a second of video)"
    )
    for set_name, split, entry in dataset.splits():
        console.print(
            f"{set_name}/{split}: {entry.samples:,} samples, {len(entry.shards):,} shards, {entry.bytes / 1e6:,.1f} MB"
        )
    console.print(f"[bold green]done[/]: {dataset.root} (python -m shards.inspect {dataset.root})")
