"""Makes the fine-tuning task of a configuration: dataset, starting point, tokenizer, loader, steps, schedule."""

from __future__ import annotations

import torch

from configs.loading import ConfigError, to_dict
from hiervl_train.distributed import Ranks
from hiervl_train.finetuning.charades_ego import CharadesEgo
from hiervl_train.finetuning.config import FinetuneConfig, TaskName
from hiervl_train.finetuning.epic_mir import EpicMir
from hiervl_train.finetuning.howto100m import HowTo100M
from hiervl_train.finetuning.job import Job
from hiervl_train.finetuning.start import open_start, open_tokenizer
from hiervl_train.gather import broadcast
from hiervl_train.levels import Levels, open_loader
from hiervl_train.models.speed import prepare
from hiervl_train.steps import Encoder
from hiervl_train.trainer import Evaluate, Task
from shards.schema import set_spec
from shards.sources import open_source

JOBS: dict[TaskName, type[Job]] = {"charades_ego": CharadesEgo, "epic_mir": EpicMir, "howto100m": HowTo100M}


def finetuning_task(config: FinetuneConfig, ranks: Ranks, *, evaluate: Evaluate | None = None) -> Task:
    """Return what is trained. `evaluate` scores it inside the run, where the task does not do so itself.

    Raises what its parts raise on what they cannot use: a dataset (`ShardError`, `SourceError`, `DataError`), a
    checkpoint (`CheckpointError`), settings that do not go together (`ConfigError`).
    """
    name, schedule = config.task.name, config.schedule
    job = JOBS[name](config, open_source(config.data.root, config.data.source))
    start = open_start(config)
    tokenizer = open_tokenizer(config.text, start)
    trained = [part for part in job.parts if part not in config.freeze]
    if not trained and job.classes is None:
        raise ConfigError(f"freeze = {list(config.freeze)}: {name} has nothing left to train")
    torch.manual_seed(config.run.seed)  # the same fresh head on every rank
    model = start.model(trained=trained, classes=job.classes).to(ranks.device)
    height, width = model.config.image_hw
    if height != width:
        raise ConfigError(f"{start.path}: frames of {height} × {width} pixels; training crops are square")
    broadcast(model.state_dict().values())
    loader = open_loader(
        config.data,
        ranks,
        job.set_name,
        global_batch=schedule.batch,
        workers=config.data.summary_workers if set_spec(job.set_name).is_long else config.data.workers,
        seed=config.run.seed,
        hint="lower schedule.batch, or build more shards",
        size=height,
        **job.loader(),
    )
    encoder = Encoder(model, tokenizer, speed=config.speed, order=config.compat.channel_order)
    torch.manual_seed(config.run.seed * 1_000_003 + 1 + ranks.rank)  # other dropout on every rank
    return Task(
        model=prepare(model, config.speed),
        tokenizer=tokenizer,
        levels=Levels({name: {job.set_name: loader}}),
        backward={name: job.step(model, encoder)},
        kind=lambda step: name,
        steps_per_epoch=len(loader),
        total_steps=schedule.epochs * len(loader),
        eps_world=ranks.world if config.compat.released_eps else 1,
        evaluate=evaluate or (job.evaluate(encoder) if config.evaluation.is_on else None),
        identity=to_dict(config),
    )
