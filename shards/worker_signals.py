"""Ends loader workers with their parent, and keeps them alive after a scheduler's SIGTERM until training has saved.

SLURM sends SIGTERM to all processes of a job step, including loader workers, and SIGKILL 30 s later. A worker that
exited at once would crash the training process before the end of its step, when it saves.

A worker that outlives a killed parent keeps the parent's sockets open, so that the other ranks wait for it. torch's own
check misses a parent that is killed while it starts the worker.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

OUTLIVE_SECONDS = 25.0  # from a SIGTERM of any process but the parent to the worker's exit


PARENT_CHECK_SECONDS = 2.0  # between two looks at whether the parent still runs


@contextmanager
def sigterm_held() -> Iterator[None]:
    """Hold SIGTERM back while workers are forked: until the end of the block, in a worker until `outlive_sigterm`.

    A worker that received it in between would die of it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_sigterm(worker: int, *, parent: int) -> None:
    """Make this worker exit with its parent, at once on the parent's SIGTERM, and `OUTLIVE_SECONDS` after any other.

    A thread waits for the signal, since it can see the sender and can end the process even if the main thread is stuck
    in a decoder. `parent` is the parent's process id, taken before the fork; `worker`, the worker's number, is unused:
    this is a `worker_init_fn` of torch's `DataLoader`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited by later threads: only `_wait` receives it
    threading.Thread(target=_wait, args=(parent,), name="sigterm", daemon=True).start()


def _wait(parent: int) -> None:
    end = math.inf
    while os.getppid() == parent and time.monotonic() < end:
        received = signal.sigtimedwait({signal.SIGTERM}, max(0.0, min(PARENT_CHECK_SECONDS, end - time.monotonic())))
        if received is not None and received.si_pid == parent:
            os._exit(0)
        if received is not None:
            end = min(end, time.monotonic() + OUTLIVE_SECONDS)
    os._exit(1)
