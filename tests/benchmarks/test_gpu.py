"""The GPU benchmark runs with nothing but torch, timm and transformers, on one process and on several ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.hiervl_train.runs import free_port
from tests.paths import REPOSITORY

pytestmark = pytest.mark.medium
SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"
SMALL = ["--size", "tiny", "--clips", "4", "--steps", "1", "--repeats", "1", "--warmup", "1"]
# Started before the benchmark: imports only what a bare machine has, and fails on the project's other packages.
BARE = """
import importlib.machinery, runpy, sys
finder, missing = importlib.machinery.PathFinder, {missing!r}
find = finder.find_spec
finder.find_spec = staticmethod(lambda name, *others: None if name.split(".")[0] in missing else find(name, *others))
sys.argv = [{script!r}, *{arguments!r}]
sys.path.insert(0, {folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""
MISSING = (
    *(
        "av",
        "pydantic",
        "pydantic_core",
        "rich",
        "argcomplete",
        "pyarrow",
        "webdataset",
        "fsspec",
        "simplejpeg",
        "bokeh",
    ),
    *("decord", "s3fs", "wids", "tensorboard", "wandb", "pandas", "dask", "open_clip", "imageio_ffmpeg", "psutil"),
)


def bare(arguments: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the benchmark in a process that has only torch, timm, transformers and what these need."""
    code = BARE.format(missing=MISSING, script=str(SCRIPT), arguments=arguments, folder=str(SCRIPT.parent))
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=variables, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_every_row_runs_without_the_projects_other_packages(tmp_path: Path) -> None:
    process = bare([*SMALL, "--out", str(tmp_path / "out.json")])
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["rows"]) == 13 and all(row["step_ms"] > 0 for row in found["rows"])
    assert {"eager", "concatenated", "divided", "pairwise", "joint_half", "two_parts"} <= {
        r["row"] for r in found["rows"]
    }
    assert all(row["row"] in output for row in found["rows"])


def test_several_ranks_measure_the_ways_of_averaging(tmp_path: Path) -> None:
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    arguments = [*SMALL, "--out", str(tmp_path / "out.json")]
    processes = [bare(arguments, {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["after", "overlapped", "bf16_gradients", "sharded"]


def test_the_former_attention_has_the_values_of_the_present_one() -> None:
    code = (
        "import sys, runpy, torch\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        f"g = runpy.run_path({str(SCRIPT)!r}, run_name='gpu')\n"
        "torch.manual_seed(0)\n"
        "model = g['HierVL'](g['TINY']).double().eval()\n"
        "for p in model.parameters(): p.data += 0.1 * torch.randn_like(p)\n"
        "video = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)\n"
        "before = model.encode_video(video)\n"
        "g['use_concatenation'](model)\n"
        "print(float((model.encode_video(video) - before).abs().max().detach()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1e-9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_step_waits_on_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *SMALL, "--rows", "eager", "joint", "waiting", "--out", str(tmp_path / "o")]
    assert subprocess.run(command).returncode == 0
    assert [row["waits"] for row in json.loads((tmp_path / "o").read_text())["rows"]] == [False, False, True]
