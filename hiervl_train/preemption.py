"""Notices that a run is asked to stop (by a signal, a file or a time limit) and says so at the next step boundary.

Nothing here stops anything: a handler only sets a flag, the trainer reads `StopRequest.reason` once a step, the ranks
agree (`hiervl_train.distributed.FlagConsensus`), save, and leave with `ExitCode.STOPPED`, upon which the batch script
requeues the job. torchrun passes none of SLURM's signals on to the ranks: the batch script leaves the stop file.
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

LOOK_SECONDS = 1.0  # between two looks at the stop file, which may lie on a shared file system
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreemptionConfig:
    """When a run stops by itself, in time to save before the scheduler kills it.

    Under SLURM the job's own end (`SLURM_JOB_END_TIME`) counts too, and whichever is earlier holds.
    """

    time_limit_minutes: float | None = None  # from the start of the process; null for none
    margin_minutes: float = 5.0  # before either limit: to finish the step, to save, to evaluate nothing more

    def __post_init__(self) -> None:
        if self.margin_minutes < 0:
            raise ValueError(f"margin_minutes = {self.margin_minutes}: at least 0 is needed")
        if self.time_limit_minutes is not None and self.time_limit_minutes <= self.margin_minutes:
            raise ValueError(
                f"time_limit_minutes = {self.time_limit_minutes} is not more than margin_minutes = "
                f"{self.margin_minutes}: the run would stop at its first step"
            )


def clear_stop_file(stop_file: Path) -> bool:
    """Remove what the last stop left, or the resumed run would end at once; return whether there was one.

    For rank 0, when a run starts, before the first look at `StopRequest.reason` on any rank.
    """
    try:
        stop_file.unlink()
    except FileNotFoundError:
        return False
    return True


class StopRequest:
    """Whether this process was asked to stop, and why. A context manager: signal handlers are as before after it.

    with StopRequest(config, run / "stop", looks=ranks.is_main) as stop:
        ...
        if stop.reason: ...

    Handles SIGTERM, SIGUSR1, SIGUSR2 and SIGINT; a second SIGINT ends the process at once, whatever it is doing.
    Enter it in the main thread.
    """

    def __init__(self, config: PreemptionConfig, stop_file: Path, *, looks: bool = True) -> None:
        """`looks`: whether this process looks for the stop file; one rank does for all."""
        self._stop_file = stop_file
        self._looks = looks
        self._looked = -LOOK_SECONDS
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
        """Why to stop (`signal SIGTERM`, `stop file`, `time limit`), None to go on; it stays what it was first."""
        if self._reason is None:
            now = time.monotonic()
            if now >= self._deadline:
                self._reason = "time limit"
            elif self._looks and now - self._looked >= LOOK_SECONDS:
                self._looked = now
                if _is_listed(self._stop_file):
                    self._reason = "stop file"
        return self._reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _handle_in_child(number)
            return
        if self._reason is None:
            self._reason = f"signal {signal.Signals(number).name}"
        if number == signal.SIGINT:  # by the kernel, so that it works inside a hanging collective too
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _handle_in_child(number: int) -> None:
    """Do in a forked loader worker, which inherits the handlers, what is right for a worker.

    Its parent ends it by SIGTERM. The other signals are the run's business: SLURM sends them to every process of a
    job step, and a worker that died of one would end the run before it can save.
    """
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _is_listed(path: Path) -> bool:
    """Return whether a file's folder lists it. NFS asks the server anew for a listing, not always for one name."""
    try:
        return path.name in os.listdir(path.parent)
    except OSError as error:  # a shared file system may be away for a moment; that is no request to stop
        logger.warning("%s: cannot be looked for: %s", path, error)
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
            logger.warning("SLURM_JOB_END_TIME = %r is no time in seconds; it is not obeyed", job_end)
    return time.monotonic() + min(ends) - config.margin_minutes * 60 if ends else float("inf")
