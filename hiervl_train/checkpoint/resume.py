"""Saves the whole state of a run at a step boundary as a checkpoint, and restores a run from one."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import torch

from hiervl_train.checkpoint.manager import Checkpoints
from hiervl_train.checkpoint.state import OptimizerState, RunState
from hiervl_train.models.errors import CheckpointError
from hiervl_train.optim import EMA
from hiervl_train.random_states import RandomStates
from hiervl_train.reduction.sharding import ShardedAdamW
from hiervl_train.task import Task
from hiervl_train.tokenizer import FILE as TOKENIZER_FILE

logger = logging.getLogger(__name__)


class Resumer:
    """Saves and restores a task's model, optimiser, moving average, loaders and random states."""

    def __init__(
        self, task: Task, optimizer: torch.optim.Optimizer, ema: EMA | None, checkpoints: Checkpoints, *, seed: int
    ) -> None:
        self._task, self._optimizer, self._ema, self._checkpoints = task, optimizer, ema, checkpoints
        self._seed = seed
        self.skipped = 0  # steps that were skipped before the checkpoint that the run resumed from

    def resume(self) -> int:
        """Restore the newest undamaged checkpoint; return how many steps it has done, 0 where there is none.

        Raises `CheckpointError` where all checkpoints are damaged, or one is of another model or other data.
        """
        state = self._checkpoints.load_latest(seed=self._seed)
        if state is None:
            return 0
        try:
            self._task.model.load_state_dict(state.model)
            self._restore_optimizer(state)
            self._task.loaders.load_cursors(state.cursors)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint of step {state.step} does not fit this configuration: {error}. Resume with the "
                "configuration that it was saved with, or set run.folder to a new folder"
            ) from error
        if self._task.micro_batches is not None:
            self._task.micro_batches.resume(state.counters)
        state.random.restore()
        self.skipped = int(state.counters.get("skipped") or 0)
        logger.info("resuming after step %d", state.step)
        return state.step

    def save(self, step: int, *, score: float | None, skipped: int) -> None:
        """Start writing the state after `step` steps; return once it is copied."""
        with self._optimizer.gathered() if isinstance(self._optimizer, ShardedAdamW) else nullcontext():
            self._save(step, score=score, skipped=skipped)

    def _save(self, step: int, *, score: float | None, skipped: int) -> None:
        task = self._task
        sizes = task.micro_batches.counters() if task.micro_batches is not None else {}
        self._checkpoints.save(
            RunState(
                step=step,
                model=task.model.state_dict(),
                optimizer=OptimizerState.take(self._optimizer, task.model.named_parameters()),
                random=RandomStates.take(),
                ema=self._ema.weights if self._ema is not None else None,
                cursors=task.loaders.cursors(),
                counters={"skipped": self.skipped + skipped, **sizes},
                model_config=task.model.config,
                extra_files={TOKENIZER_FILE: task.tokenizer.to_bytes()},
                identity=dict(task.identity),
            ),
            score=score,
        )

    def _restore_optimizer(self, state: RunState) -> None:
        named = [(name, p) for name, p in self._task.model.named_parameters() if p.requires_grad]
        state.optimizer.restore(self._optimizer, named)
        if isinstance(self._optimizer, ShardedAdamW):
            self._optimizer.keep_own()
        if self._ema is not None:
            # A run that had no average so far starts it from its weights.
            self._ema.load(state.ema if state.ema is not None else dict(self._task.model.named_parameters()))
