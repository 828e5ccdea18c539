"""Runs jobs on a Dask cluster: each when what it needs is done, the largest first, every error a record."""

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
    # A worker that the batch system takes away is no sign that the task is at fault.
    "distributed.scheduler.allowed-failures": 10,
    # Without a figure, an adaptive cluster takes an unmeasured task for half a second's work and stays small.
    "distributed.scheduler.unknown-task-duration": "1m",
    "distributed.worker.daemon": True,
    "distributed.logging.distributed": "error",
    "distributed.comm.timeouts.connect": "60s",
}
_FFMPEG = {"ffmpeg": 1}  # the resource of which each worker has one: Dask cannot see what its children take


@dataclass(frozen=True, kw_only=True)
class DaskJob:
    """A unit of work: `function(task)` on some worker once all jobs named in `needs` have ended."""

    name: str
    stage: str  # what its progress is shown under
    function: Callable[[Any], Any]
    task: Any
    size: float = 1.0  # how much of the stage it is, in the stage's unit
    needs: frozenset[str] = field(default_factory=frozenset)
    runs_ffmpeg: bool = False


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended: with a `value`, or with an `error` (a traceback)."""

    job: DaskJob
    value: Any = None
    error: str | None = None


@contextmanager
def cluster(config: DaskConfig, *, scratch: str) -> Iterator[Client]:
    """Yield a client of the configured cluster; end the cluster with it, unless it was running before."""
    with dask.config.set(_SETTINGS):
        if config.cluster == "local":
            with (
                LocalCluster(
                    n_workers=config.workers,
                    threads_per_worker=1,
                    processes=True,
                    resources=_FFMPEG,
                    dashboard_address=config.dashboard,
                    local_directory=scratch,
                    silence_logs="ERROR",
                ) as local,
                Client(local) as client,
            ):
                yield client
        elif config.cluster == "slurm":
            with slurm_cluster(config, scratch) as slurm, Client(slurm) as client:
                # Unlike `scale`, which asks once: a job that its walltime or a dead node ended is submitted anew.
                slurm.adapt(minimum_jobs=config.slurm.jobs, maximum_jobs=config.slurm.jobs)
                yield client
        else:
            with _connect(config.cluster) as client:
                yield client


def run(client: Client, jobs: Sequence[DaskJob]) -> Iterator[JobOutcome]:
    """Run `jobs` and yield how each ended, as they end. Jobs listed first start first.

    A job whose need ended in an error still runs: what a missing part means is for the job to say. Raises
    `TransientError` as soon as a job does, or where workers keep dying under a job.
    """
    waiting = {job.name: set(job.needs) for job in jobs if job.needs}
    dependents: dict[str, list[DaskJob]] = {}
    for job in jobs:
        for need in job.needs:
            dependents.setdefault(need, []).append(job)
    known = {job.name for job in jobs}
    absent = {need for need in dependents if need not in known}
    if absent or len(known) != len(jobs):
        raise ValueError(f"jobs need what is not among them: {sorted(absent)[:3]}, or a name stands twice")
    limited = _has_ffmpeg_resource(client)
    running: dict[str, DaskJob] = {}
    # Results are fetched as they come, many at a time: asking for each would cost a round trip a task.
    futures = as_completed(with_results=True, raise_errors=False)

    def submit(job: DaskJob, priority: int) -> None:
        future = client.submit(
            _guarded,
            job.function,
            job.task,
            key=job.name,
            priority=priority,
            resources=_FFMPEG if job.runs_ffmpeg and limited else None,
            pure=False,
        )
        running[job.name] = job
        futures.add(future)

    for job in jobs:
        if not job.needs:
            submit(job, priority=0)
    try:
        while running:
            future, result = next(futures)
            job = running.pop(future.key)
            yield _ended(job, future, result)
            future.release()
            for dependent in dependents.get(job.name, ()):
                waiting[dependent.name].discard(job.name)
                if not waiting[dependent.name]:
                    submit(dependent, priority=1)  # finish what is nearly done before beginning anew
    finally:
        if running:
            client.cancel(list(futures.futures), force=True)


@dataclass(frozen=True)
class _Fault:
    message: str


@dataclass(frozen=True)
class _Error:
    trace: str


def _guarded(function: Callable[[Any], Any], task: Any) -> Any:
    """Call `function` on a worker; an exception comes back as a value, so that Dask never retries or hides it."""
    try:
        return function(task)
    except TransientError as error:
        return _Fault(str(error))
    except Exception:  # noqa: BLE001  a record, which the caller must look at
        return _Error(traceback.format_exc())


def _ended(job: DaskJob, future: Any, result: Any) -> JobOutcome:
    if future.status != "finished":  # Dask's own trouble: our functions return what they could raise
        error = future.exception()
        if isinstance(error, KilledWorker):
            raise TransientError(
                f"{job.name}: {_SETTINGS['distributed.scheduler.allowed-failures']} workers died under it, "
                "perhaps for want of memory; run again with fewer workers a machine"
            ) from error
        raise TransientError(f"{job.name}: Dask could not run it ({future.status}): {error}")
    if isinstance(result, _Fault):
        raise TransientError(result.message)
    if isinstance(result, _Error):
        return JobOutcome(job=job, error=result.trace)
    return JobOutcome(job=job, value=result)


def _has_ffmpeg_resource(client: Client) -> bool:
    """Return whether workers declare the resource; without it, a limited task would wait for ever."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return not workers or all("ffmpeg" in worker.get("resources", {}) for worker in workers)


def _connect(address: str) -> Client:
    try:
        return Client(address, timeout=30)
    except OSError as error:
        raise UsageError(f"dask.cluster = {address}: no scheduler answers there: {error}") from error


def slurm_cluster(config: DaskConfig, scratch: str) -> Any:
    """Return a cluster whose workers are SLURM jobs; none is submitted before it is scaled."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster  # only here: a laptop needs no batch system

    signal.signal(signal.SIGINT, on_interrupt)  # the import puts a handler there that leaves with 0, as if all was done
    slurm = config.slurm
    return SLURMCluster(
        queue=slurm.queue,
        account=slurm.account,
        cores=slurm.cores,
        processes=slurm.cores,
        memory=slurm.memory,
        walltime=slurm.walltime,
        interface=slurm.interface,
        job_extra_directives=list(slurm.extra_directives),
        job_script_prologue=list(slurm.prologue),
        worker_extra_args=["--resources", "ffmpeg=1", "--lifetime-stagger", "2m"],
        local_directory=scratch,
        log_directory=f"{scratch}/logs",  # what the workers' jobs say; SLURM's own default is the working directory
        scheduler_options={"dashboard_address": config.dashboard},
    )
