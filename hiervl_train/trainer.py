"""The training loop of every task, from the first batch to the last checkpoint.

No step waits for the device: a step's loss and norm are read while the next one is computed, a step with a non-finite
gradient is skipped on the device, and a thread writes checkpoints. All ranks act at the same step: what only one of
them knows (a signal, a clock) they agree on first (`distributed.FlagConsensus`).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from rich.console import Console
from torch import nn

from hiervl_train.checkpoint.manager import Checkpoints
from hiervl_train.checkpoint.resume import Resumer
from hiervl_train.collectives import gather_json
from hiervl_train.config import RunSettings
from hiervl_train.distributed import DistributedConfig, DistributedContext, FlagConsensus
from hiervl_train.fit import fit
from hiervl_train.monitor.nonfinite import NonFiniteGuard
from hiervl_train.monitor.peak import Peak, peak
from hiervl_train.monitor.phases import PhaseClock
from hiervl_train.monitor.profiler import Profiler
from hiervl_train.monitor.run_folder import RunFolder
from hiervl_train.monitor.run_logger import RunLogger
from hiervl_train.optim import EMA, apply_zero_grads, build_optimizer, learning_rate, update
from hiervl_train.preemption import StopRequest
from hiervl_train.reduction.reducer import MIB, GradientReducer
from hiervl_train.task import Outcome, Task


def train(
    task: Task,
    settings: RunSettings,
    folder: RunFolder,
    context: DistributedContext,
    console: Console,
    stop: StopRequest,
) -> Outcome:
    """Train to the end of the schedule or until asked to stop, resuming from the folder's newest checkpoint."""
    model, loaders = task.model, task.loaders
    total = min(task.total_steps, settings.run.max_steps or task.total_steps)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = list(trained.values())
    optimizer = build_optimizer(parameters, settings.optim, eps_scale=task.eps_scale)
    ema = EMA(model, settings.optim.ema) if settings.optim.ema is not None else None
    checkpoints = Checkpoints(
        folder.checkpoints, settings.save, rank=context.rank, world=context.world, group=context.control
    )
    resumer = Resumer(task, optimizer, ema, checkpoints, seed=settings.run.seed)
    step = resumer.resume()
    device_peak = peak(context.device, settings.metrics.peak_tflops)
    _describe_start(settings, folder, context, device_peak, step=step, total=total)
    model.train()
    _fit(task, optimizer, settings, context)

    with ExitStack() as stack:
        stack.callback(loaders.close)
        stack.enter_context(checkpoints)
        consensus = FlagConsensus(context)
        reducer = _reducer(trained, settings.distributed)
        stack.callback(reducer.close)
        clock = PhaseClock(context.device, is_on=settings.run.time_report)
        loaders.watch(clock.mark)
        scope = _LoopScope(reducer, clock)
        profiler = stack.enter_context(Profiler(folder.profile, settings.profile, rank=context.rank))
        guard = NonFiniteGuard(folder.path, context.rank, settings.run.max_consecutive_skips)
        log_options = _log_options(task, settings, clock, device_peak, step=step, total=total)
        run_logger = stack.enter_context(RunLogger(settings.metrics, folder, context, console, loaders, **log_options))

        is_stopping = False
        while step < total and not is_stopping:
            profiler.step(step)
            step_type = task.step_type(step)
            epoch = step // task.steps_per_epoch
            lr = learning_rate(settings.optim, step, total=task.total_steps, epoch=epoch)

            clock.mark("data")
            began = time.perf_counter()
            batch = loaders.next(step_type)
            waited = time.perf_counter() - began

            optimizer.zero_grad(set_to_none=True)
            reducer.begin(step_type)
            clock.mark("forward")
            result = task.steps[step_type](batch, scope)
            clock.mark("reduce")
            reducer.finish()
            clock.mark("optimiser")
            apply_zero_grads(task.zero_grad_parameters)
            norm = update(optimizer, parameters, settings.optim, lr)
            if ema is not None:
                ema.update(model)
            step += 1

            clock.mark("log")
            # The device has computed the previous step by now, so this does not wait.
            run_logger.log_step(guard.next(step, step_type, result, norm, batch.keys, lr=lr, waited=waited))
            run_logger.maybe_write(step)

            agreed = consensus.agreed()
            consensus.begin({"save": checkpoints.is_time(), "stop": stop.reason is not None})
            clock.end(step)
            is_stopping = agreed.get("stop", False) and step < total
            score = None
            if task.evaluate is not None and settings.evaluation.is_due(step, total) and not is_stopping:
                run_logger.log_step(guard.flush())
                score = run_logger.evaluate(step, lambda: _evaluate(task, ema, context))
            is_due = checkpoints.is_due(step) or agreed.get("save", False) or score is not None
            if is_due or is_stopping or step == total:
                run_logger.log_step(guard.flush())  # a checkpoint is saved only after its step was checked
                run_logger.before_save()
                resumer.save(step, score=score, skipped=guard.skipped)

        consensus.agreed()  # nothing may be in flight when the ranks part
        checkpoints.wait()
        return Outcome(step=step, reason=(stop.reason or "another rank was asked to stop") if is_stopping else None)


