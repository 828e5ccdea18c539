"""What one rank does in the tests of process groups: started by torchrun, or as srun would start it.

torchrun … -m tests.hiervl_train.rank_script SCENARIO
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from hiervl_train.collectives import all_true, broadcast_json
from hiervl_train.distributed import (
    DistributedConfig,
    DistributedContext,
    DistributedError,
    FlagConsensus,
    distributed_context,
)
from hiervl_train.preemption import PreemptionConfig, StopRequest


def say(line: str) -> None:
    """Write a line in one go: `print` writes text and line end apart, and another rank's text comes between."""
    os.write(1, f"{line}\n".encode())


def agree(mine: DistributedContext) -> None:
    """Print what the ranks agree on, one step late, and what happens where each begins other flags."""
    control = FlagConsensus(mine)
    assert control.agreed() == {}
    seen = []
    for step in range(4):
        control.begin({"save": mine.rank == 1 and step == 2, "stop": mine.is_main and step == 3})
        time.sleep(0.02 * mine.rank)
        seen.append(control.agreed())
    name = broadcast_json("Schritt ü" if mine.is_main else None, mine.control)
    nothing = broadcast_json(None, mine.control)
    threads = torch.get_num_threads()
    say(f"{mine.rank}/{mine.world} {mine.device} threads {threads} {seen} {name} {nothing}")
    control.begin({f"flag {mine.rank}": True})
    try:
        control.agreed()
    except DistributedError as error:
        say(f"{mine.rank}: {error}")
    assert all_true(True, mine.control)
    assert not all_true(mine.is_main, mine.control)


def work(mine: DistributedContext) -> None:
    """Say one's process id and reduce without end; the launcher's SIGTERM is a request only, as in a run."""
    gradient = torch.ones(1000)
    with StopRequest(PreemptionConfig(), Path("stop"), checks_file=False):
        say(f"pid {mine.rank} {os.getpid()}")
        while True:
            dist.all_reduce(gradient)
            gradient /= mine.world


def fail(mine: DistributedContext) -> None:
    """Fail on rank 1 while rank 0 reduces."""
    if mine.rank == 1:
        raise ValueError("a bad batch")
    work(mine)


def hang(mine: DistributedContext) -> None:
    """Stand still on rank 1 while rank 0 waits for it."""
    if mine.rank == 1:
        time.sleep(300)
    work(mine)


def leave(mine: DistributedContext) -> None:
    """Leave with a code, from inside."""
    dist.barrier()
    sys.exit(85)


SCENARIOS: dict[str, Callable[[DistributedContext], None]] = {f.__name__: f for f in (agree, work, fail, hang, leave)}


if __name__ == "__main__":
    with distributed_context(DistributedConfig(timeout_seconds=3 if sys.argv[1] == "hang" else 60)) as this_rank:
        SCENARIOS[sys.argv[1]](this_rank)
