"""Released checkpoints give the released outputs, execute nothing, and every tensor is accounted for by name."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import loading
from hiervl_train.models import AggregatorConfig, HierVL, ModelConfig, convert, released
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.storage import StoredWeights, fit, read_weights, save
from tests.hiervl_train.tiny import GOLDEN, needs_golden, random_text, random_video, tiny_config, tiny_model


def golden_config(**changes) -> ModelConfig:
    config = ModelConfig.from_dict(json.loads((GOLDEN / "config.json").read_text()))
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def assert_golden(model: HierVL, golden: dict[str, torch.Tensor]) -> None:
    def close(ours, name):
        torch.testing.assert_close(ours, golden[name], rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")

    with torch.no_grad():
        video = model.encode_video(golden["video"])
        text = model.encode_text(golden["input_ids"], golden["attention_mask"])
        close(video, "video_embed")
        close(text, "text_embed")
        close(model.aggregate(video.unflatten(0, (2, 16))), "video_parent")
        close(model.aggregate(text.unflatten(0, (2, 16))), "text_parent")
        close(model.aggregate(golden["video_embed"].unflatten(0, (2, 16))), "video_parent_forward")


@needs_golden
def test_golden_outputs(golden):
    model = HierVL.from_checkpoint(GOLDEN / "checkpoint.pth", golden_config())
    assert not model.training
    assert_golden(model, golden)


@needs_golden
def test_golden_outputs_with_more_slots_than_frames(golden):
    """A clip of 4 frames means the same to a model of 16 slots: new slots are zero and only the first are used."""
    model, report = HierVL.load(GOLDEN / "checkpoint.pth", golden_config(num_frames=16))
    assert report.resized == ("video.temporal_embed from 4 to 16 frames: the new ones are zero",)
    assert_golden(model.eval(), golden)
    assert not model.video.temporal_embed[:, 4:].any()
    fewer, report = HierVL.load(GOLDEN / "checkpoint.pth", golden_config(num_frames=2))
    assert report.resized == ("video.temporal_embed from 4 to 2 frames: the first are kept",)
    assert torch.equal(fewer.video.temporal_embed, model.video.temporal_embed[:, :2])


@needs_golden
def test_conversion_to_ours_and_back_keeps_weights_and_outputs(golden, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back.pth"
    arguments = [str(GOLDEN / "checkpoint.pth"), str(ours), "--config", str(GOLDEN / "config.json")]
    assert convert.main(arguments) == 0
    assert "ignored aggregation.head.weight" in capsys.readouterr().out
    assert_golden(HierVL.from_checkpoint(ours), golden)
    assert_golden(HierVL.from_checkpoint(ours / "model.safetensors"), golden)

    assert convert.main([str(ours), str(back)]) == 0
    original = released.read(GOLDEN / "checkpoint.pth")["state_dict"]
    content = torch.load(back, weights_only=True)  # holds plain data only
    assert set(content) == {"arch", "epoch", "state_dict", "optimizer", "monitor_best", "config"}
    assert {n: t.shape for n, t in content["state_dict"].items()} == {n: t.shape for n, t in original.items()}
    unused = {f"module.{name}" for name, _ in released.unused_parts(golden_config())}
    for name, tensor in content["state_dict"].items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if name in unused else original[name]), name
    assert_golden(HierVL.from_checkpoint(back, golden_config()), golden)


@pytest.mark.medium
@needs_golden
def test_convert_runs_as_a_module_and_names_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "hiervl_train.models.convert", str(GOLDEN / "checkpoint.pth"), str(tmp_path / "o")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3])
    assert run.returncode == 2
    assert "missing video_model.blocks.2.norm1.weight" in run.stderr and "Traceback" not in run.stderr
    assert "sizes come from the given configuration" in run.stderr


@needs_golden
def test_unused_tensors_are_listed_and_logged_by_name(caplog):
    HierVL.from_checkpoint(GOLDEN / "checkpoint.pth", golden_config())
    _, report = HierVL.load(GOLDEN / "checkpoint.pth", golden_config())
    assert set(report.ignored) == {name for name, _ in released.unused_parts(golden_config())}
    assert report.fresh == report.resized == ()
    assert all(name in caplog.text for name in report.ignored)
    _, report = HierVL.load(GOLDEN / "checkpoint.pth", golden_config(aggregator=None))
    assert "aggregation.blocks.0.attn.qkv.weight" in report.ignored


def test_the_published_size_has_the_released_names_and_shapes():
    listing = GOLDEN / "released_checkpoint_keys.json"
    if not listing.is_file():
        pytest.skip("the reference file ../shared/golden/released_checkpoint_keys.json is not here")
    expected = {name: (tuple(shape), dtype) for name, shape, dtype in json.loads(listing.read_text())}
    with torch.device("meta"):
        model = HierVL()
        state = convert.to_released(model)["state_dict"]
    shapes = {name.removeprefix("module."): (tuple(t.shape), str(t.dtype)) for name, t in state.items()}
    assert shapes == expected

    theirs = {name: torch.empty(shape, device="meta") for name, (shape, _) in expected.items()}
    names = {released.to_ours(name) or name: name for name in theirs}
    tensors = {ours: theirs[name] for ours, name in names.items()}
    stored = StoredWeights(path=listing, config=model.config, tensors=tensors, names=names, is_released=True)
    _, report = fit(stored, model.state_dict())
    assert set(report.ignored) == {name for name, _ in released.unused_parts(model.config)}


def write(path: Path, model: HierVL, **content) -> Path:
    torch.save(convert.to_released(model) | content, path)
    return path


def small() -> HierVL:
    return tiny_model(dtype=torch.float32)


def test_missing_tensors_and_wrong_shapes_are_errors_by_their_released_names(tmp_path):
    state = convert.to_released(small())["state_dict"]
    del state["module.vid_proj.0.bias"]
    state["module.video_model.cls_token"] = torch.zeros(1, 1, 5)
    path = write(tmp_path / "bad.pth", small(), state_dict=state)
    with pytest.raises(CheckpointError) as error:
        HierVL.from_checkpoint(path, small().config)
    assert error.value.problems == (
        "missing vid_proj.0.bias",
        "video_model.cls_token has shape (1, 1, 5) instead of (1, 1, 16)",
    )
    assert all(problem in str(error.value) for problem in error.value.problems)


def test_a_long_list_of_problems_is_truncated_in_the_message_only(tmp_path):
    path = write(tmp_path / "small.pth", small())
    with pytest.raises(CheckpointError, match=r"config.*and \d+ more") as error:
        HierVL.from_checkpoint(path)
    assert len(error.value.problems) > 100 and len(str(error.value)) < 2000


def test_a_missing_aggregator_is_allowed_only_if_requested(tmp_path):
    path = write(tmp_path / "egovlp.pth", tiny_model(tiny_config(aggregator=None), dtype=torch.float32))
    with pytest.raises(CheckpointError, match=r"missing aggregation\.cls_token"):
        HierVL.from_checkpoint(path, tiny_config())
    model = tiny_model(seed=4, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = model.load_weights(read_weights(path), may_be_fresh="aggregator.")
    assert report.fresh == tuple(name for name in before if name.startswith("aggregator."))
    assert torch.equal(model.aggregator.pos_embed, before["aggregator.pos_embed"])
    assert not torch.equal(model.video.cls_token, before["video.cls_token"])


def test_an_incomplete_aggregator_is_an_error(tmp_path):
    state = convert.to_released(small())["state_dict"]
    del state["module.aggregation.norm.bias"]
    path = write(tmp_path / "half.pth", small(), state_dict=state)
    with pytest.raises(CheckpointError, match=r"missing aggregation\.norm\.bias"):
        small().load_weights(read_weights(path), may_be_fresh="aggregator.")


def test_models_without_aggregator_weights_convert_and_back(tmp_path):
    for aggregator in (AggregatorConfig(kind="average"), None):
        model = tiny_model(tiny_config(aggregator=aggregator), dtype=torch.float32).eval()
        again = HierVL.from_checkpoint(write(tmp_path / "a.pth", model), model.config)
        video = random_video(1, 2, 3, 16, 16, dtype=torch.float32)
        assert torch.equal(again.encode_video(video), model.encode_video(video))


def test_ours_has_its_configuration_and_is_written_atomically(tmp_path):
    model = small().eval()
    save(model, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "model.safetensors"]
    again = HierVL.from_checkpoint(tmp_path / "run")
    assert again.config == model.config
    ids, mask = random_text(3, 5)
    assert torch.equal(again.encode_text(ids, mask), model.encode_text(ids, mask))
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(loading.ConfigError, match=r"config\.yaml"):
        HierVL.from_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "absent"])
def test_a_missing_checkpoint_is_an_error(tmp_path, name):
    with pytest.raises((CheckpointError, loading.ConfigError), match="absent"):
        HierVL.from_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 half an archive"])
def test_damaged_files_are_errors_that_name_the_file(tmp_path, content):
    for name in ("bad.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        (tmp_path / "config.yaml").write_text("{}")
        with pytest.raises(CheckpointError, match=name):
            HierVL.from_checkpoint(tmp_path / name)


class ConfigParser:
    """Stands for the released class: an object with state, of a module that readers do not have."""

    def __init__(self, value: object) -> None:
        self.value = value


class Attack:
    """Asks whoever unpickles it to run a command, or any other callable."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
