"""The files of a checkpoint: models and tensors are restored exactly, damage is detected and named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hiervl_train.checkpoint.manager import Checkpoints
from hiervl_train.models import HierVL
from hiervl_train.models.errors import CheckpointError
from tests.hiervl_train.run_states import BY_STEPS, assert_is_of_step, flip_bit, latest, names, save_states, tiny_state
from tests.hiervl_train.tiny import tiny_model

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "state.json",
    "random-00000.safetensors",
    "config.yaml",
    "tokenizer.json",
    "complete.json",
]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_checkpoint_folder_loads_as_a_model(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    state = tiny_state(5, model=model.state_dict(), model_config=model.config)
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(state)
    again = HierVL.from_checkpoint(tmp_path / "step-00000005")
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert (tmp_path / "step-00000005" / "tokenizer.json").read_bytes() == b'{"step": 5}'


def test_every_dtype_and_layout_is_restored(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3).bfloat16(),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "transposed": torch.arange(6.0).view(2, 3).t(),
    }
    tied = tensors | {"tied": tensors["double"]}
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(tiny_state(1, model=tied))
        state = checkpoints.load_latest()
    assert state is not None and state.model.keys() == tied.keys()
    for name, tensor in tied.items():
        assert state.model[name].dtype == tensor.dtype
        assert torch.equal(state.model[name], tensor)


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_not_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    save_states(tmp_path, 10, 20)
    damage(tmp_path / "step-00000020" / name)
    state = latest(tmp_path)
    assert state is not None
    assert_is_of_step(state, 10)
    warning = caplog.records[0].getMessage()
    assert warning.startswith("checkpoint step-00000020 is skipped: ")
    assert str(tmp_path / "step-00000020" / name) in warning
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints, pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / "step-00000020")


@pytest.mark.parametrize("name", ["model.safetensors", "../escape", ".hidden", "random-00000.safetensors"])
def test_an_extra_file_must_have_a_plain_unused_name(tmp_path: Path, name: str) -> None:
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints, pytest.raises(ValueError, match="extra file"):
        checkpoints.save(tiny_state(1, extra_files={name: b""}))
