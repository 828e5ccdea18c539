"""Takes a run's whole state at a step boundary into a checkpoint, and puts a run back to where one was taken."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from hiervl_train.checkpoint.manager import Checkpoints
from hiervl_train.checkpoint.state import OptimizerState, RandomStates, RunState
from hiervl_train.models.released import CheckpointError
from hiervl_train.optim import EMA
from hiervl_train.tokenizer import FILE as TOKENIZER_FILE

if TYPE_CHECKING:
    from hiervl_train.trainer import Task

logger = logging.getLogger(__name__)


class Resumer:
    """A task's state as a checkpoint holds it."""

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        average: EMA | None,
        checkpoints: Checkpoints,
        *,
        seed: int,
    ) -> None:
        self._task, self._optimizer, self._average, self._checkpoints = task, optimizer, average, checkpoints
        self._seed = seed
        self.skipped = 0  # steps, before the checkpoint that was gone on from

    def resume(self) -> int:
        """Go to where the newest sound checkpoint was taken; return how many steps are done, 0 where there is none.

        Raises `CheckpointError` where there are checkpoints and none can be used, or one is of another model or data.
        """
        state = self._checkpoints.load_latest(seed=self._seed)
        if state is None:
            return 0
        try:
            self._task.model.load_state_dict(state.model)
            self._optimizer_state(state)
            self._task.loaders.load_cursors(state.cursors)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint of step {state.step} does not fit this configuration: {error}. Go on with the "
                "configuration that it was made with, or give the run another folder"
            ) from error
        state.random.restore()
        self.skipped = int(state.counters.get("skipped") or 0)
        logger.info("going on after step %d", state.step)
        return state.step

    def save(self, step: int, *, score: float | None, skipped: int) -> None:
        """Have the state after `step` steps written; returns once it is copied."""
        task = self._task
        self._checkpoints.save(
            RunState(
                step=step,
                model=task.model.state_dict(),
                optimizer=OptimizerState.take(self._optimizer, task.model.named_parameters()),
                random=RandomStates.take(),
                ema=self._average.weights if self._average is not None else None,
                cursors=task.loaders.cursors(),
                counters={"skipped": self.skipped + skipped},
                model_config=task.model.config,
                extra_files={TOKENIZER_FILE: task.tokenizer.to_bytes()},
                identity=dict(task.identity),
            ),
            score=score,
        )

    def _optimizer_state(self, state: RunState) -> None:
        named = [(name, p) for name, p in self._task.model.named_parameters() if p.requires_grad]
        state.optimizer.restore(self._optimizer, named)
        if self._average is not None:
            # A run that keeps an average only from now on starts it from its weights.
            self._average.load(state.ema if state.ema is not None else dict(self._task.model.named_parameters()))
