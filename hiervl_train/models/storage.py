"""Reads and writes weights: ours (safetensors beside a configuration) and released checkpoints, with a load report.

    stored = read_weights(path)  # configuration, tensors, original names
    tensors, report = fit(stored, model.state_dict())

`HierVL.load` builds a model from these.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs import loading
from hiervl_train.models import released
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.prefixes import foreign_prefix, plain_names
from shards.files import replacing

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
TEMPORAL = "video.temporal_embed"
logger = logging.getLogger(__name__)


class Saveable(Protocol):
    """A model with its configuration, as `save` takes it."""

    config: ModelConfig

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The tensors of a checkpoint, or of the model, that were not simply copied."""

    path: Path
    ignored: tuple[str, ...] = ()  # in the checkpoint and unused by the model; named as in the checkpoint
    fresh: tuple[str, ...] = ()  # in the model, not in the checkpoint, and allowed to keep their initial values
    resized: tuple[str, ...] = ()  # a phrase for each parameter that was truncated or extended

    def lines(self) -> list[str]:
        """Return the report as text, one line per entry."""
        return [
            *(f"ignored {name}" for name in self.ignored),
            *(f"fresh {name}" for name in self.fresh),
            *(f"resized {phrase}" for phrase in self.resized),
        ]

    def log(self) -> None:
        """Log every entry as a warning: nothing in a checkpoint is dropped silently."""
        if self.lines():
            logger.warning("%s: %s", self.path, "; ".join(self.lines()))


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredWeights:
    """The content of a checkpoint."""

    path: Path
    config: ModelConfig  # the checkpoint's own; of a released one the published sizes
    tensors: Mapping[str, Tensor]  # by our names
    names: Mapping[str, str] = field(default_factory=dict)  # our name → the released one, where it is a released one
    is_released: bool = False

    def name(self, ours: str) -> str:
        """Return the checkpoint's own name of a tensor."""
        return self.names.get(ours, ours)


def save(model: Saveable, folder: str | Path) -> Path:
    """Write a model's weights and configuration into a folder, each file atomically; return the folder."""
    folder = Path(folder)
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(loading.to_yaml(model.config), encoding="utf-8")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return folder


def read_weights(path: str | Path) -> StoredWeights:
    """Read a checkpoint: a folder of ours, its .safetensors file, or a released .pth.

    Head counts cannot be derived from weights, so the configuration of a released checkpoint is the published one, with
    as many temporal slots as the file has and an aggregator if it has one. Raises `CheckpointError`.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        weights, config = (path / WEIGHTS, path / CONFIG) if path.is_dir() else (path, path.parent / CONFIG)
        tensors = plain_names(read_safetensors(weights), weights)
        return StoredWeights(path=path, config=loading.load(ModelConfig, config), tensors=tensors)
    theirs = released.state_dict(released.read(path), path)
    names = {released.to_ours(name) or name: name for name in theirs}
    tensors = {ours: theirs[name] for ours, name in names.items()}
    return StoredWeights(path=path, config=_published(tensors), tensors=tensors, names=names, is_released=True)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file; raise `CheckpointError` where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or incomplete safetensors file: {error}") from error


def fit(
    stored: StoredWeights, wanted: Mapping[str, Tensor], *, may_be_fresh: str | None = None
) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors that a model with the state `wanted` takes from a checkpoint, and the load report.

    Temporal positions are truncated or extended with zeros. Parameters whose names start with `may_be_fresh` may be
    missing, all of them or none. Raises `CheckpointError`, by name, on other missing tensors and on wrong shapes.
    """
    fitting = {name: tensor for name, tensor in stored.tensors.items() if name in wanted}
    resized = []
    if TEMPORAL in fitting:
        fitting[TEMPORAL], phrase = _fit_slots(fitting[TEMPORAL], wanted[TEMPORAL])
        resized += [phrase] if phrase else []
    missing = [name for name in wanted if name not in fitting]
    fresh = [name for name in missing if may_be_fresh and name.startswith(may_be_fresh)]
    if fresh and any(name.startswith(may_be_fresh or "") for name in fitting):
        fresh = []  # an incomplete aggregator is an error, not a reason to start a new one
    renamed = released.to_released if stored.is_released else str
    problems = [f"missing {renamed(name)}" for name in missing if name not in fresh]
    problems += [
        f"{stored.name(name)} has shape {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
        for name, tensor in fitting.items()
        if tensor.shape != wanted[name].shape
    ]
    if problems:
        hint = "sizes come from the given configuration, else they are the published ones" if stored.is_released else ""
        prefix = foreign_prefix(map(stored.name, stored.tensors), map(renamed, missing))
        if prefix:
            hint = f"its names begin with {prefix!r}, which is not part of the model: remove it from them"
        raise CheckpointError.of(stored.path, problems, hint)
    ignored = tuple(stored.name(name) for name in stored.tensors if name not in wanted)
    return fitting, LoadReport(path=stored.path, ignored=ignored, fresh=tuple(fresh), resized=tuple(resized))


def _fit_slots(slots_1TD: Tensor, wanted_1TD: Tensor) -> tuple[Tensor, str | None]:
    """Return temporal positions for the wanted number of frames: the first ones, then zeros, as published."""
    have, want = slots_1TD.shape[1], wanted_1TD.shape[1]
    if slots_1TD.ndim != 3 or slots_1TD.shape[2] != wanted_1TD.shape[2] or have == want:
        return slots_1TD, None
    fitted = torch.zeros_like(wanted_1TD, device="cpu")
    fitted[:, : min(have, want)] = slots_1TD[:, :want]
    how = "the first are kept" if want < have else "the new ones are zero"
    return fitted, f"{TEMPORAL} from {have} to {want} frames: {how}"


def _published(tensors: Mapping[str, Tensor]) -> ModelConfig:
    config = ModelConfig()
    slots = tensors.get(TEMPORAL)
    if slots is not None and slots.ndim == 3:
        config = dataclasses.replace(config, num_frames=slots.shape[1])
    if not any(name.startswith("aggregator.") for name in tensors):
        config = dataclasses.replace(config, aggregator=None)
    return config
