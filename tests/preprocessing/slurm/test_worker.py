"""Real Dask workers at the end of their lifetime: they finish the running task, unless the deadline comes first."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from preprocessing import jobs
from preprocessing.jobs import DaskJob
from preprocessing.slurm.worker import DEADLINE, LIFETIME_ENDS, FinishingWorker
from tests.paths import REPOSITORY
from tests.preprocessing.slurm.tasks import Work, starts, work

pytestmark = pytest.mark.medium
CLASS = f"{FinishingWorker.__module__}.{FinishingWorker.__qualname__}"


@contextmanager
def two_workers(folder: Path, *, worker_class: str, lifetime: float, deadline: float) -> Iterator[Client]:
    """Yield a client of a worker that leaves after `lifetime` seconds, and of one that stays."""
    with ExitStack() as stack:
        local = stack.enter_context(LocalCluster(n_workers=0, dashboard_address=":0", silence_logs="ERROR"))
        client = stack.enter_context(Client(local))
        options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", local.scheduler_address, *options]
        leaving = {LIFETIME_ENDS: f"{time.time() + lifetime}", DEADLINE: f"{time.time() + deadline}"}
        for extra, variables in ((["--lifetime", f"{lifetime}s", "--worker-class", worker_class], leaving), ([], {})):
            process = subprocess.Popen([*command, *extra], cwd=REPOSITORY, env={**os.environ, **variables})
            stack.callback(process.wait)
            stack.callback(process.kill)
        client.wait_for_workers(2, timeout=60)
        yield client


def run(client: Client, folder: Path, count: int, seconds: float) -> Counter[int]:
    """Run tasks of some seconds each; return how often each was started."""
    tasks = [Work(folder=folder, number=number, seconds=seconds) for number in range(count)]
    ended = list(jobs.run(client, [DaskJob(name=f"t{t.number}", stage="a", function=work, task=t) for t in tasks]))
    assert sorted(end.value for end in ended) == list(range(count))
    return starts(folder)


def test_a_running_task_is_finished_and_its_result_kept(tmp_path: Path) -> None:
    with two_workers(tmp_path, worker_class=CLASS, lifetime=5, deadline=60) as client:
        assert run(client, tmp_path, count=6, seconds=2) == Counter(range(6))
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1, "the worker did not leave"


@pytest.mark.slow
def test_a_task_that_is_not_done_at_the_deadline_runs_once_more_elsewhere(tmp_path: Path) -> None:
    with two_workers(tmp_path, worker_class=CLASS, lifetime=5, deadline=6) as client:
        found = run(client, tmp_path, count=2, seconds=9)
    assert sorted(found.values()) == [1, 2]


def test_a_worker_that_starts_late_leaves_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIFETIME_ENDS, f"{time.time() + 100}")
    with LocalCluster(n_workers=0, dashboard_address=":0", processes=False) as local:
        worker = FinishingWorker(local.scheduler_address, lifetime="10 hours", local_directory=str(tmp_path))
        assert 95 < worker.lifetime <= 100
