"""Random generators continue exactly from saved states."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hiervl_train.checkpoint.manager import Checkpoints
from hiervl_train.random_states import RandomStates
from tests.hiervl_train.run_states import BY_STEPS, tiny_state


def test_random_numbers_continue_after_a_restore(tmp_path: Path) -> None:
    def draw() -> tuple[Any, ...]:
        return (
            torch.rand(2).tolist(),
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.standard_normal(),
        )

    draw()  # both Gaussian generators now have the second number of a pair
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(tiny_state(1, random=RandomStates.take()))
        expected = [draw() for _ in range(3)]
        state = checkpoints.load_latest()
    assert state is not None
    state.random.restore()
    assert [draw() for _ in range(3)] == expected
