"""The released layout of HierVL and EgoVLP checkpoints: reads one without executing code, and maps tensor names.

A released `.pth` pickles an object of a configuration class that is not published. `torch.load(weights_only=True)`
executes nothing in a pickle but refuses unknown classes, so each of them is replaced by an inert stand-in, which
accepts any state and ignores it.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from hiervl_train.models.config import ModelConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.prefixes import plain_names

# Released name → ours. A name without one of these prefixes belongs to a module that the forward pass never uses.
PREFIXES = {
    "video_model.": "video.",
    "text_model.": "text.encoder.",
    "vid_proj.0.": "video_projection.",
    "txt_proj.1.": "text_projection.",
    "aggregation.": "aggregator.",
}


def read(path: Path) -> dict[str, Any]:
    """Return what `torch.save` wrote into a file, tensors on the CPU, without executing code of the file.

    Raises `CheckpointError` where the file is missing or is not a dictionary of plain data.
    """
    try:
        foreign = sorted(_foreign_names(path))
        stand_ins: list[Any] = [(_stand_in(name), name) for name in foreign]
        with safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read with weights_only: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found a {type(content).__name__}")
    return content


def state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors by released name, without what wrappers such as data parallelism add (`prefixes`)."""
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: state_dict is a {type(state).__name__}, not names and tensors")
    tensors = plain_names({str(name): value for name, value in state.items()}, path)
    strange = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if strange or not tensors:
        why = f"not tensors: {', '.join(strange[:5])}" if strange else "there are no tensors"
        raise CheckpointError(f"{path}: no model: {why}")
    return tensors


def to_ours(name: str) -> str | None:
    """Return our name of a released parameter; None for one that the forward pass never uses."""
    for released, ours in PREFIXES.items():
        if name.startswith(released):
            return ours + name.removeprefix(released)
    return None


def to_released(name: str) -> str:
    """Return the released name of one of our parameters."""
    for released, ours in PREFIXES.items():
        if name.startswith(ours):
            return released + name.removeprefix(ours)
    raise KeyError(f"{name} has no counterpart in the released layout")


def unused_parts(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the released tensors that its forward pass never uses.

    The released aggregator is a complete video transformer of which only a part runs, and the model has the head of a
    linear probe. The original code loads only checkpoints with all of these tensors.
    """
    width = config.projection_dim
    yield "head_ht100m_linear_probe.0.weight", (100, width)
    yield "head_ht100m_linear_probe.0.bias", (100,)
    if config.aggregator is None or config.aggregator.kind != "self_attention":
        return
    yield "aggregation.time_embed", (1, 8, width)
    yield "aggregation.patch_embed.proj.weight", (width, 3, 16, 16)
    yield "aggregation.patch_embed.proj.bias", (width,)
    for block in range(config.aggregator.depth):
        prefix = f"aggregation.blocks.{block}."
        yield prefix + "temporal_norm1.weight", (width,)
        yield prefix + "temporal_norm1.bias", (width,)
        yield prefix + "temporal_attn.qkv.weight", (3 * width, width)
        yield prefix + "temporal_attn.proj.weight", (width, width)
        yield prefix + "temporal_attn.proj.bias", (width,)
        yield prefix + "temporal_fc.weight", (width, width)
        yield prefix + "temporal_fc.bias", (width,)
    yield "aggregation.head.weight", (1000, width)
    yield "aggregation.head.bias", (1000,)


def _foreign_names(path: Path) -> set[str]:
    """Return `module.name` of all classes and functions in a checkpoint that `weights_only` refuses."""
    if zipfile.is_zipfile(path):
        return set(get_unsafe_globals_in_checkpoint(path))
    # Before version 1.6, torch wrote four consecutive pickles and then the raw numbers.
    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(4):
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
    return {name for name in names if not name.startswith(("torch.", "collections."))}


def _stand_in(full_name: str) -> type:
    """Return a class that accepts any arguments and any state, and ignores them."""

    class StandIn:
        def __new__(cls, *_args: object, **_kwargs: object) -> Any:
            return super().__new__(cls)

        def __init__(self, *_args: object, **_kwargs: object) -> None:
            """Ignore the arguments."""

        def __setstate__(self, _state: object) -> None:
            """Ignore the state."""

        def __repr__(self) -> str:
            return f"<stand-in for {full_name}>"

    StandIn.__qualname__ = StandIn.__name__ = full_name.rpartition(".")[2]
    return StandIn
