"""The Dask worker of a SLURM job: before the job's walltime it finishes its running task and leaves.

`dask worker --lifetime` alone closes a worker in the middle of a task, which then runs a second time elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from distributed import Worker
from distributed.core import Status

# Environment variables that the job script sets, both in seconds since the epoch.
LIFETIME_ENDS = "HIERVL_LIFETIME_ENDS"  # from then on a worker starts no task, give or take the stagger
DEADLINE = "HIERVL_WORKER_DEADLINE"  # a worker leaves then even if its task is still running
_POLL_SECONDS = 0.2


class FinishingWorker(Worker):
    """A worker that finishes its running task at the end of its lifetime, unless that takes until the job's deadline.

    Its lifetime counts from the start of the job: a worker that starts late, or again after a crash, leaves with the
    others.
    """

    def __init__(self, *args: Any, lifetime: Any = None, **options: Any) -> None:
        ends = os.environ.get(LIFETIME_ENDS)
        if ends is not None:
            lifetime = max(1.0, float(ends) - time.time())
        super().__init__(*args, lifetime=lifetime, **options)

    async def close_gracefully(self, restart: bool | None = None, reason: str = "worker-close-gracefully") -> None:
        """Start no further task, wait for the running one and for its result to be fetched, and leave.

        What has not ended by the deadline runs again on another worker, as does what has not been started.
        """
        if self.status == Status.running:
            self.memory_manager.memory_pause_fraction = False  # otherwise it resumes workers that have memory left
            self.status = Status.paused
        deadline = float(os.environ.get(DEADLINE, "0"))
        while (self.state.executing_count or self.data) and time.time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        await super().close_gracefully(restart=restart, reason=reason)
