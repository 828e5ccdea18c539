"""A path is opened as the checkpoint that it stands for; damaged and unsuitable ones are errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hiervl_train.checkpoint import files
from hiervl_train.checkpoint.open import OpenConfig, find_checkpoint, open_checkpoint
from hiervl_train.models import HierVL, InitConfig, TextConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.initialise import initialise
from hiervl_train.models.pixels import normalise
from hiervl_train.tokenizer import TokenizerError
from tests.eval.checkpoints import tiny_checkpoint
from tests.hiervl_train.runs import FIRST_VERSION


@pytest.fixture(scope="module")
def checkpoint(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), embedded)


@pytest.mark.parametrize(("average", "weights"), [(True, "average"), (False, "weights")])
def test_a_checkpoint_of_the_first_version_keeps_its_outputs(average: bool, weights: str) -> None:
    opened = open_checkpoint(FIRST_VERSION, OpenConfig(average=average))
    assert (opened.path, opened.run) == (FIRST_VERSION / "checkpoints" / "step-00000004", FIRST_VERSION)
    assert (opened.sample["frames"], opened.sample["windows"]) == (2, 2)
    expected = json.loads((FIRST_VERSION / "expected.json").read_bytes())[weights]
    frames_BTCHW = (torch.arange(2 * 2 * 3 * 16 * 16) * 37 % 251).to(torch.uint8).view(2, 2, 3, 16, 16)
    with torch.no_grad():
        video_BD = opened.model.encode_video(normalise(frames_BTCHW))
        text_BD = opened.model.encode_text(*opened.tokenizer(["#C C picks up the red cup", "a square moves left"]))
        summary_BD = opened.model.aggregate(video_BD[None])
    for name, embeddings in (("video", video_BD), ("text", text_BD), ("summary", summary_BD)):
        torch.testing.assert_close(embeddings, torch.tensor(expected[name]), rtol=0, atol=2e-6)


def test_a_new_run_starts_from_a_run_of_the_first_version() -> None:
    path = find_checkpoint(FIRST_VERSION)
    model = HierVL(HierVL.from_checkpoint(path).config)
    (report,) = initialise(model, InitConfig(), path)
    assert not report.lines()
    stored = load_file(path / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def seal(folder: Path, step: int) -> None:
    """Write the file that marks a checkpoint as complete."""
    files.seal(folder, step=step, world=1, save=f"made up {step}", names=["model.safetensors", "config.yaml"])


@pytest.mark.medium
def test_a_run_stands_for_its_best_or_newest_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    for step in (5, 10):
        folder = shutil.copytree(checkpoint, tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
        seal(folder, step)
    shutil.copytree(checkpoint, tmp_path / "run" / "checkpoints" / "step-00000015")  # not sealed, so incomplete
    opened = open_checkpoint(tmp_path / "run")
    assert (opened.path.name, opened.run) == ("step-00000010", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.json").write_text('{"folder": "step-00000005", "step": 5, "score": 1.0}')
    assert open_checkpoint(tmp_path / "run").path.name == "step-00000005"
    assert open_checkpoint(tmp_path / "run", OpenConfig(which="newest")).path.name == "step-00000010"


@pytest.mark.medium
def test_the_average_of_the_weights_is_used_if_there_is_one(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    plain = open_checkpoint(folder)
    names = {name for name, _ in plain.model.named_parameters()}
    weights = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items() if name in names}
    save_file(weights, folder / "ema.safetensors")
    averaged = open_checkpoint(folder)
    assert averaged.digest != plain.digest
    assert all(torch.equal(tensor, weights[name]) for name, tensor in averaged.model.named_parameters())
    assert open_checkpoint(folder, OpenConfig(average=False)).digest == plain.digest


@pytest.mark.medium
def test_damaged_weights_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "step-00000005")
    seal(folder, 5)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="the file is damaged"):
        open_checkpoint(folder)


@pytest.mark.medium
def test_more_frames_than_slots_extend_them_with_zeros(checkpoint: Path) -> None:
    model = open_checkpoint(checkpoint, OpenConfig(frames=5)).model
    assert model.config.num_frames == 5
    assert not model.video.temporal_embed[:, 2:].any()


@pytest.mark.medium
def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(embedded: Path, tmp_path: Path) -> None:
    small = TextConfig(vocab_size=9, max_position_embeddings=64, n_layers=1, n_heads=2, dim=16, hidden_dim=32)
    with pytest.raises(TokenizerError, match="embeddings for 9"):
        open_checkpoint(tiny_checkpoint(tmp_path, embedded, text=small))
