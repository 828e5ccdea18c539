"""Fits a pretraining configuration to a small dataset: levels, batches, learning rate, number of steps, evaluation.

    sizing: {steps: 500}         # in configs/pretrain/custom.yaml
    config = sized(config, say=print)

What the configuration says counts as the upper bound: `schedule.clips`, `schedule.summaries`, `schedule.epochs`. The
result depends on dataset and configuration only, so that a run is resumed by the same command.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pyarrow.compute as pc
import torch

from configs.loading import load
from hiervl_train.checkpoint.open import find_checkpoint, training_sample
from hiervl_train.config import EvaluationConfig, PretrainConfig, SizingConfig
from hiervl_train.data import DataError
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.storage import CONFIG
from shards.dataset import read_rows
from shards.sources import Source, open_source

_EVALUATIONS = 5  # in a run, the one at its end included
_LEAST_SUMMARIES = 8  # of a dataset for steps of the summary level: fewer are no contrast
_EPOCH_STEPS = 4  # steps of an epoch, at least: a batch is at most this part of the clips


def sized(config: PretrainConfig, say: Callable[[str], None] = lambda text: None) -> PretrainConfig:
    """Return a configuration that fits its dataset and the weights it starts from; itself without `sizing`.

    `say` gets a sentence about each decision. Raises `DataError` where no sample has a caption.
    """
    if config.sizing is None:
        return config
    source = open_source(config.data.root, config.data.source)
    clips, captions = _count(source, "clips", config.data.split)
    summaries, summary_texts = _count(source, "summaries", config.data.split)
    if not captions and not summary_texts:
        raise DataError(
            f"{config.data.root}: none of the {clips + summaries:,} samples of the split {config.data.split} has a "
            "caption, and training compares video with text. Build with annotations.captions=TABLE, or search with a "
            "trained checkpoint, which needs no captions"
        )
    sizing = config.sizing
    config = _as_trained(_on_cpu(config, say), say)
    config = _levels(config, clips, summaries, say)
    return _schedule(_evaluated(config, source, say), sizing, clips, summaries, say)


def _count(source: Source, set_name: str, split: str) -> tuple[int, int]:
    """Return the number of samples of a split, and of those with a caption."""
    entry = source.dataset.sets.get(set_name, {}).get(split)
    if entry is None:
        return 0, 0
    captions = 0
    for shard in entry.shards:
        texts = read_rows(source.parquet(shard), ["text"])["text"]
        captions += pc.sum(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)).as_py() or 0
    return entry.samples, captions


def _on_cpu(config: PretrainConfig, say: Callable[[str], None]) -> PretrainConfig:
    """Leave out, without a GPU, what only pays on one: compiling takes minutes there, bfloat16 is emulated."""
    if torch.cuda.is_available() or not (config.speed.compile or config.speed.bf16):
        return config
    say("no GPU: speed.compile=false, speed.bf16=false")
    return dataclasses.replace(config, speed=dataclasses.replace(config.speed, compile=False, bf16=False))


def _as_trained(config: PretrainConfig, say: Callable[[str], None]) -> PretrainConfig:
    """Take the sizes of the model and of samples from the own checkpoint that a run starts from, unless given."""
    start = None if config.init_from is None else find_checkpoint(config.init_from)
    if start is None or not (start / CONFIG).is_file():
        return config
    sample = training_sample(start)
    changes = {}
    for name in ("frames", "windows", "narrations", "window_seconds"):
        default = getattr(type(config.sample)(), name)
        if name in sample and getattr(config.sample, name) == default:
            changes[name] = sample[name]
    model = load(ModelConfig, start / CONFIG) if config.model == ModelConfig() else config.model
    say(f"sizes of the model and of samples: as in {start}")
    parent = config.objective.parent if model.aggregator is not None else None
    objective = dataclasses.replace(config.objective, parent=parent)
    return dataclasses.replace(
        config, model=model, sample=dataclasses.replace(config.sample, **changes), objective=objective
    )


def _levels(config: PretrainConfig, clips: int, summaries: int, say: Callable[[str], None]) -> PretrainConfig:
    """Leave out the steps of a level of which the dataset has too few samples."""
    objective = config.objective
    if objective.parent is not None and summaries < _LEAST_SUMMARIES:
        say(f"{summaries} summaries: training on clips and their captions only (objective.parent=null)")
        objective = dataclasses.replace(objective, parent=None)
    if objective.child is not None and clips < 2:
        if objective.parent is None:
            raise DataError(
                f"{config.data.root}: {clips} clips and {summaries} summaries in the split {config.data.split}: "
                f"training needs 2 clips or {_LEAST_SUMMARIES} summaries"
            )
        say(f"{clips} clips: training on summaries only (objective.child=null)")
        objective = dataclasses.replace(objective, child=None)
    return dataclasses.replace(config, objective=objective)


def _evaluated(config: PretrainConfig, source: Source, say: Callable[[str], None]) -> PretrainConfig:
    """Switch evaluation off where the dataset has nothing to evaluate on."""
    sets = source.dataset.sets
    known = (("clips", "val"), ("summaries", "val"), ("egomcq", "test"), ("summarymcq", "test"))
    if any(name in sets and split in sets[name] and sets[name][split].samples for name, split in known):
        return config
    say("no val split: the run does not evaluate itself (build with captions.val_fraction)")
    return dataclasses.replace(config, evaluation=EvaluationConfig())


def _schedule(
    config: PretrainConfig, sizing: SizingConfig, clips: int, summaries: int, say: Callable[[str], None]
) -> PretrainConfig:
    """Choose batches, epochs, learning rate and warm-up."""
    schedule, optim, evaluation = config.schedule, config.optim, config.evaluation
    batch = _batch(clips, schedule.clips)
    is_child = config.objective.child is not None
    per_epoch = clips // batch if is_child else summaries // _batch(summaries, schedule.summaries)
    epochs = min(schedule.epochs, max(1, math.ceil(sizing.steps / per_epoch)))
    total = epochs * per_epoch
    ratio = math.sqrt(batch / schedule.clips) if is_child else 1.0
    lr = float(f"{optim.lr * ratio:.3g}")
    optim = dataclasses.replace(
        optim,
        lr=lr,
        final_lr=min(optim.final_lr, lr),
        warmup_steps=optim.warmup_steps or math.ceil(sizing.warmup * total),
    )
    if evaluation.is_on and evaluation.every_steps is None:
        evaluation = dataclasses.replace(evaluation, every_steps=max(1, math.ceil(total / _EVALUATIONS)))
    schedule = dataclasses.replace(
        schedule,
        epochs=epochs,
        clips=batch if is_child else schedule.clips,
        summaries=_batch(summaries, schedule.summaries) if config.objective.parent is not None else schedule.summaries,
        max_clips_per_epoch=None if is_child else schedule.max_clips_per_epoch,
    )
    batches = [f"{schedule.clips} clips"] * is_child
    batches += [f"{schedule.summaries} summaries"] * (config.objective.parent is not None)
    say(
        f"{clips:,} clips and {summaries:,} summaries: {epochs} epochs of {per_epoch:,} steps, batches of "
        f"{' and '.join(batches)}, learning rate {lr:g}"
    )
    return dataclasses.replace(config, schedule=schedule, optim=optim, evaluation=evaluation, sizing=None)


def _batch(samples: int, most: int) -> int:
    """Return the largest power of two of at most a quarter of the samples, `most` and at least 2."""
    limit = min(most, max(2, samples // _EPOCH_STEPS))
    return min(most, 1 << (limit.bit_length() - 1))
