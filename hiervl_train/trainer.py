"""The training loop, from the first batch to the last checkpoint, for whatever task.

Nothing in a step waits for the device: a step's loss and norm are read while the next one is computed, a step whose
gradient is not finite is skipped where it lies, and checkpoints are written by a thread. All ranks do the same at the
same step: what only one of them knows (a signal, a clock) they tell each other first (`distributed.Control`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from rich.console import Console
from torch import nn

from hiervl_train.checkpoint import Checkpoints
from hiervl_train.distributed import Control, Ranks
from hiervl_train.gather import average_gradients
from hiervl_train.housekeeping import Housekeeping
from hiervl_train.levels import Levels
from hiervl_train.models import HierVL
from hiervl_train.optim import Average, build_optimizer, coast, learning_rate, update
from hiervl_train.preemption import StopRequest
from hiervl_train.profiling import Profiler
from hiervl_train.run_folder import RunFolder
from hiervl_train.settings import RunSettings
from hiervl_train.snapshot import Snapshot
from hiervl_train.steps import Work
from hiervl_train.tokens import Tokenizer
from hiervl_train.watch import Watch
from shards.loader import Batch

Evaluate = Callable[[HierVL, Tokenizer, Ranks], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: a model, its batches by kind of step, and what each kind of step does."""

    model: HierVL
    tokenizer: Tokenizer
    levels: Levels
    backward: Mapping[str, Callable[[Batch], Work]]  # kind of step → adds gradients to the model
    kind: Callable[[int], str]  # number of a step, from 0 → its kind
    steps_per_epoch: int
    total_steps: int
    coasting: tuple[nn.Parameter, ...] = ()  # moved on by momentum where a step gives them no gradient
    eps_world: int = 1  # see `optim.build_optimizer`
    evaluate: Evaluate | None = None  # scores in percent by name, the same on every rank
    identity: Mapping[str, object] = field(default_factory=dict)  # the configuration, kept in each checkpoint


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: after its last step, or before it for a reason."""

    step: int
    reason: str | None  # None: it is done


def train(task: Task, settings: RunSettings, folder: RunFolder, ranks: Ranks, console: Console) -> Outcome:
    """Train to the schedule's end or until asked to stop; go on from the folder's newest sound checkpoint."""
    model, levels = task.model, task.levels
    total = min(task.total_steps, settings.run.max_steps or task.total_steps)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(parameters, settings.optim, released_eps_world=task.eps_world)
    average = Average(model, settings.optim.ema) if settings.optim.ema is not None else None
    checkpoints = Checkpoints(
        folder.checkpoints, settings.checkpoint, rank=ranks.rank, world=ranks.world, group=ranks.control
    )
    snapshot = Snapshot(task, optimizer, average, checkpoints, seed=settings.run.seed)
    step = snapshot.resume()
    model.train()

    with ExitStack() as stack:
        stack.callback(levels.close)
        stack.enter_context(checkpoints)
        stop = stack.enter_context(StopRequest(settings.preemption, folder.stop, looks=ranks.is_main))
        control = Control(ranks)
        profiler = stack.enter_context(Profiler(folder.profile, settings.profile, rank=ranks.rank))
        watch = Watch(folder.path, ranks.rank, settings.run.max_skipped_run)
        house = stack.enter_context(
            Housekeeping(
                settings,
                folder,
                ranks,
                console,
                levels,
                first_step=step,
                total_steps=total,
                epoch_steps=task.steps_per_epoch,
            )
        )

        while step < total:
            profiler.step(step)
            kind = task.kind(step)
            epoch = step // task.steps_per_epoch
            lr = learning_rate(settings.optim, step, total=task.total_steps, epoch=epoch)

            began = time.perf_counter()
            batch = levels.next(kind)
            waited = time.perf_counter() - began

            optimizer.zero_grad(set_to_none=True)
            work = task.backward[kind](batch)
            coast(task.coasting)
            average_gradients(parameters)
            norm = update(optimizer, parameters, settings.optim, lr)
            if average is not None:
                average.update(model)
            step += 1

            # The step before this one is known by now, without having waited for it.
            house.saw(watch.next(step, kind, work, norm, batch.keys, lr=lr, waited=waited))
            house.tidy(step)

            agreed = control.agreed()
            control.begin({"save": checkpoints.wants(), "stop": stop.reason is not None})
            is_stopping = agreed.get("stop", False) and step < total
            score = None
            if task.evaluate is not None and settings.evaluation.is_due(step, total) and not is_stopping:
                house.saw(watch.flush())
                score = house.evaluate(step, lambda: _evaluate(task, average, ranks))
            is_due = checkpoints.due(step) or agreed.get("save", False) or score is not None
            if is_due or is_stopping or step == total:
                house.saw(watch.flush())  # what is saved has been looked at
                house.before_save()
                snapshot.save(step, score=score, skipped=watch.skipped)
            if is_stopping:
                checkpoints.wait()
                return Outcome(step=step, reason=stop.reason or "another rank was asked to stop")

        checkpoints.wait()
        return Outcome(step=step, reason=None)


def _evaluate(task: Task, average: Average | None, ranks: Ranks) -> Mapping[str, float]:
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
