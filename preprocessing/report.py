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

_REASONS = 3  # kinds of failure that a message names


def require_few_failures(
    config: BuildConfig, ledger_table: pa.Table, spans: Sequence[ledger.SourceSpan], sets: Iterable[str]
) -> None:
    """Raise `TooManyFailuresError` where too many samples of `sets` failed.

    Other sets of the same dataset were checked when they were built.
    """
    samples = _of_sets(ledger_table, sets)
    failed = len(samples.filter(pc.equal(samples["status"], ledger.FAILED)))
    tried = len(samples.filter(pc.not_equal(samples["status"], ledger.FILTERED)))
    if failed > config.max_failed_fraction * tried:
        raise too_many_failures(config, ledger_table, spans, sets=sets, failed=failed, tried=tried)


def too_many_failures(
    config: BuildConfig,
    ledger_table: pa.Table,
    spans: Sequence[ledger.SourceSpan],
    *,
    sets: Iterable[str],
    failed: int,
    tried: int,
) -> TooManyFailuresError:
    """Write the ledger and the spans to the work folder; return the error with the most frequent reasons."""
    ledger.write(config.work_folder, ledger_table, spans)
    samples = _of_sets(ledger_table, sets)
    reasons = _frequent_reasons(samples.filter(pc.equal(samples["status"], ledger.FAILED)))
    return TooManyFailuresError(
        f"{failed} of {tried} samples failed, more than max_failed_fraction = {config.max_failed_fraction} allows. "
        + "\n".join(["The most frequent reasons:", *reasons])
        + f"\nEvery item is listed in {config.work_folder / 'ledger.parquet'}. Finished work is kept. Repair the "
        "sources and rerun with retry=failed (missing videos that were added need the same command only); or, if that "
        "many failures are expected, raise max_failed_fraction, or set videos.allow_missing=true for missing videos"
    )


def _of_sets(ledger_table: pa.Table, sets: Iterable[str]) -> pa.Table:
    return ledger_table.filter(pc.is_in(ledger_table["set"], pa.array(list(sets), pa.string())))


def _frequent_reasons(failed: pa.Table) -> list[str]:
    """Return a line for each of the most frequent reasons, with the number of samples and an example."""
    counted = sorted(
        pc.value_counts(failed["reason"]).to_pylist(), key=lambda entry: (-entry["counts"], entry["values"])
    )
    lines = []
    for entry in counted[:_REASONS]:
        rows = failed.filter(pc.equal(failed["reason"], entry["values"]))
        row = rows.take(pc.sort_indices(rows, [("set", "ascending"), ("item", "ascending")])[:1]).to_pylist()[0]
        of_video = f" of video {row['video_uid']}" if row["video_uid"] else ""
        lines.append(f"  {entry['counts']} × {entry['values']}, such as {row['item']}{of_video}: {row['detail'][:300]}")
    if len(counted) > _REASONS:
        lines.append(f"  and {len(counted) - _REASONS} more reasons")
    return lines


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
