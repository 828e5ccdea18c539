"""Opens a checkpoint to evaluate it or to fine-tune it: a folder of ours, a whole run, or a released .pth.

    opened = open_checkpoint("runs/mine")
    opened.model.encode_text(*opened.tokenizer(["#C C cuts the onion"]))

A run (RUN, or RUN/checkpoints) stands for its best checkpoint if it evaluated itself, otherwise for its newest.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hiervl_train.checkpoint import files
from hiervl_train.checkpoint.manager import BEST
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.finetuned import HEAD
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.prefixes import plain_names
from hiervl_train.models.speed import SpeedConfig, prepare
from hiervl_train.models.storage import CONFIG, WEIGHTS, read_safetensors, read_weights
from hiervl_train.tokenizer import BUCKETS, Tokenizer, require_fit
from hiervl_train.tokenizer import FILE as TOKENIZER_FILE

RELEASED_TOKENIZER = "distilbert-base-uncased"  # of every released checkpoint
_NAME = re.compile(r"step-\d{8,}")


@dataclass(frozen=True, kw_only=True)
class OpenConfig:
    """Which checkpoint of a run is opened, and how."""

    which: Literal["best", "newest"] = "best"  # of a run's checkpoints; the newest where no best one is known
    average: bool = True  # use the moving average of the weights (optim.ema) where the run kept one
    tokenizer: str | None = None  # hub name or folder; null: the checkpoint's own, DistilBERT's for a released one
    # Sizes of a released checkpoint; null: the published ones, with an aggregator if it has one. Ours has its own.
    model: ModelConfig | None = None
    frames: int | None = None  # per clip; a model with fewer position slots is extended with zeros, as published
    speed: SpeedConfig = field(default_factory=lambda: SpeedConfig(bf16=False, compile=False))


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedCheckpoint:
    """A model ready to be evaluated, or to be fine-tuned."""

    model: HierVL  # in evaluation mode
    tokenizer: Tokenizer
    digest: str  # sha256 of the file of weights
    path: Path  # of the checkpoint itself
    run: Path | None = None  # the folder of its run
    sample: Mapping[str, Any] = field(default_factory=dict)  # what a training sample was: frames, windows, …
    head: Mapping[str, Tensor] = field(default_factory=dict)  # of a model that was fine-tuned on classes


def find_checkpoint(path: Path, which: Literal["best", "newest"] = "best") -> Path:
    """Return the checkpoint that a path stands for: itself, or one of the run's; raise `CheckpointError`."""
    if path.is_file() or (path / WEIGHTS).is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint")
    complete = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / files.COMPLETE).is_file()]
    if not complete:
        raise CheckpointError(f"{path}: neither a checkpoint nor a run with a complete one (step-…/{files.COMPLETE})")
    newest = max(complete, key=lambda p: int(p.name.removeprefix("step-")))
    if which == "newest" or not (folder / BEST).is_file():
        return newest
    try:
        best = folder / str(json.loads((folder / BEST).read_bytes())["folder"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / BEST}: damaged: {error}; name one of the checkpoints instead") from None
    return best if best in complete else newest


def open_checkpoint(
    path: str | Path,
    config: OpenConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    buckets: Sequence[int] = BUCKETS,
) -> OpenedCheckpoint:
    """Return the model of a checkpoint on `device`, its tokenizer (which pads to `buckets`), and what is known of it.

    Files with a recorded hash are verified. Raises `CheckpointError` where there is no checkpoint, or it is damaged or
    of another size; `TokenizerError` or `MissingPretrained` where there is no tokenizer for it.
    """
    config = config or OpenConfig()
    folder = find_checkpoint(Path(path), config.which)  # or the file of a single checkpoint
    is_ours = folder.is_dir() or folder.suffix == ".safetensors"
    if is_ours and config.model is not None:
        raise CheckpointError(f"{folder} has its own sizes ({CONFIG}): leave out `model`, which is for a released .pth")
    average = folder / files.EMA if config.average and (folder / files.EMA).is_file() else None
    digest = _verified_digest(folder, average)
    stored = read_weights(folder)
    if average is not None:
        averaged = plain_names(read_safetensors(average), average)
        stored = dataclasses.replace(stored, tensors={**stored.tensors, **averaged}, path=average)
    head = {name: value for name, value in stored.tensors.items() if is_ours and name.startswith(HEAD)}
    stored = dataclasses.replace(stored, tensors={k: v for k, v in stored.tensors.items() if k not in head})
    sizes = config.model or stored.config
    if config.frames is not None and config.frames > sizes.num_frames:
        sizes = dataclasses.replace(sizes, num_frames=config.frames)
    model = HierVL(sizes)
    model.load_weights(stored).log()
    prepare(model.eval().to(device), config.speed)
    return OpenedCheckpoint(
        model=model,
        tokenizer=_tokenizer(folder, model, config.tokenizer, buckets, is_ours=is_ours),
        digest=digest,
        path=folder,
        run=folder.parent.parent if folder.parent.name == "checkpoints" else None,
        sample=training_sample(folder),
        head=head,
    )


def _verified_digest(path: Path, average: Path | None) -> str:
    """Return the hash of the file of weights; raise `CheckpointError` where a file differs from the manifest."""
    weights = path / WEIGHTS if path.is_dir() else path
    if path.is_dir() and (path / files.COMPLETE).is_file():
        manifest = files.read_manifest(path)
        files.check(path, manifest, [WEIGHTS, CONFIG, *([files.EMA] if average is not None else [])])
        return manifest.files[(average or weights).name][1]
    try:
        return files.sha256(average or weights)
    except OSError as error:
        raise CheckpointError(f"{weights}: cannot be read: {error.strerror}") from None


def _tokenizer(path: Path, model: HierVL, source: str | None, buckets: Sequence[int], *, is_ours: bool) -> Tokenizer:
    if source is None and is_ours:
        folder = path if path.is_dir() else path.parent
        if not (folder / TOKENIZER_FILE).is_file():
            raise CheckpointError(f"{folder} has no {TOKENIZER_FILE}: set the tokenizer to that of its text encoder")
        source = str(folder)
    tokenizer = Tokenizer.from_pretrained(
        source or RELEASED_TOKENIZER, max_length=model.text.max_length, buckets=buckets
    )
    require_fit(tokenizer, model.text.vocab_size, path)
    return tokenizer


def training_sample(path: Path) -> dict[str, Any]:
    """Return the section `sample` of the run that wrote a checkpoint; empty where it is not known."""
    try:
        sample = json.loads((path / files.STATE).read_bytes())["identity"]["sample"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(sample) if isinstance(sample, dict) else {}
