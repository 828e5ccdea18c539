"""What accompanies the training steps: metrics, progress, the page, the run's status, evaluation, garbage collection.

All ranks have one, as counts are added up over ranks; the first rank writes.
"""

from __future__ import annotations

import gc
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from rich.console import Console

from hiervl_train.distributed import DistributedContext
from hiervl_train.levels import StepLoaders
from hiervl_train.monitor.metrics import MetricsWriter, Window, peak
from hiervl_train.monitor.nonfinite import DivergedError, StepRecord
from hiervl_train.monitor.page import write_page
from hiervl_train.monitor.progress import Progress
from hiervl_train.monitor.run_folder import RunFolder
from hiervl_train.settings import RunSettings
from shards.files import write_json

Status = Literal["running", "done", "stopped", "failed"]
_PAGE_SECONDS = 60.0  # between two writes of the page
_GATHERED_BYTES = 8192  # of a rank's value as JSON
logger = logging.getLogger(__name__)


class RunLogger:
    """A context around the loop."""

    def __init__(
        self,
        settings: RunSettings,
        folder: RunFolder,
        ranks: DistributedContext,
        console: Console,
        loaders: StepLoaders,
        *,
        first_step: int,
        total_steps: int,
        epoch_steps: int,
    ) -> None:
        self._settings, self._folder, self._ranks, self._loaders = settings, folder, ranks, loaders
        self._console, self._step, self._total = console, first_step, total_steps
        self._epoch_steps = epoch_steps
        self._stack = ExitStack()
        self._paged = time.monotonic()
        self._page_every = _PAGE_SECONDS
        self._paused = 0.0  # s of evaluations, which are in no speed

    def __enter__(self) -> Self:
        config = self._settings.metrics
        device_peak = peak(self._ranks.device, config)
        hosts = gather(socket.gethostname(), self._ranks)
        # Steps are recorded one step late, so rates use the time at which a step ended, not the time of recording.
        self._now = time.perf_counter()
        self._window = Window(
            device=self._ranks.device,
            world=self._ranks.world,
            peak_flops=device_peak.flops,
            clock=lambda: self._now,
        )
        self._loaders.metrics()  # what was counted before the first step belongs to no step
        self._writer: MetricsWriter | None = None
        self._progress: Progress | None = None
        if self._ranks.is_main:
            self._folder.create(
                self._settings,
                is_resumed=self._step > 0,
                seed=self._settings.run.seed,
                hostnames=sorted(set(hosts)),
                facts={"total_steps": self._total, "mfu_denominator": str(device_peak)},
            )
            self._writer = self._stack.enter_context(
                MetricsWriter(self._folder.path, config, first_step=self._step + 1)
            )
            self._progress = self._stack.enter_context(Progress(self._console, self._total, done=self._step))
            self.say(f"training from step {self._step:,} to {self._total:,}; utilisation is of {device_peak}")
            write_status(self._folder, "running", self._step, self._total)
        # Collected at chosen steps only: a pause of one rank at its own time is a pause of all.
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
            # At once: what follows may wait for ranks that are gone, and the launcher's patience is short.
            logger.error("[rank %d] failed after step %d", self._ranks.rank, self._step, exc_info=error)
        if error is not None and self._ranks.is_main:
            write_status(self._folder, "failed", self._step, self._total, reason=f"{type(error).__name__}: {error}")
        self._stack.__exit__(kind, error, trace)
        if self._ranks.is_main:
            self._write_page()

    def say(self, text: str) -> None:
        """Print a line on the first rank, and log it."""
        if self._progress is not None:
            self._progress.say(text)

    def log_step(self, record: StepRecord | None) -> None:
        """Note what is known of a step now; write a line of metrics where one is due."""
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
        )
        values: dict[str, float] = {}
        if record.step % self._settings.metrics.every_steps == 0 or record.step == self._total:
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
        """Do what is due now and then: the page on the first rank, garbage on all of them at the same step."""
        self._step = step
        if self._ranks.is_main and time.monotonic() - self._paged > self._page_every:
            self._write_page()
        if step % self._settings.run.collect_garbage_every == 0:
            gc.collect()

    def evaluate(self, step: int, scores_of: Callable[[], Mapping[str, float]]) -> float | None:
        """Evaluate and write the scores; return their mean, by which the best checkpoint is known."""
        began = time.perf_counter()
        scores = dict(scores_of())
        self._paused += time.perf_counter() - began
        if not scores:
            return None
        mean = sum(scores.values()) / len(scores)
        if self._writer is not None:
            self._writer.write(step, {f"eval/{name}": value for name, value in scores.items()})
            write_json(self._folder.evaluation / f"step-{step:08d}.json", {"step": step, "scores": scores})
        self.say(f"step {step:,}: " + ", ".join(f"{name} {value:.1f} %" for name, value in scores.items()))
        return mean

    def before_save(self) -> None:
        """Make the metrics up to a checkpoint as durable as it will be."""
        if self._writer is not None:
            self._writer.sync()

    def _counts(self) -> dict[str, float]:
        """Return what all ranks' loaders counted since the last call, added up."""
        own: Counter[str] = Counter()
        for counts in self._loaders.metrics().values():
            own.update(counts)
        return sum_over_ranks(own, self._ranks)

    def _write_page(self) -> None:
        began = time.monotonic()
        try:
            write_page(self._folder.path)
        except Exception:
            logger.exception("%s could not be written", self._folder.page)
        self._paged = time.monotonic()
        # The other ranks wait meanwhile: a long run's page, which takes longer, is made less often.
        self._page_every = max(_PAGE_SECONDS, 300 * (self._paged - began))


def sum_over_ranks(counts: Mapping[str, float], ranks: DistributedContext) -> dict[str, float]:
    """Return named counts added up over ranks; ranks may have different names."""
    total: Counter[str] = Counter()
    for theirs in gather(dict(counts), ranks):
        total.update(theirs)
    return dict(total)


def gather(value: Any, ranks: DistributedContext) -> list[Any]:
    """Return what each rank gives, in the order of ranks; it travels as JSON of some kilobytes at most."""
    if ranks.world == 1:
        return [value]
    data = json.dumps(value).encode()
    if len(data) > _GATHERED_BYTES:
        raise ValueError(f"{len(data)} bytes to be gathered from each rank: at most {_GATHERED_BYTES} are expected")
    own = torch.zeros(_GATHERED_BYTES, dtype=torch.uint8)
    own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    everyone = [torch.empty_like(own) for _ in range(ranks.world)]
    dist.all_gather(everyone, own, group=ranks.control)
    return [json.loads(bytes(row.tolist()).rstrip(b"\0")) for row in everyone]


def write_status(folder: RunFolder, state: Status, step: int, total: int, *, reason: str | None = None) -> None:
    """Write `status.json`: what a batch script or a person asks first."""
    status: dict[str, Any] = {"state": state, "step": step, "total": total, "reason": reason, "time": time.time()}
    write_json(folder.path / "status.json", status)
