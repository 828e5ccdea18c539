"""A small dataset and a checkpoint of a small model, of which several tests extract features."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.eval.small import save_small_checkpoint, small_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset in `shards`, the checkpoint in `checkpoint`."""
    folder = tmp_path_factory.mktemp("features")
    small_dataset(folder / "shards")
    save_small_checkpoint(folder / "checkpoint", folder / "shards")
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "made"))
