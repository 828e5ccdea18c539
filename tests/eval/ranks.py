"""Runs a function on several ranks: real processes over gloo, forked from a warm server."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.hiervl_train.runs import free_port

WORLDS = (1, 2, 3)
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["eval.all", "eval.in_training", "tests.eval.small"])


def run_ranks(target: Callable[[list[str]], int], argv: Sequence[str], folder: Path, world: int) -> list[int | None]:
    """Run a function on so many ranks, each a process; return their exit codes."""
    port, processes = free_port(), []
    folder.mkdir()
    for rank in range(world):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        output = folder / f"rank{rank}.txt"
        processes.append(_forks.Process(target=_be_rank, args=(target, list(argv), place, output)))
        processes[-1].start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
    return codes


def _be_rank(target: Callable[[list[str]], int], argv: list[str], place: dict[str, object], output: Path) -> None:
    os.environ.update({name: str(value) for name, value in place.items()}, OMP_NUM_THREADS="1")
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    raise SystemExit(target(argv))
