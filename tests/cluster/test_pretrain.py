"""`sbatch cluster/pretrain.sbatch` on a real cluster: trained on two nodes, stopped, requeued, resumed, killed."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import psutil
import pytest

from hiervl_train.monitor.metrics import read_metrics
from tests.cluster.slurm import Slurm
from tests.hiervl_train.runs import TINY, finished, losses
from tests.paths import REPOSITORY

SMALL = str(REPOSITORY / "configs" / "pretrain" / "small.yaml")
NO_GPUS = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=3G")
ENDS_WITHIN_SECONDS = 70  # of the death of a rank; docs/cluster.md says so


def submit(slurm: Slurm, root: Path, folder: Path, *overrides: str, **variables: str) -> int:
    """Submit a tiny run; its log is beside its folder."""
    limit = {} if "SBATCH_TIMELIMIT" in variables else {"SBATCH_TIMELIMIT": "20"}
    command = [*NO_GPUS, f"--output={folder}.log", "cluster/pretrain.sbatch", "--config", SMALL]
    return slurm.submit(*command, *TINY, f"data.root={root}", f"run.folder={folder}", *overrides, **limit, **variables)


def reached(slurm: Slurm, number: int, folder: Path, step: int, seconds: float = 180) -> None:
    """Wait until a run has written the metrics of a step."""
    end = time.monotonic() + seconds
    while not any(row["step"] >= step for row in read_metrics(folder)):
        job = slurm.job(number)
        assert job["JobState"] in ("PENDING", "RUNNING"), f"{job}\n{said(folder)}"
        assert time.monotonic() < end, f"{job}\n{said(folder)}"
        time.sleep(0.1)


def said(folder: Path) -> str:
    """Return what a job printed."""
    log = Path(f"{folder}.log")
    return log.read_text() if log.exists() else "no log"


def rank_process(folder: Path, rank: int) -> psutil.Process:
    """Return the process of a rank: the child of a torchrun, not one of its own children."""
    for process in psutil.process_iter():
        try:
            if f"run.folder={folder}" not in process.cmdline() or process.environ().get("RANK") != str(rank):
                continue
            parent = process.parent()
            if parent is not None and "RANK" not in parent.environ():
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    raise AssertionError(f"rank {rank} of {folder} is not there")


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return every process that has a run's folder in its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"run.folder={folder}" in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_signalled_before_its_time_limit_it_requeues_itself_and_ends_with_the_losses_of_a_run_that_was_not(
    slurm: Slurm, embedded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    number = submit(slurm, embedded, folder, "run.max_steps=30")
    reached(slurm, number, folder, 4)
    # What SLURM sends before the time limit, as `--signal=B:USR2@180` asks.
    assert slurm.call("scancel", "--signal=USR2", "--batch", str(number)).returncode == 0
    job = slurm.wait(number, seconds=300)
    log = said(folder)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), log
    assert "stopped, step" in log and "done, step 30 of 30" in log
    starts = json.loads((folder / "environment.json").read_bytes())["starts"]
    assert [(start["is_resumed"], start["world_size"]) for start in starts] == [(False, 2), (True, 2)]
    assert losses(folder) == finished(embedded, tmp_path / "undisturbed", "run.max_steps=30", ranks=2)


def test_a_rank_that_is_killed_takes_the_job_down_in_time_and_the_log_says_why(
    slurm: Slurm, embedded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    number = submit(slurm, embedded, folder, "run.max_steps=100000")
    reached(slurm, number, folder, 2)
    killed = time.monotonic()
    rank_process(folder, 1).kill()
    job = slurm.wait(number, seconds=ENDS_WITHIN_SECONDS)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), said(folder)
    assert job["ExitCode"] != "0:0"
    assert re.search(r"exitcode\s*: -9", said(folder)) and "Signal 9 (SIGKILL)" in said(folder), said(folder)
    assert "[rank 0]" in said(folder) and "Traceback" in said(folder), said(folder)  # of who waited for the dead one
    psutil.wait_procs(processes_of(folder), timeout=max(1, ENDS_WITHIN_SECONDS - (time.monotonic() - killed)))
    assert not processes_of(folder)


@pytest.mark.slow
def test_its_time_limit_is_announced_and_it_goes_on_after_it(slurm: Slurm, embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    number = submit(slurm, embedded, folder, "run.max_steps=100000", SBATCH_TIMELIMIT="4")
    end = time.monotonic() + 200
    while slurm.job(number)["Restarts"] == "0":
        assert time.monotonic() < end, said(folder)
        time.sleep(0.5)
    assert "USR2: the run is asked to save and stop" in said(folder)
    step = json.loads((folder / "status.json").read_bytes())["step"]
    reached(slurm, number, folder, step + 2)
    slurm.call("scancel", str(number))
    slurm.wait(number)
    assert losses(folder)  # one line a step, over the two starts


@pytest.mark.slow
def test_preempted_by_another_job_it_saves_and_goes_on_after_it(slurm: Slurm, embedded: Path, tmp_path: Path) -> None:
    """SLURM sends SIGTERM to every process of the job, and kills what is left when the grace time is over."""
    folder = tmp_path / "run"
    number = submit(slurm, embedded, folder, "run.max_steps=100000", "save.every_steps=null")
    reached(slurm, number, folder, 4)
    urgent = slurm.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 2"
    )
    assert slurm.wait(urgent)["JobState"] == "COMPLETED", said(folder)
    status = json.loads((folder / "status.json").read_bytes())
    assert status["state"] == "stopped" and status["step"] >= 4, said(folder)
    reached(slurm, number, folder, status["step"] + 2)
    assert slurm.job(number)["Restarts"] == "1", said(folder)
    slurm.call("scancel", str(number))
    slurm.wait(number)
    assert losses(folder)


@pytest.mark.slow
def test_a_job_that_its_owner_cancels_saves_and_stays_cancelled(slurm: Slurm, embedded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    number = submit(slurm, embedded, folder, "run.max_steps=100000")
    reached(slurm, number, folder, 2)
    slurm.call("scancel", str(number))
    job = slurm.wait(number)
    time.sleep(8)  # longer than a requeued job waits
    assert slurm.job(number)["JobState"] == job["JobState"] == "CANCELLED", said(folder)
    assert json.loads((folder / "status.json").read_bytes())["state"] == "stopped", said(folder)


@pytest.mark.slow
def test_a_job_that_hardly_gets_further_is_not_requeued_for_ever(slurm: Slurm, embedded: Path, tmp_path: Path) -> None:
    """The run's own limit is so short that each start ends after a step or two."""
    folder = tmp_path / "run"
    limits = "preemption={time_limit_minutes: 0.000001, margin_minutes: 0.0}"
    number = submit(slurm, embedded, folder, "run.max_steps=100000", limits, MAX_FRUITLESS="2")
    job = slurm.wait(number, seconds=200)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "1", "1:0"), said(folder)
    assert "2 starts in a row" in said(folder)


@pytest.mark.slow
def test_a_run_that_cannot_be_carried_out_fails_at_once_and_is_not_requeued(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    number = submit(slurm, tmp_path / "nothing", folder, "optim.lrr=1")
    job = slurm.wait(number)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "1:0"), said(folder)
    assert "did you mean optim.lr?" in said(folder)
