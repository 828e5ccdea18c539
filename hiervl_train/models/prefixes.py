"""Removes what wrappers of a model add to the names of its tensors: `module._orig_mod.video.cls_token`.

Neither layout, ours or the released one, has a name that begins with one of these parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hiervl_train.models.errors import CheckpointError

# Of torch.compile, FSDP, activation checkpointing, and Lightning with DeepSpeed. They may also wrap a part of a model.
ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# Of data parallelism, and of the trainers' own classes around a model.
AT_START = ("module", "model")
# Data parallelism may also wrap a tower; elsewhere `module` could be a name of another text encoder's own.
_TOWERS = ("video", "text", "aggregator", "video_model", "text_model", "aggregation")


def plain_name(name: str) -> str:
    """Return a tensor's name without the parts that wrappers have added, however many and in whatever order.

    >>> plain_name("module.model._orig_mod.video.module.blocks.0._checkpoint_wrapped_module.norm1.bias")
    'video.blocks.0.norm1.bias'
    """
    parts = [part for part in name.split(".") if part not in ANYWHERE]
    while len(parts) > 1 and parts[0] in AT_START:
        del parts[0]
    while len(parts) > 2 and parts[0] in _TOWERS and parts[1] == "module":
        del parts[1]
    return ".".join(parts)


def plain_names(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return tensors by `plain_name`; raise `CheckpointError` where two that differ would have the same name."""
    plain: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        short = plain_name(name)
        if short in plain and not _equal(plain[short], tensor):
            raise CheckpointError(
                f"{path}: {origins[short]} and {name} are different tensors of one name, {short}: keep one of the two "
                "models in a file of its own"
            )
        plain[short], origins[short] = tensor, name
    return plain


def foreign_prefix(names: Iterable[str], missing: Iterable[str]) -> str:
    """Return the prefix under which most of the missing tensors are in a checkpoint after all; empty if there is none.

    >>> foreign_prefix(["net.a.bias", "net.a.weight", "c"], ["a.weight", "a.bias"])
    'net.'
    """
    wanted = set(missing)
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        ends = (place for place in range(1, len(parts)) if ".".join(parts[place:]) in wanted)
        place = next(ends, None)
        if place is not None:
            found[".".join(parts[:place]) + "."] += 1
    ((prefix, count),) = found.most_common(1) or [("", 0)]
    return prefix if count * 2 > len(wanted) else ""


def _equal(a: Tensor, b: Tensor) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and bool(torch.equal(a, b))
