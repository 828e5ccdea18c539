"""Looks at each step's loss and gradient norm one step late, and ends a run whose numbers are not finite any more.

One step late, because a number is on the device until the step has been computed: asking for it at once would let the
device run dry. The step itself has been skipped by then (`optim.update`).
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from hiervl_train.steps import StepResult
from shards.files import write_json

logger = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """Too many steps in a row without a finite gradient; the message says where the batches' keys are."""

    exit_code: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What is known of one step."""

    step: int  # how many steps there were with it
    step_type: str
    loss: float
    grad_norm: float
    clips: int  # of this rank
    flops: int | None  # of this rank
    lr: float
    waited: float  # s for the batch
    ended: float  # when it had been given to the device, by time.perf_counter()
    is_skipped: bool


@dataclass(frozen=True, kw_only=True)
class _Pending:
    step: int
    step_type: str
    result: StepResult
    norm: Tensor
    keys: list[str]
    lr: float
    waited: float
    ended: float


class NonFiniteGuard:
    """Remembers the last step until the next; counts the skipped ones. Losses and norms are the same on all ranks."""

    def __init__(self, folder: Path, rank: int, max_consecutive_skips: int) -> None:
        self.skipped = 0
        self._path = folder / f"skipped-rank{rank:05d}.json"
        self._limit = max_consecutive_skips
        self._pending: _Pending | None = None
        self._run: list[dict[str, object]] = []

    def next(
        self, step: int, step_type: str, result: StepResult, norm: Tensor, keys: list[str], *, lr: float, waited: float
    ) -> StepRecord | None:
        """Remember a step; return the one before it, unless `flush` has. Raises `DivergedError`."""
        record = self.flush()
        ended = time.perf_counter()
        self._pending = _Pending(
            step=step, step_type=step_type, result=result, norm=norm, keys=keys, lr=lr, waited=waited, ended=ended
        )
        return record

    def flush(self) -> StepRecord | None:
        """Return the last step, which waits for the device if it is still at it. Raises `DivergedError`."""
        if self._pending is None:
            return None
        last, self._pending = self._pending, None
        loss, norm = float(last.result.loss), float(last.norm)
        is_skipped = not math.isfinite(norm)
        if is_skipped:
            self._note(last, loss, norm)
        else:
            self._run.clear()
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

    def _note(self, last: _Pending, loss: float, norm: float) -> None:
        """Count a skipped step and write its keys down; raise where there are too many in a row."""
        self.skipped += 1
        self._run.append({"step": last.step, "step_type": last.step_type, "loss": repr(loss), "keys": last.keys})
        write_json(self._path, self._run)
        logger.warning(
            "step %d (%s) was skipped: loss %r, gradient norm %r; %d in a row; keys in %s",
            *(last.step, last.step_type, loss, norm, len(self._run), self._path),
        )
        if len(self._run) > self._limit:
            raise DivergedError(
                f"more than run.max_consecutive_skips = {self._limit} consecutive steps had no finite gradient, up to "
                f"step {last.step}; the keys of this rank's batches are in {self._path}"
            )
