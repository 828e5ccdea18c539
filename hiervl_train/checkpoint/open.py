"""Opens a checkpoint for evaluation: a folder of ours, a whole run, or a released .pth; with its tokenizer.

A run (RUN, or RUN/checkpoints) stands for its best checkpoint, where it evaluated itself, or its newest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from hiervl_train.checkpoint import files as files
from hiervl_train.checkpoint.find import find_checkpoint
from hiervl_train.models import HierVL, ModelConfig
from hiervl_train.models.released import CheckpointError
from hiervl_train.models.speed import SpeedConfig, prepare
from hiervl_train.models.storage import CONFIG, WEIGHTS, load_checkpoint, load_weights, read_safetensors
from hiervl_train.tokenizer import FILE as TOKENIZER_FILE
from hiervl_train.tokenizer import Tokenizer

RELEASED_TOKENIZER = "distilbert-base-uncased"  # of every released checkpoint


@dataclass(frozen=True, kw_only=True)
class OpenConfig:
    """What opening a checkpoint may need to be told."""

    which: Literal["best", "newest"] = "best"  # of a run's checkpoints; the newest where it knows of no best one
    average: bool = True  # take the average of the weights where the run kept one (optim.ema)
    tokenizer: str | None = None  # hub name or folder; null: the checkpoint's own, of a released one DistilBERT's
    # Sizes of a released checkpoint; null: the published ones, with an aggregator where it has weights of one. Ours
    # brings its own.
    model: ModelConfig | None = None
    frames: int | None = (
        None  # that will be shown: a model with fewer position slots gets more, zero ones, as published
    )
    bf16: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedCheckpoint:
    """A model ready to be evaluated."""

    model: HierVL
    tokenizer: Tokenizer
    digest: str  # sha256 of the file of weights
    path: Path  # of the checkpoint itself
    run: Path | None = None  # the folder of its run
    sample: Mapping[str, Any] = field(default_factory=dict)  # what a sample held in training: frames, windows, …


def open_checkpoint(
    path: str | Path, config: OpenConfig | None = None, *, device: torch.device | str = "cpu"
) -> OpenedCheckpoint:
    """Return the model of a checkpoint, in evaluation mode on `device`.

    Raises `CheckpointError` where there is none or it is of another size, `TokenizerError` or `MissingPretrained` where
    there is no tokenizer.
    """
    config = config or OpenConfig()
    folder = find_checkpoint(Path(path), config.which)
    is_ours = folder.is_dir() or folder.suffix == ".safetensors"
    if is_ours and config.model is not None:
        raise CheckpointError(
            f"{folder}: brings its own sizes ({CONFIG}); leave out `model`, it is for a released .pth"
        )
    digest = _digest(folder, folder / WEIGHTS if folder.is_dir() else folder)
    model, report = load_checkpoint(folder, config.model)
    if config.frames is not None and config.frames > model.config.num_frames:
        model, report = load_checkpoint(folder, dataclasses.replace(model.config, num_frames=config.frames))
    report.log()
    average = folder / files.EMA if folder.is_dir() else None
    if config.average and average is not None and average.is_file():
        digest = _digest(folder, average)
        load_weights(model, {**model.state_dict(), **read_safetensors(average)}, average)
    tokenizer = _tokenizer(folder, model, config.tokenizer)
    prepare(model.eval().to(device), SpeedConfig(bf16=config.bf16, compile=config.compile))
    run = folder.parent.parent if folder.parent.name == "checkpoints" else None
    return OpenedCheckpoint(
        model=model, tokenizer=tokenizer, digest=digest, path=folder, run=run, sample=_sample(folder)
    )


def _digest(folder: Path, weights: Path) -> str:
    """Return the hash of a file of weights; raise `CheckpointError` where it is not the one that was written."""
    try:
        digest = files.sha256(weights)
    except OSError as error:
        raise CheckpointError(f"{weights}: cannot be read: {error.strerror}") from None
    if folder.is_dir() and (folder / files.COMPLETE).is_file():
        written = files.read_manifest(folder).files.get(weights.name)
        if written is not None and written[1] != digest:
            raise CheckpointError(f"{weights}: its SHA-256 is not the one in {files.COMPLETE}: the file is damaged")
    return digest


def _tokenizer(folder: Path, model: HierVL, source: str | None) -> Tokenizer:
    if source is None:
        own = folder if folder.is_dir() else folder.parent
        is_released = not folder.is_dir() and folder.suffix != ".safetensors"
        if not is_released and not (own / TOKENIZER_FILE).is_file():
            raise CheckpointError(f"{own}: has no {TOKENIZER_FILE}; set `tokenizer` to that of its text encoder")
        source = RELEASED_TOKENIZER if is_released else str(own)
    tokenizer = Tokenizer.from_pretrained(source, max_length=model.text.max_length)
    known = int(model.text.encoder.get_input_embeddings().weight.shape[0])
    if tokenizer.size > known:
        raise CheckpointError(
            f"{folder}: its text encoder knows {known} tokens, the tokenizer {source} has {tokenizer.size}: it is not "
            "the one that the model was trained with; set `tokenizer`"
        )
    return tokenizer


def _sample(folder: Path) -> dict[str, Any]:
    """Return what a sample held in the run that wrote a checkpoint; nothing where it is not known."""
    try:
        sample = json.loads((folder / files.STATE).read_bytes())["identity"]["sample"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(sample) if isinstance(sample, dict) else {}
