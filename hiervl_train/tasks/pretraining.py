"""Makes the pretraining task of a configuration: model and weights, tokenizer, loaders, steps, schedule."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from configs.loading import to_dict
from hiervl_train.checkpoint.find import find_checkpoint
from hiervl_train.collectives import broadcast
from hiervl_train.config import PretrainConfig
from hiervl_train.distributed import DistributedContext
from hiervl_train.levels import StepLoaders, pretraining_loaders
from hiervl_train.models import HierVL
from hiervl_train.models.initialise import initialise
from hiervl_train.models.speed import prepare
from hiervl_train.steps import PretrainSteps
from hiervl_train.tokenizer import FILE as TOKENIZER_FILE
from hiervl_train.tokenizer import Tokenizer, TokenizerError
from hiervl_train.trainer import Evaluate, Task
from shards.dataset import read_rows
from shards.sources import open_source

logger = logging.getLogger(__name__)


def pretraining_task(config: PretrainConfig, ranks: DistributedContext, *, evaluate: Evaluate | None = None) -> Task:
    """Return what is trained.

    Raises what its parts raise on what they cannot use: a dataset (`ShardError`, `SourceError`, `DataError`), a
    checkpoint (`CheckpointError`), pretrained weights that are not to be had (`MissingPretrained`).
    """
    torch.manual_seed(config.run.seed)  # the same fresh weights on every rank
    model = HierVL(config.model)
    start = None if config.init_from is None else find_checkpoint(config.init_from)
    initialise(model, config.init, start)
    tokenizer = make_tokenizer(config, model, start)
    model.to(ranks.device)
    broadcast(model.state_dict().values())
    loaders = pretraining_loaders(config, ranks)
    torch.manual_seed(config.run.seed * 1_000_003 + 1 + ranks.rank)  # other dropout on every rank
    steps_per_epoch, total_steps = schedule(config, loaders)
    return Task(
        model=prepare(model, config.speed),
        tokenizer=tokenizer,
        loaders=loaders,
        backward=PretrainSteps(model, tokenizer, config).backward,
        step_type=config.step_type,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        zero_grad_parameters=tuple(model.aggregator.parameters())
        if config.optim.apply_zero_grads and model.aggregator
        else (),
        eps_scale=ranks.world if config.compat.released_eps else 1,
        evaluate=evaluate,
        identity=to_dict(config),
    )


def schedule(config: PretrainConfig, loaders: StepLoaders) -> tuple[int, int]:
    """Return the steps of an epoch and of the whole run, those of both levels together.

    An epoch sees each clip once; the parent steps between go through the summaries at their own pace. Without child
    steps an epoch sees each summary once.
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
    """Return the tokenizer that the configuration names, or one that fits what it starts from; see `TextConfig`."""
    text, length = config.text, model.text.max_length
    source = text.tokenizer
    if source is None and start is not None and (start / TOKENIZER_FILE).is_file():
        source = str(start)
    source = source or config.model.text.source or config.init.text
    if source is not None:
        tokenizer = Tokenizer.from_pretrained(source, max_length=length, buckets=text.buckets)
    else:
        size = model.config.text.vocab_size
        tokenizer = Tokenizer.build(_texts(config), vocab_size=size, max_length=length, buckets=text.buckets)
        logger.info("tokenizer: %d words of the training set's texts", tokenizer.size)
    require_fit(tokenizer, model)
    return tokenizer


def require_fit(tokenizer: Tokenizer, model: HierVL) -> None:
    """Raise `TokenizerError` where a tokenizer has more tokens than a model's text encoder knows."""
    rows = int(model.text.encoder.get_input_embeddings().weight.shape[0])
    if tokenizer.size > rows:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.size} tokens and the text encoder {rows}: they do not belong together; "
            "set text.tokenizer to the encoder's own"
        )


def _texts(config: PretrainConfig) -> list[str]:
    """Return all captions of the training split, of both loaders."""
    source = open_source(config.data.root, config.data.source)
    texts: list[str] = []
    for set_name, split, entry in source.dataset.splits():
        if set_name in ("clips", "summaries") and split == config.data.split:
            for shard in entry.shards:
                texts += read_rows(source.parquet(shard), ["text"])["text"].to_pylist()
    return texts
