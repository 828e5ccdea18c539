"""Connects the processes of a run: ranks and devices from the launcher's variables, process groups, consensus.

A dead rank ends the job:

- gloo detects a closed connection immediately, and every collective raises.
- torchrun polls its ranks every 0.1 s; it ends the others by SIGTERM, and after 30 s by SIGKILL, since a rank that
  waits inside NCCL cannot handle SIGTERM. srun does the same with `--kill-on-bad-exit=1` and SLURM's KillWait.
- A rank that hangs without dying is detected after `timeout_seconds` by the ranks that wait for it.

So a killed rank ends the job within about 35 s on one node, and a hanging one within `timeout_seconds` more.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import socket
import sys
import threading
import traceback
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar, Literal, NoReturn

import torch
import torch.distributed as dist
from pydantic import PositiveFloat
from torch import Tensor

from configs.cli import ExitCode, exit_code_of, report

SHUTDOWN_SECONDS = 30.0  # that destroying the process groups may take
logger = logging.getLogger(__name__)


class DistributedError(RuntimeError):
    """The ranks cannot form a process group; the message names the variable, its value and the remedy."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How the ranks communicate."""

    # auto: nccl on GPUs, else gloo. gloo computes on the CPU.
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    timeout_seconds: PositiveFloat = 600.0  # seconds that a rank waits for the others before it gives up
    # Average gradients while the backward pass computes others, so that the network's time is hidden; false: after it.
    # The same numbers, bit for bit.
    overlap: bool = True
    # Average gradients in bfloat16: half the bytes on the network. Each sum keeps 8 significant bits.
    bf16_gradients: bool = False
    bucket_mib: PositiveFloat = 32.0  # MiB of gradients that are averaged in one message


@dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """The rank of this process, its device, and the group in which the ranks agree."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: dist.ProcessGroup | None = None  # gloo, for small tensors on the CPU; None for a single rank

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class LaunchInfo:
    """The place of this process, as its launcher assigned it."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    launcher: Literal["none", "torchrun", "slurm"] = "none"
    address: str = "127.0.0.1"  # of rank 0; torch itself reads torchrun's
    port: int = 0


@contextmanager
def distributed_context(config: DistributedConfig | None = None) -> Iterator[DistributedContext]:
    """Join the other ranks, yield this one's context, and destroy the process groups at the end.

    Reads torchrun's variables, or SLURM's inside an `srun` step; without either it is a run of one process without a
    process group. On the CPU each rank computes with one thread, unless OMP_NUM_THREADS is set.

    An exception on a rank of several does not wait for the others: the process ends, so that the launcher ends the
    rest. One of ours (see `configs.cli`) is printed as one line with the rank's name and its exit code becomes that of
    the process; of any other the traceback is printed, and the code is `ExitCode.FAILED`. `SystemExit` keeps its code.
    """
    config = config or DistributedConfig()
    info = find_launch_info(os.environ)
    device = choose_device(config.backend, info)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)
    if info.world == 1:
        yield DistributedContext(local_rank=info.local_rank, device=device)
        return
    try:
        yield _join(config, info, device)
    except SystemExit as request:
        _part(_code_of(request))
        raise
    except BaseException as error:  # a failed rank must not stay alive: others wait for it
        if exit_code_of(error) is None:
            _end_failed(info)
        code = report(error, where=f"rank {info.rank}")
        _part(code)
        raise SystemExit(code) from error
    _part(ExitCode.OK)


