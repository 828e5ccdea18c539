"""`cluster/submit.sh`: a queued job runs the code and configuration of its submission, whatever is edited later."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.paths import REPOSITORY

# In place of the trainer, so that it takes a second: says which code and configuration it is of.
_ENTRY = """\
import json, os, sys
from configs.revision import code_revision
from hiervl_train import marker
folder = sys.argv[-1].removeprefix("run.folder=")
config = open(sys.argv[2]).read()
said = {"code": marker.VALUE, "config": config, "overrides": sys.argv[3:-1], "revision": code_revision()}
with open(f"{folder}/said-{os.environ['SLURM_JOB_ID']}.json", "w") as file:
    json.dump(said, file)
"""
NODE = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=1G", "--time=5")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a history, an untracked file, an ignored one, and a configuration outside."""
    root = tmp_path / "check out"
    shutil.copytree(REPOSITORY / "cluster", root / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    for room in ("configs", "hiervl_train"):
        (root / room).mkdir()
        (root / room / "__init__.py").touch()
    shutil.copy(REPOSITORY / "configs" / "revision.py", root / "configs")
    (root / "hiervl_train" / "entry.py").write_text(_ENTRY)
    (root / ".gitignore").write_text("/runs/\n/data/\n__pycache__/\n.venv\n")
    (root / "data").mkdir()
    (root / "data" / "large.bin").write_bytes(b"0" * 1000)
    (root / ".venv").symlink_to(REPOSITORY / ".venv")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "--quiet", "--message=first")
    (root / "hiervl_train" / "marker.py").write_text("VALUE = 'before'\n")  # untracked
    (tmp_path / "mine.yaml").write_text("lr: before\n")
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def submit(slurm: Slurm, checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return slurm.call("cluster/submit.sh", *arguments, cwd=checkout)


def job_of(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])


def test_later_edits_do_not_reach_a_queued_job_and_a_resumed_one_runs_the_same(slurm: Slurm, checkout: Path) -> None:
    override = "text={a: 1, b: '$(touch /tmp/x) \"quoted\" * ;'}"
    arguments = ["--config=../mine.yaml", "--entry=hiervl_train/entry.py", *NODE, override]
    first = job_of(submit(slurm, checkout, "first", "--hold", *arguments))
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "hiervl_train" / "marker.py").write_text("VALUE = 'after'\n")
    (checkout / "hiervl_train" / "entry.py").write_text("raise SystemExit('edited')\n")
    (checkout / "cluster" / "pretrain.sbatch").write_text("exit 9\n")
    (checkout.parent / "mine.yaml").write_text("lr: after\n")
    git(checkout, "-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-qam", "second")
    run = checkout / "runs" / "first"
    assert f"job {first} still waits" in submit(slurm, checkout, "first", "--resume").stderr
    slurm.call("scontrol", "release", str(first))
    job = slurm.wait(first)
    assert job["JobState"] == "COMPLETED", (run / f"slurm-{first}.log").read_text()
    expected = {
        "code": "before",
        "config": "lr: before\n",
        "overrides": [override],
        "revision": f"git:{commit}+changes",
    }
    assert json.loads((run / f"said-{first}.json").read_text()) == expected
    assert not (run / "code" / "data").exists()

    refused = submit(slurm, checkout, "first", *arguments)
    assert refused.returncode == 2 and "runs/first exists" in refused.stderr
    second = job_of(submit(slurm, checkout, "first", "--resume", *NODE, "more=1"))
    assert slurm.wait(second)["JobState"] == "COMPLETED", (run / f"slurm-{second}.log").read_text()
    said = json.loads((run / f"said-{second}.json").read_text())
    assert said == expected | {"overrides": [override, "more=1"]}
    assert [line.split()[0] for line in (run / "jobs").read_text().splitlines()] == [str(first), str(second)]


def test_a_dry_run_shows_the_command_and_makes_nothing(slurm: Slurm, checkout: Path) -> None:
    arguments = ("dry", "--dry-run", "--config=../mine.yaml", "--entry=hiervl_train/entry.py", "--nodes=3", "a=b c")
    done = submit(slurm, checkout, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sbatch ") and "--nodes=3" in done.stdout and r"a=b\ c" in done.stdout
    assert not (checkout / "runs").exists()


def test_what_sbatch_refuses_leaves_no_run_behind(slurm: Slurm, checkout: Path) -> None:
    arguments = ("big", "--config=../mine.yaml", "--entry=hiervl_train/entry.py", *NODE, "--partition=nowhere")
    done = submit(slurm, checkout, *arguments)
    assert done.returncode != 0 and "invalid partition" in done.stderr
    assert not (checkout / "runs" / "big").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "NAME = ''"),
        (("../x",), "NAME = '../x'"),
        (("a", "b"), "b: only one NAME"),
        (("a", "-N", "2"), "write options of sbatch as --option=value"),
        (("a", "run.folder=x"), "folder is always runs/NAME"),
        (("a", "--config=nothing.yaml"), "no such configuration file"),
        (("a", "--config"), "--config: missing value"),
        (("a", "--resume"), "runs/a: no such run"),
    ],
)
def test_wrong_arguments_are_named(checkout: Path, arguments: tuple[str, ...], message: str) -> None:
    done = subprocess.run(["cluster/submit.sh", *arguments], cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
