"""Loader workers survive a scheduler's SIGTERM for as long as training needs to save, but not their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shards import worker_signals
from shards.config import LoaderConfig
from shards.loader import Loader

CONFIG = LoaderConfig(size=32, frames=3, global_batch=2, workers=1, prefetch=1)


def worker_of(loader: Loader) -> int:
    pid = loader._iterator._workers[0].pid  # type: ignore[union-attr]
    assert isinstance(pid, int)
    return pid


def terminate_from_outside(pid: int) -> None:
    """Send SIGTERM from another process, as a scheduler does."""
    subprocess.run([sys.executable, "-c", f"import os; os.kill({pid}, {int(signal.SIGTERM)})"], check=True)


def test_batches_continue_after_a_schedulers_sigterm(coded_root: Path) -> None:
    with Loader(coded_root, "clips", "train", CONFIG) as loader:
        batches = iter(loader)
        next(batches)
        terminate_from_outside(worker_of(loader))
        time.sleep(0.3)
        assert all(len(next(batches).keys) == 2 for _ in range(5))


def test_a_worker_ends_some_time_after_a_schedulers_sigterm(coded_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_signals, "OUTLIVE_SECONDS", 0.5)
    with Loader(coded_root, "clips", "train", CONFIG) as loader:
        batches = iter(loader)
        next(batches)
        terminate_from_outside(worker_of(loader))
        # torch raises it in a signal handler, wherever this process is.
        with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
            time.sleep(10)


def test_a_worker_that_is_just_starting_survives_a_schedulers_sigterm(
    coded_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(worker: int, *, parent: int) -> None:
        time.sleep(1)
        worker_signals.outlive_sigterm(worker, parent=parent)

    monkeypatch.setattr("shards.loader.outlive_sigterm", late)
    with Loader(coded_root, "clips", "train", CONFIG) as loader:
        loader._iterator = loader._start()
        terminate_from_outside(worker_of(loader))
        batches = iter(loader)
        assert all(len(next(batches).keys) == 2 for _ in range(5))


def test_its_parents_sigterm_ends_a_worker_at_once(coded_root: Path) -> None:
    with Loader(coded_root, "clips", "train", CONFIG) as loader:
        next(iter(loader))
        worker = psutil.Process(worker_of(loader))
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() - began < 5
            time.sleep(0.02)


STARTED_TOO_LATE = """
import os, time
from shards.worker_signals import outlive_sigterm
parent = os.getpid()
worker = os.fork()
if worker:
    print(worker, flush=True)
    os._exit(9)  # before the worker has looked at who its parent is
while os.getppid() == parent:
    time.sleep(0.01)
outlive_sigterm(0, parent=parent)
time.sleep(60)
"""


def test_a_worker_whose_parent_died_while_starting_it_ends() -> None:
    """It would hold the parent's sockets open, and the other ranks would wait for it."""
    started = subprocess.run([sys.executable, "-c", STARTED_TOO_LATE], capture_output=True, text=True, timeout=30)
    worker = int(started.stdout)
    end = time.monotonic() + 20
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)
