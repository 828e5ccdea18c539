"""Datasets that the tests of shards share; those that change one work on a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shards.dataset import Dataset, open_dataset
from tests.shards import samples
from tests.shards.coded import coded_dataset, coded_summary


@pytest.fixture(scope="session")
def sample_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The dataset of `samples.make_dataset`, not to be changed."""
    return samples.make_dataset(tmp_path_factory.mktemp("samples"))


@pytest.fixture
def dataset_copy(sample_dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of `sample_dataset`."""
    return open_dataset(shutil.copytree(sample_dataset.root, tmp_path / "shards"))


@pytest.fixture(scope="session")
def coded_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 29 coded clips in four shards and five summaries of 3 to 19 s, not to be changed."""
    folder = tmp_path_factory.mktemp("coded")
    summaries = [coded_summary(i, seconds=3 + 4 * i, narrations=3 * i) for i in range(5)]
    coded_dataset(folder, (9, 5, 8, 7), summaries=summaries)
    return folder
