"""Runs jobs on a Dask cluster, each once its dependencies have ended; an error in a job is returned as its outcome."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dask
from distributed import Client, KilledWorker, LocalCluster, as_completed

from preprocessing.config import DaskConfig
from preprocessing.errors import TransientError, UsageError

_SETTINGS = {
    # A worker that the batch system preempts says nothing about the task that it was running.
    "distributed.scheduler.allowed-failures": 10,
    # By default, an adaptive cluster assumes half a second for an unmeasured task, and therefore stays small.
    "distributed.scheduler.unknown-task-duration": "1m",
    "distributed.worker.daemon": True,
    "distributed.logging.distributed": "error",
    "distributed.comm.timeouts.connect": "60s",
}
_FFMPEG = {"ffmpeg": 1}  # a Dask resource, one per worker: Dask does not see the load of child processes


@dataclass(frozen=True, kw_only=True)
class DaskJob:
    """A unit of work: `function(task)`, run on a worker once all jobs named in `needs` have ended."""

    name: str
    stage: str  # the progress display's stage to which it counts
    function: Callable[[Any], Any]
    task: Any
    size: float = 1.0  # progress that it adds to its stage, in the stage's unit
    needs: frozenset[str] = field(default_factory=frozenset)  # names of jobs
    runs_ffmpeg: bool = False  # limited to one such job per worker at a time


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """The outcome of a job: the `value` that its function returned, or an `error` (a traceback)."""

    job: DaskJob
    value: Any = None
    error: str | None = None


@contextmanager
def cluster(config: DaskConfig, *, scratch: str) -> Iterator[Client]:
    """Yield a client of the configured cluster; shut the cluster down afterwards, unless it was running before.

    `scratch` is a folder for Dask's own files. Raises `UsageError` where a configured scheduler does not answer.
    """
    with dask.config.set(_SETTINGS):
        if config.cluster == "local":
            with (
                LocalCluster(  # type: ignore[no-untyped-call]  # distributed is not annotated
                    n_workers=config.workers,
                    threads_per_worker=1,
                    processes=True,
                    resources=_FFMPEG,
                    dashboard_address=config.dashboard,
                    local_directory=scratch,
                    silence_logs="ERROR",
                ) as local,
                Client(local) as client,  # type: ignore[no-untyped-call]  # as above
            ):
                yield client
        elif config.cluster == "slurm":
            with (
                slurm_cluster(config, scratch) as slurm,
                Client(slurm) as client,  # type: ignore[no-untyped-call]  # as above
            ):
                slurm.keep(config.slurm.jobs)
                yield client
        else:
            with _connect(config.cluster) as client:
                yield client


def run(client: Client, jobs: Sequence[DaskJob]) -> Iterator[JobOutcome]:
    """Run `jobs` and yield their outcomes as they end. Jobs listed first start first.

    A job runs even if one of its dependencies ended in an error; it decides itself what to do then. A job under which
    workers keep dying runs again when no other job does, as those may be at fault; if they still die, it ended in an
    error. Raises `TransientError` as soon as a job does, and `ValueError` where a dependency is not in `jobs` or two
    jobs have the same name.
    """
    waiting = {job.name: set(job.needs) for job in jobs if job.needs}
    dependents: dict[str, list[DaskJob]] = {}
    for job in jobs:
        for need in job.needs:
            dependents.setdefault(need, []).append(job)
    known = {job.name for job in jobs}
    absent = {need for need in dependents if need not in known}
    if absent or len(known) != len(jobs):
        raise ValueError(f"dependencies not among the jobs: {sorted(absent)[:3]}, or a job name is used twice")
    limited = _has_ffmpeg_resource(client)
    running: dict[str, DaskJob] = {}  # by key
    suspects: list[DaskJob] = []  # workers died under them; to be tried alone
    # Results are fetched in batches as they arrive: requesting each one would cost a round trip per task.
    futures: Any = as_completed(with_results=True, raise_errors=False)  # type: ignore[no-untyped-call]  # as above

    def submit(job: DaskJob, priority: int, key: str = "") -> None:
        future = client.submit(
            _guarded,
            job.function,
            job.task,
            key=key or job.name,
            priority=priority,
            resources=_FFMPEG if job.runs_ffmpeg and limited else None,
            pure=False,
        )
        running[key or job.name] = job
        futures.add(future)

    for job in jobs:
        if not job.needs:
            submit(job, priority=0)
    try:
        while running or suspects:
            if not running:
                job = suspects.pop()
                submit(job, priority=0, key=f"{job.name}{_ALONE}")
            future, result = next(futures)
            job = running.pop(future.key)
            if _killed_its_worker(future) and not future.key.endswith(_ALONE):
                suspects.append(job)
                future.release()
                continue
            yield _ended(job, future, result)
            future.release()
            for dependent in dependents.get(job.name, ()):
                waiting[dependent.name].discard(job.name)
                if not waiting[dependent.name]:
                    submit(dependent, priority=1)  # finish nearly complete work before starting something new
    finally:
        if running:
            cancel: Any = client.cancel
            cancel(list(futures.futures), force=True)


_ALONE = " (alone)"


@dataclass(frozen=True)
class _Fault:
    message: str


@dataclass(frozen=True)
class _Error:
    trace: str


def _guarded(function: Callable[[Any], Any], task: Any) -> Any:
    """Call `function` on a worker and return exceptions as values, so that Dask neither retries nor hides them."""
    try:
        return function(task)
    except TransientError as error:
        return _Fault(str(error))
    except Exception:  # noqa: BLE001  becomes the job's outcome, which the caller must handle
        return _Error(traceback.format_exc())


def _killed_its_worker(future: Any) -> bool:
    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _ended(job: DaskJob, future: Any, result: Any) -> JobOutcome:
    """Return the outcome of a finished future; raise `TransientError` for faults of the machine or of Dask."""
    if _killed_its_worker(future):
        deaths = _SETTINGS["distributed.scheduler.allowed-failures"]
        return JobOutcome(job=job, error=f"{deaths} workers died while running only this, perhaps out of memory")
    if future.status != "finished":  # a fault of Dask: `_guarded` never raises
        raise TransientError(f"{job.name}: Dask could not run the job ({future.status}): {future.exception()}")
    if isinstance(result, _Fault):
        raise TransientError(result.message)
    if isinstance(result, _Error):
        return JobOutcome(job=job, error=result.trace)
    return JobOutcome(job=job, value=result)


def _has_ffmpeg_resource(client: Client) -> bool:
    """Return whether all workers declare the resource; a task that requires it would otherwise wait forever."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return not workers or all("ffmpeg" in worker.get("resources", {}) for worker in workers)


def _connect(address: str) -> Client:
    try:
        return Client(address, timeout=30)  # type: ignore[no-untyped-call]  # as above
    except OSError as error:
        raise UsageError(f"dask.cluster = {address}: no scheduler answers at this address: {error}") from error


def slurm_cluster(config: DaskConfig, scratch: str) -> Any:
    """Return a cluster whose workers are SLURM jobs; no job is submitted until it is told to `keep` some."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    from preprocessing.slurm import cluster as worker_jobs  # imported here because only SLURM builds need dask-jobqueue

    signal.signal(signal.SIGINT, on_interrupt)  # the import installs a handler that exits with 0 on Ctrl-C
    return worker_jobs.slurm_cluster(config, scratch)
