"""The released layout of HierVL and EgoVLP checkpoints: reading one without executing it, and naming its parts.

A released `.pth` is a pickle that names a configuration class nobody has. `torch.load(weights_only=True)` runs
nothing of a pickle, yet refuses foreign classes; each one is given an inert stand-in instead, which takes whatever
the pickle says about it and does nothing with it.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from hiervl_train.models.config import ModelConfig

SHOWN = 12  # problems that a message spells out


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and what is wrong in it."""

    exit_code: ClassVar[int] = 2

    @classmethod
    def of(cls, where: object, problems: Sequence[str], hint: str = "") -> CheckpointError:
        """Return the error for parts that do not fit, one problem each; all of them are in `problems`."""
        shown = "; ".join(problems[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        error = cls(f"{where}: {len(problems)} parts do not fit{f' ({hint})' if hint else ''}: {shown}{more}")
        error.problems = tuple(problems)
        return error

    problems: tuple[str, ...] = ()


# Released name → ours. A name under none of these is a part that HierVL's forward pass never uses.
PREFIXES = {
    "video_model.": "video.",
    "text_model.": "text.encoder.",
    "vid_proj.0.": "video_projection.",
    "txt_proj.1.": "text_projection.",
    "aggregation.": "aggregator.",
}


def read(path: Path) -> dict[str, Any]:
    """Return what `torch.save` wrote into a file, tensors on the CPU, executing nothing that the file names."""
    try:
        foreign = sorted(_foreign_names(path))
        stand_ins: list[Any] = [(_stand_in(name), name) for name in foreign]
        with safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights alone: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a dictionary is expected, this is a {type(content).__name__}")
    return content


def state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors by released name, without the prefix that data parallelism leaves."""
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: state_dict is a {type(state).__name__}, not names and tensors")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items()}
    strange = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if strange or not tensors:
        raise CheckpointError(f"{path}: holds no model: {', '.join(strange[:5]) or 'nothing'} is not a tensor")
    return tensors


def to_ours(name: str) -> str | None:
    """Return our name of a released parameter, None where the released layout has a part of no use."""
    for released, ours in PREFIXES.items():
        if name.startswith(released):
            return ours + name.removeprefix(released)
    return None


def to_released(name: str) -> str:
    """Return the released name of one of our parameters."""
    for released, ours in PREFIXES.items():
        if name.startswith(ours):
            return released + name.removeprefix(ours)
    raise KeyError(f"{name} has no place in the released layout")


def unused_parts(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of what the released layout has and its forward pass never uses.

    The released aggregator is a whole video transformer of which only part runs, and the model carries the head
    of a linear probe: the original code loads a checkpoint only with all of these in it.
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
    """Return `module.name` of all that a checkpoint names and `weights_only` does not know, running nothing."""
    if zipfile.is_zipfile(path):
        return set(get_unsafe_globals_in_checkpoint(path))
    # Before 1.6 torch wrote four pickles in a row and then the raw numbers.
    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(4):
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
    return {name for name in names if not name.startswith(("torch.", "collections."))}


def _stand_in(full_name: str) -> type:
    """Return a class that can be made, called and filled with anything, and does nothing."""

    class StandIn:
        def __new__(cls, *_args: object, **_kwargs: object) -> Any:
            return super().__new__(cls)

        def __init__(self, *_args: object, **_kwargs: object) -> None:
            """Ignore what the foreign class would have been made from."""

        def __setstate__(self, _state: object) -> None:
            """Ignore what the foreign object held."""

        def __repr__(self) -> str:
            return f"<stand-in for {full_name}>"

    StandIn.__qualname__ = StandIn.__name__ = full_name.rpartition(".")[2]
    return StandIn
