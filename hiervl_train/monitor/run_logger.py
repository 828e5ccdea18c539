"""Everything beside the training steps: metrics, progress, page, status, evaluation, garbage collection.

All ranks have a `RunLogger`, as counts are summed over ranks; the first rank writes.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

from rich.console import Console

from hiervl_train.collectives import sum_over_ranks
from hiervl_train.data import StepLoaders
from hiervl_train.distributed import DistributedContext
from hiervl_train.monitor.metrics import MetricsConfig, MetricsWriter, Window
from hiervl_train.monitor.nonfinite import DivergedError, StepRecord
from hiervl_train.monitor.page import write_page
from hiervl_train.monitor.peak import Peak
from hiervl_train.monitor.phases import PhaseClock
from hiervl_train.monitor.progress import Progress
from hiervl_train.monitor.run_folder import RunFolder
from hiervl_train.task import CHANCE
from shards.files import write_json

Status = Literal["running", "done", "stopped", "failed"]
_PAGE_SECONDS = 60.0  # between two writes of the page
logger = logging.getLogger(__name__)


class RunLogger:
    """A context around the loop, which calls `log_step` with every step's record."""

    def __init__(
        self,
        config: MetricsConfig,
        folder: RunFolder,
        context: DistributedContext,
        console: Console,
        loaders: StepLoaders,
        *,
        peak: Peak,
        clock: PhaseClock,
        first_step: int,
        total_steps: int,
        epoch_steps: int,
        collect_garbage_every: int,
    ) -> None:
        self._config, self._folder, self._context, self._loaders = config, folder, context, loaders
        self._console, self._peak, self._clock = console, peak, clock
        self._step, self._total, self._epoch_steps = first_step, total_steps, epoch_steps
        self._collect_garbage_every = collect_garbage_every
        self._stack = ExitStack()
        self._page_written = time.monotonic()
        self._page_every = _PAGE_SECONDS
        self._paused = 0.0  # s spent in evaluations, which do not count in any speed

    def __enter__(self) -> Self:
        # Steps are recorded one step late, so speeds use the time when a step ended, not the time of its recording.
        self._now = time.perf_counter()
        self._window = Window(
            device=self._context.device,
            world=self._context.world,
            peak_flops=self._peak.flops,
            clock=lambda: self._now,
        )
        self._loaders.metrics()  # counts from before the first step belong to no step
        self._writer: MetricsWriter | None = None
        self._progress: Progress | None = None
        if self._context.is_main:
            self._writer = self._stack.enter_context(
                MetricsWriter(self._folder.path, self._config, first_step=self._step + 1)
            )
            self._progress = self._stack.enter_context(Progress(self._console, self._total, done=self._step))
            self.print(f"training from step {self._step:,} to {self._total:,}; MFU is relative to {self._peak}")
            write_status(self._folder, "running", self._step, self._total)
        # Collected at fixed steps only: a pause of one rank pauses all of them.
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.enable()
        gc.unfreeze()
        if isinstance(error, Exception) and not isinstance(error, DivergedError):
            # Immediately: the following steps may wait for ranks that are gone, until the launcher kills this one.
            logger.error("[rank %d] failed after step %d", self._context.rank, self._step, exc_info=error)
        if error is not None and self._context.is_main:
            write_status(self._folder, "failed", self._step, self._total, reason=f"{type(error).__name__}: {error}")
        self._stack.__exit__(kind, error, trace)
        if self._context.is_main:
            self._write_page()

    def print(self, text: str) -> None:
        """Print a line on the first rank, and log it."""
        if self._progress is not None:
            self._progress.print(text)

    def log_step(self, record: StepRecord | None) -> None:
        """Add a step's record; write a line of metrics if one is due."""
        if record is None:
            return
        self._now = record.ended - self._paused
        self._window.add(
            record.step_type,
            loss=record.loss,
            grad_norm=record.grad_norm,
            clips=record.clips,
            flops=record.flops or 0.0,
            wait_seconds=record.waited,
            is_skipped=record.is_skipped,
            phases=self._clock.take(record.step),
        )
        values: dict[str, float] = {}
        if record.step % self._config.every_steps == 0 or record.step == self._total:
            self._window.add_data(self._counts())
            values = {"epoch": record.step / self._epoch_steps, **self._window.values(lr=record.lr)}
            if record.flops is None:
                values.pop("mfu", None)
            if self._writer is not None:
                self._writer.write(record.step, values)
                write_status(self._folder, "running", record.step, self._total)
        if self._progress is not None:
            self._progress.step(record.step, values)

    def maybe_write(self, step: int) -> None:
        """Write the page if it is due, on the first rank; collect garbage if it is due, on all ranks at one step."""
        self._step = step
        if self._context.is_main and time.monotonic() - self._page_written > self._page_every:
            self._write_page()
        if step % self._collect_garbage_every == 0:
            gc.collect()

    def evaluate(self, step: int, evaluate: Callable[[], Mapping[str, float]]) -> float | None:
        """Evaluate and write the scores; return their mean, which ranks checkpoints, or None without scores."""
        began = time.perf_counter()
        values = dict(evaluate())
        scores = {name: value for name, value in values.items() if not name.startswith(CHANCE)}
        chance = {name.removeprefix(CHANCE): value for name, value in values.items() if name.startswith(CHANCE)}
        self._paused += time.perf_counter() - began
        if not scores:
            return None
        mean = sum(scores.values()) / len(scores)
        if self._writer is not None:
            self._writer.write(step, {f"eval/{name}": value for name, value in values.items()})
            report = {"step": step, "scores": scores, "chance": chance}
            write_json(self._folder.evaluation / f"step-{step:08d}.json", report)
        levels = {name: f" (chance {level:.1f})" for name, level in chance.items()}
        shown = [f"{name} {value:.1f} %{levels.get(name, '')}" for name, value in scores.items()]
        self.print(f"step {step:,}: {', '.join(shown)}")
        return mean

    def before_save(self) -> None:
        """Make the metrics up to a checkpoint as durable as the checkpoint."""
        if self._writer is not None:
            self._writer.sync()

    def _counts(self) -> dict[str, float]:
        """Return the counts of all ranks' loaders since the last call, summed."""
        own: Counter[str] = Counter()
        for counts in self._loaders.metrics().values():
            own.update(counts)
        return sum_over_ranks(own, self._context)

    def _write_page(self) -> None:
        began = time.monotonic()
        try:
            write_page(self._folder.path)
        except Exception:
            logger.exception("%s could not be written", self._folder.page)
        self._page_written = time.monotonic()
        # The other ranks wait meanwhile, so the page of a long run, which takes longer, is written less often.
        self._page_every = max(_PAGE_SECONDS, 300 * (self._page_written - began))


def write_status(folder: RunFolder, state: Status, step: int, total: int, *, reason: str | None = None) -> None:
    """Write `status.json`, which scripts and people read first."""
    status: dict[str, Any] = {"state": state, "step": step, "total": total, "reason": reason, "time": time.time()}
    write_json(folder.path / "status.json", status)
