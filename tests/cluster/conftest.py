"""What the cluster's tests share: one SLURM cluster for each process of a test run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.slurm import Slurm, running


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A cluster of two nodes, without GPUs; up in a second."""
    with running() as slurm:
        yield slurm
