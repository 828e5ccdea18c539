"""Makes the fine-tuning task of a configuration: dataset, starting point, tokenizer, loader, steps, schedule."""

from __future__ import annotations

import torch

from configs.loading import ConfigError, to_dict
from hiervl_train.collectives import broadcast
from hiervl_train.distributed import DistributedContext
from hiervl_train.levels import StepLoaders, open_loader
from hiervl_train.models.speed import prepare
from hiervl_train.steps import Encoder
from hiervl_train.tasks.base import FinetuneTask
from hiervl_train.tasks.charades_ego import CharadesEgo
from hiervl_train.tasks.config import FinetuneConfig, TaskName
from hiervl_train.tasks.epic_mir import EpicMir
from hiervl_train.tasks.howto100m import HowTo100M
from hiervl_train.tasks.start import open_start, open_tokenizer
from hiervl_train.trainer import Evaluate, Task
from shards.schema import set_spec
from shards.sources import open_source

TASKS: dict[TaskName, type[FinetuneTask]] = {"charades_ego": CharadesEgo, "epic_mir": EpicMir, "howto100m": HowTo100M}


def finetuning_task(config: FinetuneConfig, ranks: DistributedContext, *, evaluate: Evaluate | None = None) -> Task:
    """Return what is trained. `evaluate` scores it inside the run, where the task does not do so itself.

    Raises what its parts raise on what they cannot use: a dataset (`ShardError`, `SourceError`, `DataError`), a
    checkpoint (`CheckpointError`), settings that do not go together (`ConfigError`).
    """
    name, schedule = config.task.name, config.schedule
    task = TASKS[name](config, open_source(config.data.root, config.data.source))
    start = open_start(config)
    tokenizer = open_tokenizer(config.text, start)
    trained = [part for part in task.parts if part not in config.freeze]
    if not trained and task.classes is None:
        raise ConfigError(f"freeze = {list(config.freeze)}: {name} has nothing left to train")
    torch.manual_seed(config.run.seed)  # the same fresh head on every rank
    model = start.model(trained=trained, classes=task.classes).to(ranks.device)
    height, width = model.config.image_hw
    if height != width:
        raise ConfigError(f"{start.path}: frames of {height} × {width} pixels; training crops are square")
    broadcast(model.state_dict().values())
    loader = open_loader(
        config.data,
        ranks,
        task.set_name,
        global_batch=schedule.batch,
        workers=config.data.summary_workers if set_spec(task.set_name).is_long else config.data.workers,
        seed=config.run.seed,
        hint="lower schedule.batch, or build more shards",
        size=height,
        **task.loader(),
    )
    encoder = Encoder(model, tokenizer, speed=config.speed, order=config.compat.channel_order)
    torch.manual_seed(config.run.seed * 1_000_003 + 1 + ranks.rank)  # other dropout on every rank
    return Task(
        model=prepare(model, config.speed),
        tokenizer=tokenizer,
        loaders=StepLoaders({name: {task.set_name: loader}}),
        backward={name: task.step(model, encoder)},
        step_type=lambda step: name,
        steps_per_epoch=len(loader),
        total_steps=schedule.epochs * len(loader),
        eps_scale=ranks.world if config.compat.released_eps else 1,
        evaluate=evaluate or (task.evaluate(encoder) if config.evaluation.is_on else None),
        identity=to_dict(config),
    )
