"""A Dask cluster whose workers are SLURM jobs; a job that has ended is replaced by a new one."""

from __future__ import annotations

import logging
from typing import Any

from dask_jobqueue.slurm import SLURMCluster
from tornado.ioloop import PeriodicCallback

from preprocessing.config import DaskConfig
from preprocessing.slurm.walltime import Departure, departure, parse_walltime
from preprocessing.slurm.worker import DEADLINE, LIFETIME_ENDS, FinishingWorker

_LIST = ["squeue", "--me", "--noheader", "--format=%A"]  # the numbers of this user's jobs that have not ended
_POLL_SECONDS = 10.0
_MISSES = 2  # polls in a row that must not list a job before it counts as ended
logger = logging.getLogger(__name__)


class WorkerJobs(SLURMCluster):
    """Keeps a number of worker jobs queued or running, and asks SLURM which of them have ended.

    dask-jobqueue by itself replaces a job when its worker disconnects, but only a job of a single worker, and not one
    that ends before its worker has connected.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._missed: dict[str, int] = {}  # job number → polls in a row that did not list it, once one did
        self._poll: PeriodicCallback | None = None

    def keep(self, jobs: int) -> None:
        """Submit `jobs` jobs, and another one for each that ends, until the cluster is closed."""
        self._poll = PeriodicCallback(self._replace_ended, _POLL_SECONDS * 1000)
        assert self.loop is not None
        self.loop.add_callback(self._poll.start)
        # Unlike `scale`, `adapt` submits new jobs in place of those that are gone.
        self.adapt(minimum_jobs=jobs, maximum_jobs=jobs)

    async def _replace_ended(self) -> None:
        """Forget the jobs that SLURM no longer lists; `adapt` then submits others in their place."""
        if self.status.name != "running":
            if self._poll is not None:
                self._poll.stop()
            return
        try:
            listing = await self.job_cls._call(_LIST)  # type: ignore[no-untyped-call]  # not annotated
        except (RuntimeError, OSError) as error:
            logger.debug("squeue failed, and is asked again: %s", error)
            return
        listed = set(listing.split())
        for name, job in list(self.workers.items()):
            if job.job_id in listed:
                self._missed[job.job_id] = 0
            elif job.job_id in self._missed:
                self._missed[job.job_id] += 1
                if self._missed[job.job_id] >= _MISSES:
                    logger.info("SLURM job %s of workers has ended; another one is submitted", job.job_id)
                    del self._missed[job.job_id]
                    self.workers.pop(name, None)
                    self.worker_spec.pop(name, None)


def slurm_cluster(config: DaskConfig, scratch: str) -> WorkerJobs:
    """Return a cluster of worker jobs; none is submitted before `keep`. Raises ValueError on an unknown walltime."""
    slurm = config.slurm
    seconds = parse_walltime(slurm.walltime)
    leaves = None if seconds is None else departure(seconds)
    return WorkerJobs(
        queue=slurm.queue,
        account=slurm.account,
        cores=slurm.cores,
        processes=slurm.cores,
        memory=slurm.memory,
        walltime=slurm.walltime,
        interface=slurm.interface,
        job_extra_directives=list(slurm.extra_directives),
        job_script_prologue=[*_exports(leaves), *slurm.prologue],
        worker_extra_args=["--resources", "ffmpeg=1", *_worker_options(leaves)],
        local_directory=scratch,
        log_directory=f"{scratch}/logs",  # of the workers' jobs; SLURM's default is the working directory
        scheduler_options={"dashboard_address": config.dashboard},
    )


def _worker_options(leaves: Departure | None) -> list[str]:
    if leaves is None:
        return []
    worker_class = f"{FinishingWorker.__module__}.{FinishingWorker.__qualname__}"
    times = ["--lifetime", f"{leaves.lifetime:.0f}s", "--lifetime-stagger", f"{leaves.stagger:.0f}s"]
    return [*times, "--worker-class", worker_class]


def _exports(leaves: Departure | None) -> list[str]:
    """Return the lines of the job script that tell the workers when to leave; they count from the job's start.

    Where SLURM says itself when the job will end, that counts: it includes limits that a directive or a partition sets.
    """
    if leaves is None:
        return []
    end = "hiervl_job_end=${SLURM_JOB_END_TIME:-$(( $(date +%s) + " + f"{leaves.walltime:.0f} ))}}"
    return [
        end,
        f"export {LIFETIME_ENDS}=$(( hiervl_job_end - {leaves.walltime - leaves.lifetime:.0f} ))",
        f"export {DEADLINE}=$(( hiervl_job_end - {leaves.walltime - leaves.deadline:.0f} ))",
    ]