class _LoopScope:
    """What the loop learns from a step while it runs: its phases, and which backward pass is the last."""

    def __init__(self, reducer: GradientReducer, clock: PhaseClock) -> None:
        self.last_backward, self.phase = reducer.last_backward, clock.mark


def _fit(task: Task, optimizer: torch.optim.Optimizer, settings: RunSettings, context: DistributedContext) -> None:
    """Choose the micro-batches that are to be measured, leaving room for moments and buckets still to be allocated."""
    if task.micro_batches is None:
        return
    gradients = sum(parameter.nbytes for parameter in task.model.parameters() if parameter.requires_grad)
    moments = sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )
    shards = context.world if settings.optim.shard_states else 1
    later = max(0, 2 * gradients // shards - moments) + (gradients if context.world > 1 else 0)
    fit(task.micro_batches, task.model, context, later_bytes=later, memory_gib=settings.speed.memory_gib)


def _log_options(
    task: Task, settings: RunSettings, clock: PhaseClock, device_peak: Peak, *, step: int, total: int
) -> dict[str, Any]:
    """Return what the logger of a run knows of it."""
    return {
        "clock": clock,
        "peak": device_peak,
        "first_step": step,
        "total_steps": total,
        "epoch_steps": task.steps_per_epoch,
        "collect_garbage_every": settings.run.collect_garbage_every,
    }


def _reducer(parameters: Mapping[str, nn.Parameter], config: DistributedConfig) -> GradientReducer:
    """Return what averages the gradients of the ranks, as configured."""
    return GradientReducer(
        parameters,
        overlap=config.overlap,
        bf16=config.bf16_gradients,
        bucket_bytes=int(config.bucket_mib * MIB),
    )


def _describe_start(
    settings: RunSettings, folder: RunFolder, context: DistributedContext, device_peak: Peak, *, step: int, total: int
) -> None:
    """Write the configuration and environment of this start into the run's folder, on the first rank."""
    hosts = gather_json(socket.gethostname(), context)
    if context.is_main:
        folder.create(
            settings,
            is_resumed=step > 0,
            seed=settings.run.seed,
            hostnames=sorted(set(hosts)),
            facts={"total_steps": total, "mfu_denominator": str(device_peak)},
        )


def _evaluate(task: Task, ema: EMA | None, context: DistributedContext) -> Mapping[str, float]:
    """Return the scores of the current weights, or of their moving average if there is one."""
    assert task.evaluate is not None
    task.model.eval()
    try:
        if ema is None:
            return task.evaluate(task.model, task.tokenizer, context)
        with ema.applied(task.model):
            return task.evaluate(task.model, task.tokenizer, context)
    finally:
        task.model.train()
