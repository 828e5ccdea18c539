"""Running extractions as tests do: in this process, or as the command."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from configs.loading import from_dict
from hiervl_train.distributed import DistributedContext
from hiervl_train.features import ExtractConfig, Outcome, extract_on_ranks
from tests.paths import REPOSITORY

SMALL = {"sample": {"frames": 2, "windows": 3}, "batch": 4, "data": {"workers": 0}}


def config_of(made: Path, **changes: Any) -> ExtractConfig:
    """Return the configuration of an extraction of the dataset in `made` by its checkpoint."""
    data = SMALL["data"] | {"root": str(made / "shards")} | changes.pop("data", {})
    return from_dict(ExtractConfig, {**SMALL, "checkpoint": str(made / "checkpoint"), **changes, "data": data})


def extract(config: ExtractConfig) -> Outcome:
    """Extract in this process."""
    return extract_on_ranks(config, DistributedContext(), on_start=lambda *_: None, on_samples=lambda _: None)


def command(made: Path, *words: str, ranks: int = 1) -> list[str]:
    """Return the command of an extraction, on torchrun's ranks if there are several."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    settings = [f"data.root={made / 'shards'}", f"checkpoint={made / 'checkpoint'}", "sample.frames=2", "batch=4"]
    entry = str(REPOSITORY / "preprocessing" / "extract_features.py")
    return [sys.executable, *launch, entry, *settings, "sample.windows=3", "data.workers=0", *words]


def run(made: Path, *words: str, ranks: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(made, *words, ranks=ranks), check=check, capture_output=True, text=True, env=environment, cwd=made
    )


def digests(folder: Path) -> dict[str, str]:
    """Return path → sha256 of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
