"""What a fine-tuning run starts from: the weights and the tokenizer of a checkpoint, of a run's best, of a release."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from configs.loading import ConfigError
from hiervl_train.checkpoint import files as files
from hiervl_train.checkpoint.find import find_checkpoint
from hiervl_train.config import TextConfig
from hiervl_train.models import HierVL
from hiervl_train.models.finetuned import HEAD, FineTuned
from hiervl_train.models.storage import CONFIG, WEIGHTS, load_checkpoint, load_weights, read_safetensors
from hiervl_train.tasks.config import FinetuneConfig, ModelPart
from hiervl_train.tasks.pretraining import require_fit
from hiervl_train.tokenizer import FILE as TOKENIZER_FILE
from hiervl_train.tokenizer import Tokenizer

RELEASED_TOKENIZER = "distilbert-base-uncased"  # of every released checkpoint
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """The towers that a run starts from."""

    path: Path  # of the checkpoint itself
    towers: HierVL
    head: dict[str, Tensor]  # of a checkpoint that was fine-tuned on classes

    def model(self, *, trained: Collection[ModelPart], classes: int | None) -> FineTuned:
        """Return the model to be trained. A head begins anew unless the checkpoint has one of the same shape."""
        made = FineTuned(self.towers.config, trained=trained, classes=classes)
        if made.take(self.towers.state_dict(), self.head):
            logger.info("%s: its head goes on", self.path)
        elif self.head:
            logger.warning("%s: its head is of no use here", self.path)
        return made


def open_start(config: FinetuneConfig) -> Start:
    """Return what the configuration starts from, with position slots for all its frames.

    Raises `ConfigError` where it names nothing, `CheckpointError` where that is no checkpoint, damaged, or of another
    size than stated.
    """
    if config.init_from is None:
        raise ConfigError("init_from is not set: --checkpoint FOLDER, a run's folder, or a released .pth")
    path = find_checkpoint(config.init_from, config.which)
    if _is_ours(path) and config.model is not None:
        raise ConfigError(f"model: {path} brings its own sizes ({CONFIG}); the section is for a released .pth")
    is_average = config.average and (path / files.EMA).is_file()
    if (path / files.COMPLETE).is_file():
        files.check(path, files.read_manifest(path), [WEIGHTS, CONFIG, *([files.EMA] if is_average else [])])
    towers, report = load_checkpoint(path, config.model)
    if config.sample.frames > towers.config.num_frames:
        towers, report = load_checkpoint(path, dataclasses.replace(towers.config, num_frames=config.sample.frames))
    is_ours = _is_ours(path)
    dataclasses.replace(report, ignored=tuple(n for n in report.ignored if not (is_ours and _of_head(n)))).log()
    tensors: dict[str, Tensor] = {}
    if is_ours:
        tensors = read_safetensors(path / WEIGHTS if path.is_dir() else path)
    if is_average:
        tensors |= read_safetensors(path / files.EMA)
        load_weights(towers, tensors, path / files.EMA)
    return Start(path=path, towers=towers, head={name: value for name, value in tensors.items() if _of_head(name)})


def open_tokenizer(config: TextConfig, start: Start) -> Tokenizer:
    """Return the tokenizer that the configuration names, else the checkpoint's own, of a released one DistilBERT's."""
    folder = start.path if start.path.is_dir() else start.path.parent
    source = config.tokenizer
    if source is None and not _is_ours(start.path):
        source = RELEASED_TOKENIZER
    elif source is None:
        if not (folder / TOKENIZER_FILE).is_file():
            raise ConfigError(f"{folder} has no {TOKENIZER_FILE}; set text.tokenizer to that of its text encoder")
        source = str(folder)
    found = Tokenizer.from_pretrained(source, max_length=start.towers.text.max_length, buckets=config.buckets)
    require_fit(found, start.towers)
    return found


def _is_ours(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".safetensors"


def _of_head(name: str) -> bool:
    return name.startswith(HEAD)
