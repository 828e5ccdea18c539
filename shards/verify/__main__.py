"""Verifies a dataset: every byte against its hash, every sample decoded; exit 0 sound, 1 problems, 2 usage."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from shards.summary import human_bytes
from shards.verify.run import Report, verify
from shards.verify.shard import ShardReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m shards.verify", description=__doc__)
    parser.add_argument("root", type=Path, help="the dataset's folder")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as JSON, too")
    options = parser.parse_args(arguments)
    if not options.root.is_dir():
        parser.error(f"{options.root}: there is no such folder")
    if options.workers < 0:
        parser.error(f"--workers {options.workers}: 0 (in this process) or more is expected")
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as progress:
        total = sum(path.stat().st_size for path in options.root.glob("*/*/*.tar"))
        task = progress.add_task("verifying", total=total)
        done = [0, 0]  # samples, problems

        def advance(report: ShardReport) -> None:
            done[0] += len(report.keys)
            done[1] += len(report.findings)
            text = f"verifying: {done[0]:,} samples, {done[1]:,} problems"
            progress.update(task, advance=report.job.bytes, description=text)

        report = verify(options.root, workers=options.workers, on_shard=advance)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _print(report, Console())
    return 1 if report.findings else 0


def _print(report: Report, console: Console) -> None:
    for finding in report.findings:
        where = finding.file + (f" [{finding.key}]" if finding.key else "")
        console.print(f"[bold red]✗[/] [bold]{escape(_line(where))}[/]: {escape(_line(finding.what))}", soft_wrap=True)
        console.print(f"  [dim]{escape(finding.mend)}[/]", soft_wrap=True)
    rate = report.bytes / max(report.seconds, 1e-9)
    work = f"{report.samples:,} samples in {report.shards:,} shards, {report.frames:,} frames decoded"
    speed = f"{human_bytes(report.bytes)} in {report.seconds:.1f} s ({human_bytes(rate)}/s)"
    verdict = f"[bold red]{len(report.findings)} problems[/]" if report.findings else "[bold green]sound[/]"
    console.print(f"{verdict}: {work}, {speed}", soft_wrap=True, highlight=False)


def _line(text: str) -> str:
    """Return text as one line without control characters: what is quoted may come from a hostile file."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "�", text.replace("\n", " "))


if __name__ == "__main__":
    sys.exit(main())
