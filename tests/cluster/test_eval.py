"""`sbatch cluster/eval.sbatch` on a real cluster: a checkpoint's scores on two nodes are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.hiervl_train.runs import finished
from tests.paths import REPOSITORY


def scores(folder: Path) -> dict[str, object]:
    """Return the scores of each benchmark that was run."""
    found = {path.parent.name: json.loads(path.read_bytes())["scores"] for path in folder.glob("*/scores.json")}
    overview = {result["benchmark"]: result["scores"] for result in json.loads((folder / "scores.json").read_bytes())}
    assert found and found == overview
    return found


@pytest.mark.slow
def test_every_benchmark_is_scored_on_two_nodes_as_in_one_process(slurm: Slurm, embedded: Path, tmp_path: Path) -> None:
    finished(embedded, tmp_path / "run", "run.max_steps=5")
    arguments = [
        "--checkpoint",
        str(tmp_path / "run"),
        "--shards",
        str(embedded),
        "data.workers=1",
        "cache=null",
        "report=false",
        "max_missing_fraction=1.0",
    ]
    size = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=3G", "--time=10")
    log = tmp_path / "log"
    job = slurm.wait(
        slurm.submit(*size, f"--output={log}", "cluster/eval.sbatch", *arguments, f"output={tmp_path}/cluster"),
        seconds=200,
    )
    assert job["JobState"] == "COMPLETED", log.read_text()
    entry = [sys.executable, str(REPOSITORY / "eval" / "all.py")]
    subprocess.run([*entry, *arguments, f"output={tmp_path}/local"], check=True, cwd=REPOSITORY, capture_output=True)
    assert scores(tmp_path / "cluster") == scores(tmp_path / "local")