def test_unknown_classes_are_replaced_by_stand_ins(tmp_path, zipped):
    model = small()
    ConfigParser.__module__ = "parse_config_that_nobody_has"
    module = type(sys)("parse_config_that_nobody_has")
    module.ConfigParser = ConfigParser
    sys.modules[module.__name__] = module
    try:
        content = convert.to_released(model) | {"config": ConfigParser([Path("/a"), {"b": ConfigParser(1)}])}
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    finally:
        del sys.modules[module.__name__]
        ConfigParser.__module__ = __name__
    read = released.read(tmp_path / "c.pth")
    assert repr(read["config"]) == "<stand-in for parse_config_that_nobody_has.ConfigParser>"
    assert not hasattr(read["config"], "value")
    again = HierVL.from_checkpoint(tmp_path / "c.pth", model.config)
    assert torch.equal(again.video.cls_token, model.video.cls_token)


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
@pytest.mark.parametrize("function", [os.system, subprocess.getoutput, eval, exec], ids=lambda f: f.__name__)
def test_a_malicious_pickle_executes_nothing(tmp_path, monkeypatch, zipped, function):
    """`weights_only` refuses os.system by name; any other callable is a stand-in, and calling it does nothing."""
    proof = tmp_path / "ran"
    code = f"touch {proof}" if function in (os.system, subprocess.getoutput) else f"open({str(proof)!r}, 'w').close()"
    content = convert.to_released(small()) | {"config": Attack(function, code)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    try:
        released.read(tmp_path / "evil.pth")
    except CheckpointError as error:
        assert "evil.pth" in str(error)
    assert not proof.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert proof.exists(), "the attack would have worked, so the test above says something"


def test_stand_ins_are_removed_after_the_load(tmp_path):
    content = convert.to_released(small()) | {"config": Attack(subprocess.getoutput, "true")}
    torch.save(content, tmp_path / "evil.pth")
    released.read(tmp_path / "evil.pth")
    assert not [name for _, name in map(_pair, torch.serialization.get_safe_globals()) if "getoutput" in name]


def _pair(entry) -> tuple[object, str]:
    return entry if isinstance(entry, tuple) else (entry, getattr(entry, "__name__", ""))
