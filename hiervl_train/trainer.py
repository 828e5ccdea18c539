"""The training loop, from the first batch to the last checkpoint, for whatever task.

Nothing in a step waits for the device: a step's loss and norm are read while the next one is computed, a step whose
gradient is not finite is skipped where it lies, and checkpoints are written by a thread. All ranks do the same at the
same step: what only one of them knows (a signal, a clock) they tell each other first (`distributed.FlagConsensus`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from rich.console import Console
from torch import nn

from hiervl_train.checkpoint.manager import Checkpoints
from hiervl_train.checkpoint.resume import Resumer
from hiervl_train.collectives import average_gradients
from hiervl_train.distributed import DistributedContext, FlagConsensus
from hiervl_train.levels import StepLoaders
from hiervl_train.models import HierVL
from hiervl_train.monitor.nonfinite import NonFiniteGuard
from hiervl_train.monitor.profiler import Profiler
from hiervl_train.monitor.run_folder import RunFolder
from hiervl_train.monitor.run_logger import RunLogger
from hiervl_train.optim import EMA, apply_zero_grads, build_optimizer, learning_rate, update
from hiervl_train.preemption import StopRequest
from hiervl_train.settings import RunSettings
from hiervl_train.steps import StepResult
from hiervl_train.tokenizer import Tokenizer
from shards.loader import Batch

Evaluate = Callable[[HierVL, Tokenizer, DistributedContext], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: a model, its batches by step type, and what each type of step does."""

    model: HierVL
    tokenizer: Tokenizer
    loaders: StepLoaders
    backward: Mapping[str, Callable[[Batch], StepResult]]  # step type → adds gradients to the model
    step_type: Callable[[int], str]  # number of a step, from 0 → its type
    steps_per_epoch: int
    total_steps: int
    zero_grad_parameters: tuple[nn.Parameter, ...] = ()  # moved on by momentum where a step gives them no gradient
    eps_scale: int = 1  # see `optim.build_optimizer`
    evaluate: Evaluate | None = None  # scores in percent by name, the same on every rank
    identity: Mapping[str, object] = field(default_factory=dict)  # the configuration, kept in each checkpoint


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: after its last step, or before it for a reason."""

    step: int
    reason: str | None  # None: it is done


def train(task: Task, settings: RunSettings, folder: RunFolder, ranks: DistributedContext, console: Console) -> Outcome:
    """Train to the schedule's end or until asked to stop; go on from the folder's newest sound checkpoint."""
    model, loaders = task.model, task.loaders
    total = min(task.total_steps, settings.run.max_steps or task.total_steps)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(parameters, settings.optim, eps_scale=task.eps_scale)
    average = EMA(model, settings.optim.ema) if settings.optim.ema is not None else None
    checkpoints = Checkpoints(
        folder.checkpoints, settings.checkpoint, rank=ranks.rank, world=ranks.world, group=ranks.control
    )
    resumer = Resumer(task, optimizer, average, checkpoints, seed=settings.run.seed)
    step = resumer.resume()
    model.train()

    with ExitStack() as stack:
        stack.callback(loaders.close)
        stack.enter_context(checkpoints)
        stop = stack.enter_context(StopRequest(settings.preemption, folder.stop, looks=ranks.is_main))
        control = FlagConsensus(ranks)
        profiler = stack.enter_context(Profiler(folder.profile, settings.profile, rank=ranks.rank))
        guard = NonFiniteGuard(folder.path, ranks.rank, settings.run.max_consecutive_skips)
        run_logger = stack.enter_context(
            RunLogger(
                settings,
                folder,
                ranks,
                console,
                loaders,
                first_step=step,
                total_steps=total,
                epoch_steps=task.steps_per_epoch,
            )
        )

        while step < total:
            profiler.step(step)
            step_type = task.step_type(step)
            epoch = step // task.steps_per_epoch
            lr = learning_rate(settings.optim, step, total=task.total_steps, epoch=epoch)

            began = time.perf_counter()
            batch = loaders.next(step_type)
            waited = time.perf_counter() - began

            optimizer.zero_grad(set_to_none=True)
            result = task.backward[step_type](batch)
            apply_zero_grads(task.zero_grad_parameters)
            average_gradients(parameters)
            norm = update(optimizer, parameters, settings.optim, lr)
            if average is not None:
                average.update(model)
            step += 1

            # The step before this one is known by now, without having waited for it.
            run_logger.log_step(guard.next(step, step_type, result, norm, batch.keys, lr=lr, waited=waited))
            run_logger.maybe_write(step)

            agreed = control.agreed()
            control.begin({"save": checkpoints.wants(), "stop": stop.reason is not None})
            is_stopping = agreed.get("stop", False) and step < total
            score = None
            if task.evaluate is not None and settings.evaluation.is_due(step, total) and not is_stopping:
                run_logger.log_step(guard.flush())
                score = run_logger.evaluate(step, lambda: _evaluate(task, average, ranks))
            is_due = checkpoints.due(step) or agreed.get("save", False) or score is not None
            if is_due or is_stopping or step == total:
                run_logger.log_step(guard.flush())  # what is saved has been looked at
                run_logger.before_save()
                resumer.save(step, score=score, skipped=guard.skipped)
            if is_stopping:
                checkpoints.wait()
                return Outcome(step=step, reason=stop.reason or "another rank was asked to stop")

        checkpoints.wait()
        return Outcome(step=step, reason=None)


def _evaluate(task: Task, average: EMA | None, ranks: DistributedContext) -> Mapping[str, float]:
    """Return the scores of the weights as they are, or of their average where one is kept."""
    assert task.evaluate is not None
    task.model.eval()
    try:
        if average is None:
            return task.evaluate(task.model, task.tokenizer, ranks)
        with average.applied(task.model):
            return task.evaluate(task.model, task.tokenizer, ranks)
    finally:
        task.model.train()
