# PYTHON_ARGCOMPLETE_OK
"""Converts a checkpoint between our layout and the released one, from which the original code loads it.

    python -m hiervl_train.models.convert released.pth FOLDER [--config sizes.yaml]
    python -m hiervl_train.models.convert FOLDER released.pth

The target's name decides: `.pth` is the released layout, anything else a folder of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from configs.cli import Command, Request
from hiervl_train.models import released
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.storage import save
from shards.files import replacing


def to_released(model: HierVL) -> dict[str, Any]:
    """Return the content of a released checkpoint: the model's parameters under their released names.

    Parts that the released layout has and never uses are zeros, so that a strict load finds all of its names.
    """
    if model.config.attention != "divided":
        raise CheckpointError(f"attention = {model.config.attention}: the released layout has divided attention only")
    state = {f"module.{released.to_released(name)}": value.detach() for name, value in model.state_dict().items()}
    for name, shape in released.unused_parts(model.config):
        state[f"module.{name}"] = torch.zeros(shape)
    return {
        "arch": "FrozenInTime",
        "epoch": 0,
        "state_dict": state,
        "optimizer": {},
        "monitor_best": 0.0,
        # Plain data in place of the pickled object: the original code asks for no more than this key.
        "config": {"arch": {"type": "FrozenInTime"}},
    }


def convert(source: Path, target: Path, config: ModelConfig | None = None) -> list[str]:
    """Write the checkpoint at `source` to `target` in the layout that its name says; return the load's report."""
    model, report = HierVL.load(source, config)
    if target.suffix == ".pth":
        with replacing(target) as temporary:
            torch.save(to_released(model), temporary)
    else:
        save(model, target)
    return report.lines()


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("python -m hiervl_train.models.convert", __doc__, ModelConfig)
    command.positional("source", type=Path, help="released .pth, or a folder of ours")
    command.positional("target", type=Path, help="a .pth for the released layout, else a folder")

    def work(request: Request[ModelConfig]) -> None:
        is_given = request.file is not None or request.overrides
        for line in convert(request.flags.source, request.flags.target, request.config if is_given else None):
            print(line)
        print(f"wrote {request.flags.target}")

    return command.run(work, argv)


if __name__ == "__main__":
    sys.exit(main())
