"""Builds the pretraining task of a configuration: model and weights, tokenizer, loaders, steps, schedule."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from configs.loading import to_dict
from hiervl_train.checkpoint.open import find_checkpoint
from hiervl_train.collectives import broadcast
from hiervl_train.config import PretrainConfig
from hiervl_train.data import DeviceLoader, StepLoaders, open_loader
from hiervl_train.distributed import DistributedContext
from hiervl_train.features.training import FeatureSteps, freeze_towers
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.initialise import initialise
from hiervl_train.models.speed import prepare
from hiervl_train.steps import PretrainSteps
from hiervl_train.task import Evaluate, Task
from hiervl_train.tokenizer import FILE as TOKENIZER_FILE
from hiervl_train.tokenizer import Tokenizer, require_fit
from shards.dataset import read_rows
from shards.sources import open_source

logger = logging.getLogger(__name__)


def pretraining_task(config: PretrainConfig, context: DistributedContext, *, evaluate: Evaluate | None = None) -> Task:
    """Return the task that a configuration describes.

    Raises `ShardError`, `SourceError` or `DataError` on a dataset that cannot be used, `CheckpointError` on a
    checkpoint, `MissingPretrained` on pretrained weights.
    """
    torch.manual_seed(config.run.seed)  # the same initial weights on every rank
    model = HierVL(config.model)
    start = None if config.init_from is None else find_checkpoint(config.init_from)
    initialise(model, config.init, start)
    if config.data.features is not None:
        freeze_towers(model, config)
    tokenizer = make_tokenizer(config, model, start)
    model.to(context.device)
    broadcast(model.state_dict().values())
    loaders = open_loaders(config, context)
    torch.manual_seed(config.run.seed * 1_000_003 + 1 + context.rank)  # different dropout on every rank
    steps_per_epoch, total_steps = schedule(config, loaders)
    zero_grad_parameters = model.aggregator.parameters() if config.optim.apply_zero_grads and model.aggregator else ()
    steps: PretrainSteps | FeatureSteps = FeatureSteps(model, config)
    micro_batches = None
    if config.data.features is None:
        steps = PretrainSteps(model, tokenizer, config, world=context.world)
        micro_batches = steps.micro_batches
    return Task(
        model=prepare(model, config.speed),
        tokenizer=tokenizer,
        loaders=loaders,
        steps=steps.by_type,
        micro_batches=micro_batches,
        step_type=config.step_type,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        zero_grad_parameters=tuple(zero_grad_parameters),
        eps_scale=context.world if config.compat.released_eps else 1,
        evaluate=evaluate,
        identity=to_dict(config),
    )


def open_loaders(config: PretrainConfig, context: DistributedContext) -> StepLoaders:
    """Open the loaders of the step types that a configuration has; raise `DataError` where a set is too small."""
    schedule, sample, data = config.schedule, config.sample, config.data
    loaders: dict[str, dict[str, DeviceLoader]] = {}

    def open_set(set_name: str, global_batch: int, workers: int, **fields: object) -> DeviceLoader:
        return open_loader(
            data,
            context,
            set_name,
            global_batch=global_batch,
            workers=workers,
            seed=config.run.seed,
            hint="lower schedule.clips or schedule.summaries, or build more shards",
            size=config.model.image_hw[0],
            frames=sample.frames,
            **fields,
        )

    if config.objective.child is not None:
        clips = schedule.clips - sample.summaries_as_clips
        loaders["child"] = {"clips": open_set("clips", clips, data.workers, scene_negatives=sample.scene_negatives)}
        if sample.summaries_as_clips:
            loaders["child"]["summaries_as_clips"] = open_set(
                "summaries", sample.summaries_as_clips, data.summary_workers, clip_seconds=sample.summary_clip_seconds
            )
    if config.objective.parent is not None:
        loaders["parent"] = {
            "summaries": open_set(
                "summaries",
                schedule.summaries,
                data.summary_workers,
                windows=sample.windows,
                narrations=sample.narrations,
                window_seconds=sample.window_seconds,
            )
        }
    return StepLoaders(loaders)


def schedule(config: PretrainConfig, loaders: StepLoaders) -> tuple[int, int]:
    """Return the steps of an epoch and of the whole run, child and parent steps together.

    An epoch sees each clip once; the parent steps in between iterate over the summaries independently. Without child
    steps, an epoch sees each summary once.
    """
    settings, every = config.schedule, config.schedule.child_steps_per_parent_step
    if config.objective.child is None:
        epoch = loaders.steps_per_epoch("parent")
        return epoch, settings.epochs * epoch
    child = loaders.steps_per_epoch("child")
    if settings.max_clips_per_epoch is not None:
        child = min(child, settings.max_clips_per_epoch // settings.clips)
    if config.objective.parent is None:
        return child, settings.epochs * child
    return child + child // every, settings.epochs * child + settings.epochs * child // every


def make_tokenizer(config: PretrainConfig, model: HierVL, start: Path | None) -> Tokenizer:
    """Return the configured tokenizer, or the one that fits the weights the run starts from; see `TokenizerConfig`."""
    settings, length = config.tokenizer, model.text.max_length
    source = settings.source
    if source is None and start is not None and (start / TOKENIZER_FILE).is_file():
        source = str(start)
    source = source or config.model.text.source or config.init.text
    if source is not None:
        tokenizer = Tokenizer.from_pretrained(source, max_length=length, buckets=settings.buckets)
    else:
        size = model.config.text.vocab_size
        tokenizer = Tokenizer.build(_texts(config), vocab_size=size, max_length=length, buckets=settings.buckets)
        logger.info("tokenizer: %d words of the training set's texts", tokenizer.size)
    require_fit(tokenizer, model.text.vocab_size, "model.text")
    return tokenizer


def _texts(config: PretrainConfig) -> list[str]:
    """Return all captions of the training split, of clips and summaries."""
    source = open_source(config.data.root, config.data.source)
    texts: list[str] = []
    for set_name, split, entry in source.dataset.splits():
        if set_name in ("clips", "summaries") and split == config.data.split:
            for shard in entry.shards:
                texts += read_rows(source.parquet(shard), ["text"])["text"].to_pylist()
    return texts