def find_launch_info(environment: Mapping[str, str]) -> LaunchInfo:
    """Return this process's place as torchrun or `srun` assigned it, or that of a single rank without a launcher.

    SLURM's variables count only within a step: the batch script itself also has a SLURM_PROCID, and is alone.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _checked(
            LaunchInfo(
                rank=_number(environment, "RANK"),
                world=_number(environment, "WORLD_SIZE"),
                local_rank=_number(environment, "LOCAL_RANK", "0"),
                launcher="torchrun",
            )
        )
    if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
        job = _number(environment, "SLURM_JOB_ID", "0")
        return _checked(
            LaunchInfo(
                rank=_number(environment, "SLURM_PROCID"),
                world=_number(environment, tasks),
                local_rank=_number(environment, "SLURM_LOCALID", "0"),
                launcher="slurm",
                address=environment.get("MASTER_ADDR") or _slurm_address(environment),
                port=_number(environment, "MASTER_PORT", str(20000 + job % 20000)),
            )
        )
    return LaunchInfo()


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: rack1n003 of `rack[1-2]n[003-010,12],login`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes.strip())
    if first is None or not first.group():
        raise DistributedError(f"SLURM_JOB_NODELIST = {nodes!r}: names no host; set MASTER_ADDR")
    return re.sub(r"\[([^\]]*)\]", lambda brackets: re.split(r"[-,]", brackets.group(1))[0], first.group())


def choose_device(backend: str, info: LaunchInfo) -> torch.device:
    """Return the GPU of this rank's number on its node, or the CPU."""
    if backend == "gloo" or (backend == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if not count:
        raise DistributedError(f"backend = {backend}: torch finds no GPU on {socket.gethostname()}; gloo needs none")
    # With `srun --gpus-per-task=1` each rank sees only its own GPU, as number 0.
    index = 0 if count == 1 and info.launcher == "slurm" else info.local_rank
    if index >= count:
        raise DistributedError(
            f"local rank {info.local_rank} on {socket.gethostname()} has no GPU: torch finds {count}; "
            "start as many ranks on a node as it has GPUs"
        )
    return torch.device("cuda", index)


class FlagConsensus:
    """Lets all ranks agree on a few flags, one step late and without waiting: a flag is set if any rank sets it.

    Each step, `agreed()` reads the flags started in the previous step, then `begin(flags)` starts the next all-reduce,
    which runs on the CPU during the step. All ranks must begin the same flags.
    """

    def __init__(self, context: DistributedContext) -> None:
        self._group = context.control
        self._world = context.world
        self._names: tuple[str, ...] | None = None
        self._flags_F: Tensor = torch.zeros(0, dtype=torch.int64)
        self._work: dist.Work | None = None

    def begin(self, flags: Mapping[str, bool]) -> None:
        """Start agreeing on these flags; the previous ones must have been read."""
        if self._names is not None:
            raise RuntimeError("flags were begun and not read: call `agreed` between two calls of `begin`")
        self._names = tuple(sorted(flags))
        check = zlib.crc32("\0".join(self._names).encode())
        # The maxima of x and −x show whether all ranks have the same x.
        self._flags_F = torch.tensor([check, -check, *(int(flags[name]) for name in self._names)])
        if self._world > 1:
            self._work = dist.all_reduce(self._flags_F, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self) -> dict[str, bool]:
        """Return the flags begun last, each set if it was set on any rank; empty before the first `begin`."""
        if self._names is None:
            return {}
        if self._work is not None:
            self._work.wait()
            self._work = None
        names, self._names = self._names, None
        most, least, *flags = self._flags_F.tolist()
        if most != -least:
            raise DistributedError(f"the ranks began different flags; this rank's are {', '.join(names)}")
        return {name: bool(flag) for name, flag in zip(names, flags, strict=True)}


def _join(config: DistributedConfig, info: LaunchInfo, device: torch.device) -> DistributedContext:
    """Create the process groups: the default one for gradients, and the control group."""
    timeout = timedelta(seconds=config.timeout_seconds)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{info.address}:{info.port}" if info.launcher == "slurm" else "env://",
        rank=info.rank,
        world_size=info.world,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(control, dist.ProcessGroup)
    logger.info("rank %d of %d on %s, %s", info.rank, info.world, socket.gethostname(), device)
    return DistributedContext(
        rank=info.rank, world=info.world, local_rank=info.local_rank, device=device, control=control
    )


def _part(code: int) -> None:
    """Destroy the process groups; if that takes too long (another rank is gone), end this process with `code`."""
    guard = threading.Timer(SHUTDOWN_SECONDS, _end, (code or ExitCode.FAILED,))
    guard.daemon = True
    guard.start()
    if dist.is_initialized():
        dist.destroy_process_group()
    guard.cancel()


def _end_failed(info: LaunchInfo) -> NoReturn:
    """Print the traceback of the current exception with the rank's name, and end the process."""
    error = sys.exc_info()[1]
    name = f"rank {info.rank} of {info.world} on {socket.gethostname()}"
    lines = "".join(f"[rank {info.rank}] {line}\n" for line in traceback.format_exc().splitlines())
    sys.stderr.write(f"{lines}{name} failed; the launcher ends the others\n")
    _end(ExitCode.INTERRUPTED if isinstance(error, KeyboardInterrupt) else ExitCode.FAILED)


def _end(code: int) -> NoReturn:
    """End this process and the loader's workers now: no exit handler may wait for a rank that is gone."""
    for child in multiprocessing.active_children():
        child.terminate()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _code_of(request: SystemExit) -> int:
    if request.code is None:
        return ExitCode.OK
    return request.code if isinstance(request.code, int) else ExitCode.FAILED


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Return the address of rank 0 of a step: its first node, or this one if there is no other."""
    nodes = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or "1"
    if nodes == "1":
        return "127.0.0.1"
    return first_host(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "")


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name) or default
    if text is None:
        raise DistributedError(f"{name} is not set, but other variables of its launcher are")
    try:
        return int(text)
    except ValueError:
        raise DistributedError(f"{name} = {text!r}: expected an integer") from None


def _checked(info: LaunchInfo) -> LaunchInfo:
    if not 0 <= info.rank < info.world:
        raise DistributedError(f"rank {info.rank} is out of range for {info.world} ranks")
    return info
