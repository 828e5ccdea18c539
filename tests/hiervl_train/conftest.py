"""Shared set-up: torchvision's declarations before any test imports timm, one thread, results of several ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hiervl_train.models.torchvision_ops  # noqa: F401
from tests.hiervl_train.ranks import WORLD
from tests.paths import REPOSITORY

torch.set_num_threads(1)  # as two tests may run at once


@pytest.fixture(scope="session")
def rank_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what 4 ranks, and then the first 2 of them, computed: see `ranks`."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.hiervl_train.ranks"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(WORLD), str(folder)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(errors)
    return folder
