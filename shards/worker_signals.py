"""Keeps a loader's worker alive through the SIGTERM of a scheduler, so that the run can save before it ends.

SLURM sends SIGTERM to every process of a job step, loader workers too, and kills what is left 30 s later. A worker that
ended at once would take the training process down in the step at whose end it wants to save.
"""

from __future__ import annotations

import os
import signal
import threading
import time

OUTLIVE_SECONDS = 25.0  # of SIGTERM from anyone but the parent


def outlive_sigterm(worker: int) -> None:
    """Have this worker obey its parent's SIGTERM at once and anybody else's after `OUTLIVE_SECONDS`.

    A thread waits for the signal: it sees who sent it, and it ends the process also where the main thread is stuck in
    a decoder. `worker`, its number, is not used: the form is that of a `worker_init_fn`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads to come inherit it: only the one below gets it
    threading.Thread(target=_wait, args=(os.getppid(),), name="sigterm", daemon=True).start()


def _wait(parent: int) -> None:
    sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
    end = time.monotonic() + OUTLIVE_SECONDS
    while sender != parent and os.getppid() == parent and (left := end - time.monotonic()) > 0:
        again = signal.sigtimedwait({signal.SIGTERM}, left)
        sender = again.si_pid if again is not None else sender
    os._exit(0 if sender == parent else 1)
