"""The dataset that the tests of verify damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.dataset import Dataset


@pytest.fixture
def root(dataset_copy: Dataset) -> Path:
    """The folder of a sound dataset of six shards."""
    return dataset_copy.root
