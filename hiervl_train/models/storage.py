"""Keeps a model on disk (safetensors beside its configuration) and loads it, or a released one, with a report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs import loading
from hiervl_train.models import released
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.released import CheckpointError
from shards.files import replacing

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
TEMPORAL = "video.temporal_embed"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to every part of a checkpoint that did not simply go where it belongs."""

    path: Path
    ignored: tuple[str, ...] = ()  # in the checkpoint, of no use to this model; named as in the checkpoint
    fresh: tuple[str, ...] = ()  # in the model, not in the checkpoint, and allowed to start anew
    resized: tuple[str, ...] = ()  # a sentence for each parameter that was cut or filled up

    def lines(self) -> list[str]:
        """Return the report as text, one line an entry."""
        return [
            *(f"ignored {name}" for name in self.ignored),
            *(f"fresh {name}" for name in self.fresh),
            *(f"resized {sentence}" for sentence in self.resized),
        ]

    def log(self) -> None:
        """Log every entry as a warning: nothing of a checkpoint is dropped in silence."""
        if self.lines():
            logger.warning("%s: %s", self.path, "; ".join(self.lines()))


def save(model: HierVL, folder: str | Path) -> Path:
    """Write the weights and the configuration of a model into a folder, each whole or not at all; return it."""
    folder = Path(folder)
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(loading.to_yaml(model.config), encoding="utf-8")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return folder


def load_checkpoint(path: str | Path, config: ModelConfig | None = None) -> tuple[HierVL, LoadReport]:
    """Return the model in a checkpoint (ours or released) and the report; see `HierVL.from_checkpoint`."""
    path = Path(path)
    tensors, names, own = read_weights(path)
    if config is None:
        config = own or _published(tensors)
    model = HierVL(config)
    hint = "" if own is not None else "sizes come from `config`, else they are the published ones"
    return model, load_weights(model, tensors, path, names=names, hint=hint)


def load_into(model: HierVL, path: str | Path) -> LoadReport:
    """Start a model from a checkpoint (`init_from`), its aggregator anew where the checkpoint has none."""
    path = Path(path)
    tensors, names, _ = read_weights(path)
    return load_weights(model, tensors, path, names=names, may_be_fresh="aggregator.")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str], ModelConfig | None]:
    """Return tensors by our name, the checkpoint's own name of each, and its configuration where it brings one."""
    if path.is_dir() or path.suffix == ".safetensors":
        weights, config = (path / WEIGHTS, path / CONFIG) if path.is_dir() else (path, path.parent / CONFIG)
        tensors = read_safetensors(weights)
        return tensors, {name: name for name in tensors}, loading.load(ModelConfig, config)
    theirs = released.state_dict(released.read(path), path)
    names = {released.to_ours(name) or name: name for name in theirs}
    return {ours: theirs[name] for ours, name in names.items()}, names, None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error


def load_weights(
    model: HierVL,
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    names: Mapping[str, str] | None = None,
    may_be_fresh: str | None = None,
    hint: str = "",
) -> LoadReport:
    """Copy tensors into a model by our names; raise `CheckpointError` on missing or mis-shaped ones, by name."""
    names = names or {name: name for name in tensors}
    wanted = model.state_dict()
    found = {name: tensor for name, tensor in tensors.items() if name in wanted}
    resized = []
    if TEMPORAL in found:
        found[TEMPORAL], sentence = _fit_slots(found[TEMPORAL], wanted[TEMPORAL])
        resized += [sentence] if sentence else []
    missing = [name for name in wanted if name not in found]
    fresh = [name for name in missing if may_be_fresh and name.startswith(may_be_fresh)]
    if fresh and any(name.startswith(may_be_fresh or "") for name in found):
        fresh = []  # half an aggregator is no reason to start it anew
    theirs = any(name != theirs for name, theirs in names.items())
    problems = [f"missing {released.to_released(name) if theirs else name}" for name in missing if name not in fresh]
    problems += [
        f"{names[name]} has shape {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
        for name, tensor in found.items()
        if tensor.shape != wanted[name].shape
    ]
    if problems:
        raise CheckpointError.of(path, problems, hint)
    # Not strict only because of `fresh`, which is reported; all else was checked above, with better words.
    model.load_state_dict(found, strict=False)
    ignored = tuple(names[name] for name in tensors if name not in wanted)
    return LoadReport(path=path, ignored=ignored, fresh=tuple(fresh), resized=tuple(resized))


def _fit_slots(slots_1TD: Tensor, wanted_1TD: Tensor) -> tuple[Tensor, str | None]:
    """Return temporal positions for as many frames as wanted: the first ones, then zeros, as published."""
    have, want = slots_1TD.shape[1], wanted_1TD.shape[1]
    if slots_1TD.ndim != 3 or slots_1TD.shape[2] != wanted_1TD.shape[2] or have == want:
        return slots_1TD, None
    fitted = torch.zeros_like(wanted_1TD, device="cpu")
    fitted[:, : min(have, want)] = slots_1TD[:, :want]
    how = "the first are kept" if want < have else "the new ones are zero"
    return fitted, f"{TEMPORAL} from {have} to {want} frames: {how}"


def _published(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """Return the published sizes, with as many temporal slots as the weights have and an aggregator if they do."""
    config = ModelConfig()
    slots = tensors.get(TEMPORAL)
    if slots is not None and slots.ndim == 3:
        config = dataclasses.replace(config, num_frames=slots.shape[1])
    if not any(name.startswith("aggregator.") for name in tensors):
        config = dataclasses.replace(config, aggregator=None)
    return config
