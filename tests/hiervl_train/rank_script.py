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


def write(line: str) -> None:
    """Write a line in one go: `print` writes text and line end apart, and another rank's text comes between."""
    os.write(1, f"{line}\n".encode())


def agree(context: DistributedContext) -> None:
    """Print what the ranks agree on, one step late, and the error of different flags."""
    control = FlagConsensus(context)
    assert control.agreed() == {}
    seen = []
    for step in range(4):
        control.begin({"save": context.rank == 1 and step == 2, "stop": context.is_main and step == 3})
        time.sleep(0.02 * context.rank)
        seen.append(control.agreed())
    name = broadcast_json("Schritt ü" if context.is_main else None, context.control)
    nothing = broadcast_json(None, context.control)
    threads = torch.get_num_threads()
    write(f"{context.rank}/{context.world} {context.device} threads {threads} {seen} {name} {nothing}")
    control.begin({f"flag {context.rank}": True})
    try:
        control.agreed()
    except DistributedError as error:
        write(f"{context.rank}: {error}")
    assert all_true(True, context.control)
    assert not all_true(context.is_main, context.control)


def work(context: DistributedContext) -> None:
    """Print the process id and reduce forever; as in a run, SIGTERM is only a request to stop."""
    gradient = torch.ones(1000)
    with StopRequest(PreemptionConfig(), Path("stop"), checks_file=False):
        write(f"pid {context.rank} {os.getpid()}")
        while True:
            dist.all_reduce(gradient)
            gradient /= context.world


def fail(context: DistributedContext) -> None:
    """Fail on rank 1 while rank 0 reduces."""
    if context.rank == 1:
        raise ValueError("a bad batch")
    work(context)


def hang(context: DistributedContext) -> None:
    """Hang on rank 1 while rank 0 waits for it."""
    if context.rank == 1:
        time.sleep(300)
    work(context)


def exit_early(context: DistributedContext) -> None:
    """Exit with a code inside the context."""
    dist.barrier()
    sys.exit(85)


SCENARIOS: dict[str, Callable[[DistributedContext], None]] = {
    f.__name__: f for f in (agree, work, fail, hang, exit_early)
}


if __name__ == "__main__":
    with distributed_context(DistributedConfig(timeout_seconds=3 if sys.argv[1] == "hang" else 60)) as this_rank:
        SCENARIOS[sys.argv[1]](this_rank)
