"""Checks each step's loss and gradient norm one step late, and ends a run with too many non-finite gradients.

One step late: the numbers of a step are copied to the host behind it (`transfer.Readback`) and read when the next step
is queued, so that the device never runs out of work. The non-finite step has been skipped on the device by then
(`optim.update`).
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from hiervl_train.task import StepResult
from hiervl_train.transfer import Readback
from shards.files import write_json

logger = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """Too many consecutive steps had no finite gradient; the message names the file with the batches' keys."""

    exit_code: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The measured values of one step."""

    step: int  # steps done, this one included
    step_type: str
    loss: float
    grad_norm: float
    clips: int  # of this rank
    flops: int | None  # of this rank
    lr: float
    waited: float  # s for the batch
    ended: float  # s, time.perf_counter() when it had been queued on the device
    is_skipped: bool


@dataclass(frozen=True, kw_only=True)
class _Pending:
    step: int
    step_type: str
    result: StepResult
    numbers: Readback  # loss and norm
    keys: list[str]
    lr: float
    waited: float
    ended: float


class NonFiniteGuard:
    """Keeps the last step until the next one, and counts skipped steps. Losses and norms are the same on all ranks."""

    def __init__(self, folder: Path, rank: int, max_consecutive_skips: int) -> None:
        self.skipped = 0
        self._path = folder / f"skipped-rank{rank:05d}.json"
        self._limit = max_consecutive_skips
        self._pending: _Pending | None = None
        self._consecutive: list[dict[str, object]] = []

    def next(
        self, step: int, step_type: str, result: StepResult, norm: Tensor, keys: list[str], *, lr: float, waited: float
    ) -> StepRecord | None:
        """Keep a step and return the record of the previous one, unless `flush` has. Raises `DivergedError`."""
        numbers = Readback([result.loss, norm])
        record = self.flush()
        ended = time.perf_counter()
        self._pending = _Pending(
            step=step, step_type=step_type, result=result, numbers=numbers, keys=keys, lr=lr, waited=waited, ended=ended
        )
        return record

    def flush(self) -> StepRecord | None:
        """Return the record of the last step, waiting for the device to compute it. Raises `DivergedError`."""
        if self._pending is None:
            return None
        last, self._pending = self._pending, None
        loss, norm = last.numbers.values()
        is_skipped = not math.isfinite(norm)
        if is_skipped:
            self._record_skip(last, loss, norm)
        else:
            self._consecutive.clear()
        return StepRecord(
            step=last.step,
            step_type=last.step_type,
            loss=loss,
            grad_norm=norm,
            clips=last.result.clips,
            flops=last.result.flops,
            lr=last.lr,
            waited=last.waited,
            ended=last.ended,
            is_skipped=is_skipped,
        )

    def _record_skip(self, last: _Pending, loss: float, norm: float) -> None:
        """Count a skipped step and write its keys; raise where there are too many consecutive ones."""
        self.skipped += 1
        self._consecutive.append(
            {"step": last.step, "step_type": last.step_type, "loss": repr(loss), "keys": last.keys}
        )
        write_json(self._path, self._consecutive)
        logger.warning(
            "step %d (%s) was skipped: loss %r, gradient norm %r; %d consecutive; keys in %s",
            *(last.step, last.step_type, loss, norm, len(self._consecutive), self._path),
        )
        if len(self._consecutive) > self._limit:
            raise DivergedError(
                f"more than run.max_consecutive_skips = {self._limit} consecutive steps had no finite gradient, up to "
                f"step {last.step}; the keys of this rank's batches are in {self._path}"
            )
