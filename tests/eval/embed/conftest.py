"""A small dataset and model, embedded by several tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hiervl_train.models import HierVL
from tests.eval.small import small_dataset, small_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed") / "shards"
    small_dataset(folder)
    return folder


@pytest.fixture
def own_root(root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(root, tmp_path / "shards"))


@pytest.fixture
def model() -> HierVL:
    return small_model()
