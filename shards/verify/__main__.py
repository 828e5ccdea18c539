# PYTHON_ARGCOMPLETE_OK
"""Verifies a dataset, `python -m shards.verify ROOT`: every byte against its hash, every sample decoded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from configs.cli import Command, ExitCode, Request
from shards.summary import human_bytes, print_any_text, printable
from shards.verify.run import Report, verify
from shards.verify.shard import ShardReport


class ReportError(RuntimeError):
    """A report that cannot be written where it should be."""

    exit_code: ClassVar[int] = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code: 0 for a sound dataset, 1 for one with problems."""
    print_any_text()
    command = Command("python -m shards.verify", __doc__)
    command.positional("root", type=Path, help="the dataset's folder")
    command.flag("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one per core)")
    command.flag("--json", type=Path, metavar="FILE", help="also write the report there as JSON")

    def work(request: Request[None]) -> int:
        flags = request.flags
        if not flags.root.is_dir():
            command.error(f"{flags.root}: there is no such folder")
        if flags.workers < 0:
            command.error(f"--workers {flags.workers}: must be at least 0 (0: in this process)")
        if flags.json is not None and (flags.json.is_dir() or not flags.json.absolute().parent.is_dir()):
            command.error(f"--json {flags.json}: it is a folder, or its folder does not exist")
        return _verify(flags.root, workers=flags.workers, json_file=flags.json)

    return command.run(work, argv)


def _verify(root: Path, *, workers: int, json_file: Path | None) -> int:
    """Verify with a progress bar and print what was found; return the exit code."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as progress:
        total = sum(path.stat().st_size for path in root.glob("*/*/*.tar") if path.is_file())
        task = progress.add_task("verifying", total=total)
        done = [0, 0]  # samples, problems

        def advance(report: ShardReport) -> None:
            done[0] += len(report.keys)
            done[1] += len(report.findings)
            text = f"verifying: {done[0]:,} samples, {done[1]:,} problems"
            progress.update(task, advance=report.job.bytes, description=text)

        report = verify(root, workers=workers, on_shard=advance)
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ReportError(f"--json {json_file}: cannot be written: {error.strerror or error}") from None
    _print(report, Console())
    return ExitCode.FAILED if report.findings else ExitCode.OK


def _print(report: Report, console: Console) -> None:
    for finding in report.findings:
        where = finding.file + (f" [{finding.key}]" if finding.key else "")
        console.print(f"[bold red]✗[/] [bold]{escape(where)}[/]: {escape(finding.problem)}", soft_wrap=True)
        console.print(f"  [dim]{escape(finding.remedy)}[/]", soft_wrap=True)
    for note in report.notes:
        console.print(f"[dim]note: {escape(printable(note))}[/]", soft_wrap=True)
    rate = report.bytes / max(report.seconds, 1e-9)
    work = f"{report.samples:,} samples in {report.shards:,} shards, {report.frames:,} frames decoded"
    speed = f"{human_bytes(report.bytes)} in {report.seconds:.1f} s ({human_bytes(rate)}/s)"
    verdict = f"[bold red]{len(report.findings)} problems[/]" if report.findings else "[bold green]sound[/]"
    console.print(f"{verdict}: {work}, {speed}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
