"""Finds the checkpoint that a path stands for: a file, a checkpoint's folder, or one of a run's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from hiervl_train.checkpoint.files import COMPLETE
from hiervl_train.checkpoint.manager import BEST
from hiervl_train.models.released import CheckpointError
from hiervl_train.models.storage import WEIGHTS

_NAME = re.compile(r"step-\d{8,}")


def find_checkpoint(path: Path, which: Literal["best", "newest"] = "best") -> Path:
    """Return the checkpoint that a path stands for: itself, or one of the run's; raise `CheckpointError`."""
    if path.is_file() or (path / WEIGHTS).is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not folder.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    sealed = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / COMPLETE).is_file()]
    if not sealed:
        raise CheckpointError(f"{path}: neither a checkpoint nor a run with a whole one (step-…/{COMPLETE})")
    newest = max(sealed, key=lambda p: int(p.name.removeprefix("step-")))
    if which == "newest" or not (folder / BEST).is_file():
        return newest
    try:
        best = folder / str(json.loads((folder / BEST).read_bytes())["folder"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / BEST}: damaged: {error}; which=newest does without it") from None
    return best if best in sealed else newest
