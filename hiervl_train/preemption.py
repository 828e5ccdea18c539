"""Detects requests to stop a run: signals, a stop file, a time limit.

A handler only sets a flag. The trainer reads `StopRequest.reason` once per step; the ranks agree
(`hiervl_train.distributed.FlagConsensus`), save, and exit with `ExitCode.STOPPED`, and the batch script requeues the
job. torchrun does not forward SLURM's signals to the ranks: the batch script creates the stop file instead.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pydantic import NonNegativeFloat

CHECK_SECONDS = 1.0  # between two checks of the stop file, which may be on a shared file system
_REPEATED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # sent by schedulers and launchers, often more than once
_SIGNALS = (*_REPEATED, signal.SIGINT)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreemptionConfig:
    """When a run stops by itself, in time to save before the scheduler kills it.

    Under SLURM the job's own end (`SLURM_JOB_END_TIME`) counts too, and whichever is earlier holds.
    """

    time_limit_minutes: float | None = None  # minutes from the start of the process; null: no limit
    margin_minutes: NonNegativeFloat = 5.0  # minutes before either limit at which the run saves and stops

    def __post_init__(self) -> None:
        if self.time_limit_minutes is not None and self.time_limit_minutes <= self.margin_minutes:
            raise ValueError(
                f"time_limit_minutes = {self.time_limit_minutes} is not more than margin_minutes = "
                f"{self.margin_minutes}: the run would stop at its first step"
            )


def clear_stop_file(stop_file: Path) -> bool:
    """Remove the stop file of the previous start, which would stop the resumed run; return whether there was one.

    Rank 0 calls it when a run starts, before any rank reads `StopRequest.reason`.
    """
    try:
        stop_file.unlink()
    except FileNotFoundError:
        return False
    return True


class StopRequest:
    """Whether this process was asked to stop, and why. A context manager that restores the signal handlers.

    with StopRequest(config, run / "stop", checks_file=context.is_main) as stop:
        ...
        if stop.reason: ...

    Handles SIGTERM, SIGUSR1, SIGUSR2 and SIGINT; a second SIGINT ends the process immediately. Enter it in the main
    thread. A process that was asked to stop is often asked again while it exits: by SLURM, then by torchrun. For that
    time there is `ignore_until_exit`.
    """

    def __init__(self, config: PreemptionConfig, stop_file: Path, *, checks_file: bool = True) -> None:
        """`checks_file`: whether this process checks for the stop file; one rank is enough."""
        self._stop_file = stop_file
        self._checks_file = checks_file
        self._checked = -CHECK_SECONDS
        self._reason: str | None = None
        self._pid = os.getpid()
        self._before: dict[signal.Signals, Any] = {}
        self._deadline = _deadline(config)

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @property
    def reason(self) -> str | None:
        """Why to stop (`signal SIGTERM`, `stop file`, `time limit`), None to continue; the first reason stays."""
        if self._reason is None:
            now = time.monotonic()
            if now >= self._deadline:
                self._reason = "time limit"
            elif self._checks_file and now - self._checked >= CHECK_SECONDS:
                self._checked = now
                if _is_listed(self._stop_file):
                    self._reason = "stop file"
        return self._reason

    def ignore_until_exit(self) -> None:
        """Ignore SIGTERM, SIGUSR1 and SIGUSR2 from now on, also after this context: the run is over, the process exits.

        Handlers written in Python would not do: the interpreter removes them before it ends, and a signal that comes
        then would take the place of the exit code.
        """
        for number in _REPEATED:
            signal.signal(number, signal.SIG_IGN)
            self._before.pop(number, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _handle_in_child(number)
            return
        if self._reason is None:
            self._reason = f"signal {signal.Signals(number).name}"
        if number == signal.SIGINT:  # the kernel's default works even inside a hanging collective
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _handle_in_child(number: int) -> None:
    """Handle a signal in a forked loader worker, which inherits the handlers.

    Its parent stops it by SIGTERM. Other signals are ignored: SLURM sends them to every process of a job step, and a
    worker that died of one would end the run before it can save.
    """
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _is_listed(path: Path) -> bool:
    """Return whether a file's folder lists it: NFS refreshes listings, but may cache that a single name is missing."""
    try:
        return path.name in os.listdir(path.parent)
    except OSError as error:  # a shared file system may fail for a moment, which is no request to stop
        logger.warning("%s cannot be checked for: %s", path, error)
        return False


def _deadline(config: PreemptionConfig) -> float:
    """Return the monotonic time in seconds at which to stop, infinity for never."""
    ends = []
    if config.time_limit_minutes is not None:
        ends.append(config.time_limit_minutes * 60)
    job_end = os.environ.get("SLURM_JOB_END_TIME", "")
    if job_end:
        try:
            ends.append(float(job_end) - time.time())
        except ValueError:
            logger.warning("SLURM_JOB_END_TIME = %r is not a time in seconds and is ignored", job_end)
    return time.monotonic() + min(ends) - config.margin_minutes * 60 if ends else float("inf")
