"""A checkpoint loads whatever wrappers its names went through; of what is no wrapper, the message names the prefix."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs import loading
from hiervl_train.checkpoint.open import OpenConfig, open_checkpoint
from hiervl_train.models import HierVL, convert
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.prefixes import ANYWHERE, AT_START, plain_name
from hiervl_train.models.storage import save
from tests.eval.checkpoints import tiny_checkpoint
from tests.hiervl_train.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> HierVL:
    return tiny_model(dtype=torch.float32)


def store(tensors: dict[str, Tensor], model: HierVL, folder: Path, layout: str) -> Path:
    """Write tensors as a checkpoint of one layout; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "released":
        torch.save({"state_dict": tensors}, folder / "checkpoint.pth")
        return folder / "checkpoint.pth"
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.yaml").write_text(loading.to_yaml(model.config))
    return folder


def names_of(model: HierVL, layout: str) -> dict[str, Tensor]:
    if layout == "ours":
        return {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {k.removeprefix("module."): v.clone() for k, v in convert.to_released(model)["state_dict"].items()}


def assert_same(found: HierVL, model: HierVL) -> None:
    theirs = found.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def wrapped(name: str, rng: random.Random, start: list[str]) -> str:
    """Return a name behind the parts in `start`, with parts of wrappers between any two of its own."""
    first, *others = name.split(".")
    parts = [*start, first]
    if others and first in ("video", "text", "aggregator", "video_model", "text_model", "aggregation"):
        parts += rng.choice([[], [], ["module"], ["_orig_mod", "module"]])
    for part in others:
        parts += rng.choices(ANYWHERE, k=rng.choice([0, 0, 0, 1, 2]))
        parts.append(part)
    return ".".join(parts)


@pytest.mark.parametrize("layout", ["ours", "released"])
@pytest.mark.parametrize("seed", range(25))
def test_a_checkpoint_loads_behind_any_stack_of_wrappers(model: HierVL, tmp_path: Path, layout: str, seed: int) -> None:
    rng = random.Random(seed)
    start = rng.choices([*ANYWHERE, *AT_START], k=rng.randint(1, 6))
    # One stack for all names, or as of a run that wrapped some of its parts differently: one for each.
    is_mixed = seed % 5 == 0
    tensors = {}
    for name, value in names_of(model, layout).items():
        own = rng.choices([*ANYWHERE, *AT_START], k=rng.randint(0, 4)) if is_mixed else start
        tensors[wrapped(name, rng, own)] = value
    path = store(tensors, model, tmp_path, layout)
    found, report = HierVL.load(path, model.config if layout == "released" else None)
    assert_same(found, model)
    assert not report.fresh and not report.resized


def test_the_names_of_both_layouts_are_plain(model: HierVL) -> None:
    for layout in ("ours", "released"):
        assert all(plain_name(name) == name for name in names_of(model, layout))


def test_real_wrappers_are_seen_through(model: HierVL, tmp_path: Path) -> None:
    compiled = torch.compile(nn.ModuleDict({"module": model}))
    tensors = {name: value.detach().clone() for name, value in compiled.state_dict().items()}
    assert all(name.startswith("_orig_mod.module.") for name in tensors)
    found, _ = HierVL.load(store(tensors, model, tmp_path, "ours"))
    assert_same(found, model)


@pytest.mark.parametrize("layout", ["ours", "released"])
@pytest.mark.parametrize("prefix", ["net.", "encoder_q.", "ema.shadow.", "module.net.", "wrapper._orig_mod."])
def test_a_prefix_of_no_wrapper_is_named_with_the_remedy(
    model: HierVL, tmp_path: Path, layout: str, prefix: str
) -> None:
    tensors = {f"{prefix}{name}": value for name, value in names_of(model, layout).items()}
    path = store(tensors, model, tmp_path, layout)
    left = plain_name(f"{prefix}x").removesuffix("x")
    with pytest.raises(CheckpointError) as error:
        HierVL.load(path, model.config if layout == "released" else None)
    assert f"its names begin with {left!r}, which is not part of the model" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    # The remedy works.
    again = {name.replace(left, ""): value for name, value in tensors.items()}
    found, _ = HierVL.load(store(again, model, tmp_path, layout), model.config if layout == "released" else None)
    assert_same(found, model)


def test_two_different_tensors_of_one_name_are_refused(model: HierVL, tmp_path: Path) -> None:
    ours = names_of(model, "ours")
    same = {f"module.{name}": value.clone() for name, value in ours.items()}
    found, _ = HierVL.load(store({**ours, **same}, model, tmp_path / "same", "ours"))
    assert_same(found, model)
    same["module.video.cls_token"] += 1
    with pytest.raises(CheckpointError, match=r"are different tensors of one name, video\.cls_token"):
        HierVL.load(store({**ours, **same}, model, tmp_path / "other", "ours"))


def test_it_opens_for_evaluation_too(embedded: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, embedded)
    before = open_checkpoint(folder, OpenConfig()).model
    weights = folder / "model.safetensors"
    save_file({f"module.module._orig_mod.{name}": value for name, value in load_file(weights).items()}, weights)
    assert_same(open_checkpoint(folder, OpenConfig()).model, before)
    assert save(before, tmp_path / "saved").is_dir()
