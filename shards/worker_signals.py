"""Keeps loader workers alive after a scheduler's SIGTERM, so that training can save a checkpoint before it exits.

SLURM sends SIGTERM to all processes of a job step, including loader workers, and SIGKILL 30 s later. A worker that
exited at once would crash the training process before the end of its step, when it saves.
"""

from __future__ import annotations

import os
import signal
import threading
import time

OUTLIVE_SECONDS = 25.0  # from a SIGTERM of any process but the parent to the worker's exit


def outlive_sigterm(worker: int) -> None:
    """Make this worker exit at once on SIGTERM from its parent, and after `OUTLIVE_SECONDS` on any other SIGTERM.

    A thread waits for the signal, since it can see the sender and can end the process even if the main thread is stuck
    in a decoder. `worker`, the worker's number, is unused: this is a `worker_init_fn` of torch's `DataLoader`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited by later threads: only `_wait` receives it
    threading.Thread(target=_wait, args=(os.getppid(),), name="sigterm", daemon=True).start()


def _wait(parent: int) -> None:
    sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
    end = time.monotonic() + OUTLIVE_SECONDS
    while sender != parent and os.getppid() == parent and (left := end - time.monotonic()) > 0:
        again = signal.sigtimedwait({signal.SIGTERM}, left)
        sender = again.si_pid if again is not None else sender
    os._exit(0 if sender == parent else 1)
