"""States of made-up runs for the tests of checkpoints, in which every value follows from the step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiervl_train.checkpoint.manager import Checkpoints, SaveConfig
from hiervl_train.checkpoint.state import OptimizerState, RunState
from hiervl_train.random_states import RandomStates

BY_STEPS = SaveConfig(every_steps=10, every_minutes=None)
SIZES = {"video.weight": (7, 5), "video.bias": (7,), "aggregator.position": (1, 3, 2)}


def tiny_state(step: int, *, sizes: Mapping[str, tuple[int, ...]] = SIZES, **changes: Any) -> RunState:
    """Return a state whose every tensor is filled with its step."""
    filled: dict[str, Tensor] = {name: torch.full(size, float(step)) for name, size in sizes.items()}
    fields: dict[str, Any] = {
        "step": step,
        "model": filled,
        "ema": filled,
        "optimizer": OptimizerState(
            tensors={f"{name}.exp_avg": tensor for name, tensor in filled.items()},
            groups=[{"parameters": list(filled), "lr": 1e-3 / 3, "betas": [0.9, 0.999]}],
        ),
        "random": RandomStates.take(),
        "cursors": {"child": {"epoch": 0, "batch": step, "order": 2**40 + 1}},
        "counters": {"skipped": step, "loss": step / 3},
        "model_config": {"embed_dim": 5},
        "extra_files": {"tokenizer.json": b'{"step": %d}' % step},
        "identity": {"seed": 7, "world": 1},
    }
    return RunState(**(fields | changes))


def assert_is_of_step(state: RunState, step: int) -> None:
    """Check that every part of a state is of one and the same step."""
    expected = tiny_state(step)
    assert state.step == step
    assert state.ema is not None and expected.ema is not None
    for mine, theirs in (
        (state.model, expected.model),
        (state.ema, expected.ema),
        (state.optimizer.tensors, expected.optimizer.tensors),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for field in ("cursors", "counters", "model_config", "extra_files", "identity"):
        assert getattr(state, field) == getattr(expected, field)
    assert list(state.optimizer.groups) == list(expected.optimizer.groups)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save_states(
    folder: Path, *steps: int, config: SaveConfig = BY_STEPS, scores: Mapping[int, float] | None = None
) -> None:
    """Save made-up states of these steps."""
    with Checkpoints(folder, config) as checkpoints:
        for step in steps:
            checkpoints.save(tiny_state(step), score=(scores or {}).get(step))


def latest(folder: Path) -> RunState | None:
    with Checkpoints(folder, BY_STEPS) as checkpoints:
        return checkpoints.load_latest()


def flip_bit(path: Path) -> None:
    """Damage a file without changing its size."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x10  # in a tensor, not in the header
    path.write_bytes(data)
