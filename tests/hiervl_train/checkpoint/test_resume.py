"""A run resumes from its newest checkpoint, those of earlier versions included, with its whole state."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hiervl_train.checkpoint.manager import Checkpoints, SaveConfig
from hiervl_train.checkpoint.resume import Resumer
from hiervl_train.data import StepLoaders
from hiervl_train.models import HierVL
from hiervl_train.models.errors import CheckpointError
from hiervl_train.optim import EMA, OptimConfig, build_optimizer
from hiervl_train.task import Task
from hiervl_train.tokenizer import Tokenizer
from tests.hiervl_train.runs import FIRST_VERSION

STEP = "step-00000004"


class RecordedLoaders(StepLoaders):
    """Loaders that only keep the cursors that they are given."""

    def __init__(self) -> None:
        super().__init__({})
        self.loaded: dict[str, Any] = {}

    def load_cursors(self, cursors: Mapping[str, Mapping[str, int]]) -> None:
        self.loaded = dict(cursors)

    def cursors(self) -> dict[str, dict[str, int]]:
        return self.loaded


def task_of(folder: Path) -> Task:
    """Return a task with the model of a checkpoint, initialised differently."""
    torch.manual_seed(5)
    return Task(
        model=HierVL(HierVL.from_checkpoint(folder).config),
        tokenizer=Tokenizer.from_pretrained(folder, max_length=16),
        loaders=RecordedLoaders(),
        steps={},
        step_type=lambda step: "child",
        steps_per_epoch=10,
        total_steps=10,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIRST_VERSION, tmp_path / "run"))


def test_a_run_of_the_first_version_resumes_with_its_whole_state_and_saves_it_again(run: Path) -> None:
    old = run / "checkpoints" / STEP
    task = task_of(old)
    optimizer = build_optimizer(task.model.parameters(), OptimConfig())
    ema = EMA(task.model, 0.9)
    with Checkpoints(run / "checkpoints", SaveConfig()) as checkpoints:
        resumer = Resumer(task, optimizer, ema, checkpoints, seed=0)
        assert resumer.resume() == 4
        drawn = torch.rand(3)
        resumer.resume()
        assert torch.equal(torch.rand(3), drawn), "the random states are restored"
        resumer.resume()
        resumer.save(5, score=None, skipped=0)
    new = run / "checkpoints" / "step-00000005"
    for name in ("model", "ema", "optimizer", "random-00000"):
        before, after = load_file(old / f"{name}.safetensors"), load_file(new / f"{name}.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), name
    states = [json.loads((folder / "state.json").read_bytes()) for folder in (old, new)]
    assert states[0]["cursors"] == states[1]["cursors"] != {}
    assert states[0]["optimizer"]["scalars"] == states[1]["optimizer"]["scalars"]
    assert (old / "tokenizer.json").read_bytes() == (new / "tokenizer.json").read_bytes()


def test_a_checkpoint_of_another_model_is_an_error_that_names_the_remedy(run: Path) -> None:
    task = task_of(run / "checkpoints" / STEP)
    task.model.video.norm = torch.nn.LayerNorm(9)
    optimizer = build_optimizer(task.model.parameters(), OptimConfig())
    with (
        Checkpoints(run / "checkpoints", SaveConfig()) as checkpoints,
        pytest.raises(CheckpointError, match=r"(?s)step 4 does not fit this configuration.*run\.folder"),
    ):
        Resumer(task, optimizer, None, checkpoints, seed=0).resume()
