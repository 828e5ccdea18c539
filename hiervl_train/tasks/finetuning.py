"""Builds the fine-tuning task of a configuration: dataset, weights to start from, loader, steps, schedule."""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch

from configs.loading import ConfigError, to_dict
from hiervl_train.checkpoint.open import OpenConfig, OpenedCheckpoint, open_checkpoint
from hiervl_train.collectives import broadcast
from hiervl_train.data import StepLoaders, open_loader
from hiervl_train.distributed import DistributedContext
from hiervl_train.models.config import ModelPart
from hiervl_train.models.finetuned import FineTuned
from hiervl_train.models.speed import prepare
from hiervl_train.steps import Encoder
from hiervl_train.task import Evaluate, Task
from hiervl_train.tasks.base import FinetuneTask
from hiervl_train.tasks.charades_ego import CharadesEgo
from hiervl_train.tasks.config import FinetuneConfig, TaskName
from hiervl_train.tasks.epic_mir import EpicMir
from hiervl_train.tasks.howto100m import HowTo100M
from shards.schema import set_spec
from shards.sources import open_source

TASKS: dict[TaskName, type[FinetuneTask]] = {"charades_ego": CharadesEgo, "epic_mir": EpicMir, "howto100m": HowTo100M}
logger = logging.getLogger(__name__)


def finetuning_task(config: FinetuneConfig, context: DistributedContext, *, evaluate: Evaluate | None = None) -> Task:
    """Return the task that a configuration describes; `evaluate` scores it during the run if the task has no own score.

    Raises `ShardError`, `SourceError` or `DataError` on a dataset that cannot be used, `CheckpointError` on a
    checkpoint, `ConfigError` on settings that do not fit together.
    """
    name, schedule = config.task.name, config.schedule
    task = TASKS[name](config, open_source(config.data.root, config.data.source))
    opened = open_start(config)
    trained = [part for part in task.parts if part not in config.freeze]
    if not trained and task.classes is None:
        raise ConfigError(f"freeze = {list(config.freeze)}: {name} has nothing left to train")
    torch.manual_seed(config.run.seed)  # the same initial head on every rank
    model = build_model(opened, trained=trained, classes=task.classes).to(context.device)
    height, width = model.config.image_hw
    if height != width:
        raise ConfigError(f"{opened.path}: frames of {height} × {width} pixels; training crops are square")
    broadcast(model.state_dict().values())
    loader = open_loader(
        config.data,
        context,
        task.set_name,
        global_batch=schedule.batch,
        workers=config.data.summary_workers if set_spec(task.set_name).is_long else config.data.workers,
        seed=config.run.seed,
        hint="lower schedule.batch, or build more shards",
        size=height,
        **task.loader(),
    )
    encoder = Encoder(model, opened.tokenizer, speed=config.speed, order=config.compat.channel_order)
    torch.manual_seed(config.run.seed * 1_000_003 + 1 + context.rank)  # different dropout on every rank
    return Task(
        model=prepare(model, config.speed),
        tokenizer=opened.tokenizer,
        loaders=StepLoaders({name: {task.set_name: loader}}),
        steps={name: task.step(model, encoder)},
        step_type=lambda step: name,
        steps_per_epoch=len(loader),
        total_steps=schedule.epochs * len(loader),
        eps_scale=context.world if config.compat.released_eps else 1,
        evaluate=evaluate or (task.evaluate(encoder) if config.evaluation.is_on else None),
        identity=to_dict(config),
    )


def open_start(config: FinetuneConfig) -> OpenedCheckpoint:
    """Open the checkpoint that the run starts from, with position slots for all frames of a sample."""
    if config.init_from is None:
        raise ConfigError("init_from is not set: --checkpoint FOLDER, a run's folder, or a released .pth")
    opening = OpenConfig(
        which=config.which,
        average=config.average,
        tokenizer=config.tokenizer.source,
        model=config.model,
        frames=config.sample.frames,
    )
    return open_checkpoint(config.init_from, opening, buckets=config.tokenizer.buckets)


def build_model(opened: OpenedCheckpoint, *, trained: Collection[ModelPart], classes: int | None) -> FineTuned:
    """Return the model to train; its head is the checkpoint's if that has one of the same shape, else a new one."""
    model = FineTuned(opened.model.config, trained=trained, classes=classes)
    if model.copy_weights(opened.model.state_dict(), opened.head):
        logger.info("%s: training continues from its head", opened.path)
    elif opened.head:
        logger.warning("%s: its head does not fit this task and is not used", opened.path)
    return model
