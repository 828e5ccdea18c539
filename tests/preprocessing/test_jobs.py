"""Jobs on a real Dask cluster: dependencies, errors as outcomes, machine faults, and workers that die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from preprocessing import jobs
from preprocessing.config import DaskConfig, SlurmConfig
from preprocessing.errors import TransientError, UsageError
from preprocessing.jobs import DaskJob

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with jobs.cluster(DaskConfig(workers=2), scratch=str(tmp_path_factory.mktemp("dask"))) as client:
        yield client


def stamp(path: Path) -> float:
    time.sleep(0.05)
    path.touch()
    return time.time()


def fail(_: object) -> None:
    raise ValueError("this one is broken")


def fault(_: object) -> None:
    raise TransientError("the disk is full")


def die_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def threads_and_slots(_: object) -> tuple[int, int]:
    return len(os.sched_getaffinity(0)), os.getpid()


def test_a_job_runs_after_its_dependencies(client: Client, tmp_path: Path) -> None:
    first = [DaskJob(name=f"a{i}", stage="a", function=stamp, task=tmp_path / f"a{i}") for i in range(6)]
    needs = frozenset(job.name for job in first)
    last = DaskJob(name="b", stage="b", function=stamp, task=tmp_path / "b", needs=needs)
    ended = {end.job.name: end for end in jobs.run(client, [last, *first])}
    assert ended.keys() == {*needs, "b"}
    assert all(ended["b"].value > ended[name].value for name in needs)


def test_an_error_becomes_an_outcome_and_other_jobs_continue(client: Client, tmp_path: Path) -> None:
    work = [
        DaskJob(name="bad", stage="a", function=fail, task=None),
        DaskJob(name="good", stage="a", function=stamp, task=tmp_path / "good"),
        DaskJob(name="after", stage="b", function=stamp, task=tmp_path / "after", needs=frozenset({"bad"})),
    ]
    ended = {end.job.name: end for end in jobs.run(client, work)}
    assert "ValueError: this one is broken" in ended["bad"].error and "in fail" in ended["bad"].error
    assert ended["good"].error is None and ended["after"].error is None


def test_a_fault_of_the_machine_stops_the_run(client: Client, tmp_path: Path) -> None:
    work = [DaskJob(name=f"s{i}", stage="a", function=stamp, task=tmp_path / f"s{i}") for i in range(60)]
    with pytest.raises(TransientError, match="the disk is full"):
        list(jobs.run(client, [DaskJob(name="f", stage="a", function=fault, task=None), *work]))
    assert len(list(tmp_path.iterdir())) < 60


def test_the_job_of_a_worker_that_dies_is_run_again(client: Client, tmp_path: Path) -> None:
    (ended,) = jobs.run(client, [DaskJob(name="d", stage="a", function=die_once, task=tmp_path / "mark")])
    assert ended.value == "survived"


def test_a_job_that_always_kills_its_worker_ends_in_an_error_and_no_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(jobs._SETTINGS, "distributed.scheduler.allowed-failures", 1)
    innocent = [DaskJob(name=f"a{i}", stage="a", function=stamp, task=tmp_path / f"a{i}") for i in range(4)]
    killer = DaskJob(name="killer", stage="a", function=die, task=None)
    last = DaskJob(name="b", stage="b", function=stamp, task=tmp_path / "b", needs=frozenset(["killer"]))
    with jobs.cluster(DaskConfig(workers=1), scratch=str(tmp_path)) as client:
        ended = {end.job.name: end for end in jobs.run(client, [killer, *innocent, last])}
    assert ended.pop("killer").error == "1 workers died while running only this, perhaps out of memory"
    assert {name: end.error for name, end in ended.items()} == dict.fromkeys(("a0", "a1", "a2", "a3", "b"))


def test_jobs_that_run_ffmpeg_are_limited_to_one_a_worker(client: Client) -> None:
    client.wait_for_workers(2, timeout=30)  # one may still be restarting
    work = [DaskJob(name=f"t{i}", stage="a", function=threads_and_slots, task=i, runs_ffmpeg=True) for i in range(8)]
    assert len({end.value[1] for end in jobs.run(client, work)}) <= 2
    declared = [w["resources"] for w in client.scheduler_info(n_workers=-1)["workers"].values()]
    assert declared == [{"ffmpeg": 1}] * 2


def test_an_unknown_dependency_is_an_error(client: Client) -> None:
    with pytest.raises(ValueError, match="not among the jobs"):
        list(jobs.run(client, [DaskJob(name="a", stage="a", function=str, task=0, needs=frozenset({"nothing"}))]))


def test_a_slurm_job_requests_the_configured_resources(tmp_path: Path) -> None:
    slurm = SlurmConfig(queue="video", account="lab", cores=3, memory="6GB", walltime="01:02:03", prologue=("mod x",))
    with jobs.slurm_cluster(DaskConfig(cluster="slurm", slurm=slurm), str(tmp_path)) as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH -p video", "#SBATCH -A lab", "#SBATCH --cpus-per-task=3", "#SBATCH -t 01:02:03", "mod x"):
        assert line in script
    assert "--nworkers 3" in script and "--nthreads 1" in script and "--resources ffmpeg=1" in script


@pytest.mark.parametrize(("walltime", "seconds"), [("1-00:00:00", 86_400), ("90", 5400), ("00:01:00", 60)])
def test_workers_of_a_slurm_job_live_shorter_than_its_walltime(tmp_path: Path, walltime: str, seconds: int) -> None:
    with jobs.slurm_cluster(DaskConfig(slurm=SlurmConfig(walltime=walltime)), str(tmp_path)) as cluster:
        script = cluster.job_script()
    lifetime, stagger = (int(re.search(rf"--{name} (\d+)s", script)[1]) for name in ("lifetime", "lifetime-stagger"))
    assert stagger > 0 and seconds / 2 < lifetime - stagger and lifetime + stagger < seconds
    assert "--worker-class preprocessing.slurm.worker.FinishingWorker" in script


def test_a_job_script_says_when_its_workers_leave(tmp_path: Path) -> None:
    """From the job's end as SLURM announces it, and otherwise from the walltime."""
    with jobs.slurm_cluster(DaskConfig(slurm=SlurmConfig(walltime="10:00:00")), str(tmp_path)) as cluster:
        exports = "".join(line for line in cluster.job_script().splitlines(keepends=True) if "hiervl_job_end" in line)
    ask = [*("bash", "-euc"), f"{exports}\necho $HIERVL_LIFETIME_ENDS $HIERVL_WORKER_DEADLINE"]
    announced = subprocess.run(ask, env={"SLURM_JOB_END_TIME": "100000"}, capture_output=True, text=True, check=True)
    assert announced.stdout.split() == [str(100_000 - 17 * 60), str(100_000 - 60)]
    now = time.time()
    counted = subprocess.run(ask, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    lifetime, deadline = (int(number) - now for number in counted.stdout.split())
    assert lifetime == pytest.approx(36_000 - 17 * 60, abs=10) and deadline == pytest.approx(36_000 - 60, abs=10)


def test_workers_of_a_job_without_a_limit_stay(tmp_path: Path) -> None:
    with jobs.slurm_cluster(DaskConfig(slurm=SlurmConfig(walltime="UNLIMITED")), str(tmp_path)) as cluster:
        script = cluster.job_script()
    assert "lifetime" not in script and "HIERVL" not in script


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path) -> None:
    config = DaskConfig(cluster="tcp://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"tcp://127\.0\.0\.1:9"), jobs.cluster(config, scratch=str(tmp_path)):
        pass
