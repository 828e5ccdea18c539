"""Displays the progress, rate and remaining time of each stage: bars on a terminal, lines in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LOG_EVERY = 30.0  # s between lines where the output is not a terminal


@dataclass
class _Stage:
    total: float  # in `unit`
    unit: str
    started: float  # s, monotonic clock
    done: float = 0.0  # in `unit`
    logged: float = 0.0  # s, monotonic clock: when the last line was printed


class StageProgress:
    """The progress of all stages begun so far. Not thread-safe: call it from the thread that runs the jobs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stages: dict[str, _Stage] = {}
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>20}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )

    def begin(self, name: str, total: float, unit: str) -> None:
        """Start a stage of `total` units."""
        self._stages[name] = _Stage(total=total, unit=unit, started=time.monotonic())
        self._bars[name] = self._progress.add_task(name, total=round(total), rate="")

    def advance(self, name: str, amount: float) -> None:
        """Add `amount` finished units to a stage."""
        stage = self._stages[name]
        now = time.monotonic()
        stage.done += amount
        rate = stage.done / max(now - stage.started, 1e-3)
        self._progress.update(self._bars[name], completed=round(stage.done), rate=f"{rate:,.1f} {stage.unit}/s")
        finished = stage.done >= stage.total - 1e-6
        if not self._console.is_terminal and (now - stage.logged > _LOG_EVERY or finished):
            stage.logged = now
            left = (stage.total - stage.done) / rate if rate else 0
            self._console.print(
                f"{name}: {stage.done:,.0f} of {stage.total:,.0f} {stage.unit}, {rate:,.1f}/s, {left:,.0f} s left",
                highlight=False,
            )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Display the bars while the block runs."""
        with self._progress:
            yield


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append warnings and errors of all packages to a file while the block runs; it is created by the first one."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8", errors="backslashreplace")
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
