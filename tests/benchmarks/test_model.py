"""The benchmark compares like with like: its published attention has our values, and it runs and prints JSON."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.hiervl_train.tiny import random_video, tiny_config, tiny_model

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "model.py"


def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_the_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_published_attention_has_our_values_and_gradients():
    ours = tiny_model(tiny_config(img_size=(16, 24)))
    published = benchmark().as_published(copy.deepcopy(ours))
    video = random_video(2, 3, 3, 16, 24)
    for model in (ours, published):
        model.encode_video(video).square().sum().backward()
    torch.testing.assert_close(published.encode_video(video), ours.encode_video(video), rtol=1e-9, atol=1e-9)
    theirs = dict(published.video.named_parameters())
    for name, parameter in ours.video.named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_script_prints_a_table_and_json(tmp_path):
    options = ["--device", "cpu", "--size", "small", "--batches", "2", "--steps", "1", "--warmup", "0"]
    command = [sys.executable, str(SCRIPT), *options, "--cases", "ours_fp32", "--out", str(tmp_path / "out.json")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "without a GPU" in run.stdout and "ours_fp32" in run.stdout
    result = json.loads((tmp_path / "out.json").read_text())
    assert result == json.loads(run.stdout[run.stdout.index("{") :])
    (row,) = result["rows"]
    assert row["step_s"] > 0 and row["peak_memory_gb"] > 0 and row["share_of_matmul_floor"] > 0
