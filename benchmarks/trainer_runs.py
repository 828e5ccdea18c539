"""Runs the real trainer for `benchmarks/trainer.py`, recording when each batch is requested and each save is done.

Ranks are processes forked from a server that has already imported torch; each writes its figures as JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from configs.loading import load
from hiervl_train import trainer
from hiervl_train.checkpoint.files import COMPLETE
from hiervl_train.checkpoint.manager import Checkpoints
from hiervl_train.checkpoint.state import RunState
from hiervl_train.config import PretrainConfig
from hiervl_train.data import StepLoaders
from hiervl_train.distributed import DistributedContext
from hiervl_train.launch import launch
from hiervl_train.models import HierVL, ModelConfig
from hiervl_train.monitor.metrics import read_metrics
from hiervl_train.reduction.reducer import GradientReducer
from hiervl_train.task import Task
from hiervl_train.tasks.pretraining import pretraining_task
from shards.loader import Batch

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "pretrain"
PERIOD = 6  # steps per line of metrics: five child steps and a parent step
SAVES = ("none", "thread", "blocking")

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["hiervl_train.tasks.pretraining", "hiervl_train.launch", "torch._dynamo"])


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """One training run to measure."""

    folder: Path
    config: str  # name of a file in configs/pretrain, without extension
    overrides: tuple[str, ...]
    warmup: int  # steps that do not count, a multiple of PERIOD
    steps: int  # steps that count, a multiple of PERIOD
    batches: Literal["shards", "memory"] = "memory"
    save_every: int | None = None  # steps between saves, whose ways alternate; None: only at the end


class InMemory:
    """A replacement for `StepLoaders` that repeats the first batch of each step type, without workers."""

    def __init__(self, loaders: StepLoaders, step_types: Sequence[str]) -> None:
        self._loaders = loaders
        self._batches = {step_type: _private(loaders.next(step_type)) for step_type in step_types}
        self._cursors = loaders.cursors()
        loaders.close()

    def next(self, step_type: str) -> Batch:
        return self._batches[step_type]

    def watch(self, mark: Callable[[str], None]) -> None:
        pass

    def cursors(self) -> dict[str, dict[str, int]]:
        return self._cursors

    def metrics(self) -> dict[str, dict[str, float]]:
        return {}

    def close(self) -> None:
        pass


class TimedLoaders:
    """`StepLoaders` that append the time of each request, and the training thread's CPU time, to two lists."""

    def __init__(self, loaders: Any, requested: list[float], cpu: list[float]) -> None:
        self._loaders, self._requested, self._cpu = loaders, requested, cpu

    def next(self, step_type: str) -> Batch:
        self._requested.append(time.perf_counter())
        self._cpu.append(time.thread_time())
        return self._loaders.next(step_type)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loaders, name)


class AlternatingSaves(Checkpoints):
    """Checkpoints that alternate between not saving, saving in the background, and a blocking torch.save."""

    saves: list[dict[str, Any]]
    last_step: int

    def save(self, state: RunState, *, score: float | None = None, wait: bool = False) -> float:
        self._note_end()
        if state.step >= self.last_step:
            return super().save(state, score=score, wait=wait)
        number = len(self.saves)
        way = SAVES[number % len(SAVES)]
        self.saves.append({"step": state.step, "way": way, "began": time.time(), "call_s": 0.0})
        began = time.perf_counter()
        if way == "thread":
            super().save(state)
        elif way == "blocking":
            self._block(state)
        self.saves[-1]["call_s"] = time.perf_counter() - began
        return self.saves[-1]["call_s"]

    def _block(self, state: RunState) -> None:
        """Write the same tensors with torch.save and flush them to disk, as ours are."""
        path = self._folder.parent / "blocking.pt"
        began = time.perf_counter()
        with path.open("wb") as file:
            torch.save({"model": dict(state.model), "optimizer": dict(state.optimizer.tensors)}, file)
            self.saves[-1]["torch_save_s"] = time.perf_counter() - began
            file.flush()
            os.fsync(file.fileno())
        self.saves[-1]["bytes"] = path.stat().st_size
        path.unlink()

    def _note_end(self) -> None:
        """Record when the background thread completed the last checkpoint, before the next one replaces it."""
        if self.saves and self.saves[-1]["way"] == "thread":
            self.wait()
            last = self.saves[-1]
            sealed = (self._folder / f"step-{last['step']:08d}" / COMPLETE).stat().st_mtime
            last["written_s"] = sealed - last["began"]


def run(job: MeasuredRun, ranks: int = 1, *, seconds: float = 1800) -> list[dict[str, Any]]:
    """Execute a run; return the figures of each rank. Raises `RuntimeError` with the output of failed ranks."""
    return run_together([job], ranks, seconds=seconds)[0]


def run_together(jobs: Sequence[MeasuredRun], ranks: int = 1, *, seconds: float = 1800) -> list[list[dict[str, Any]]]:
    """Execute runs at the same time with `ranks` processes each; return the figures of each run's ranks."""
    started = []
    for job in jobs:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        started.append(_start(be_rank, (job,), ranks, job.folder))
    return [_finish(processes, folder, seconds) for processes, folder in started]


def reduce_published(ranks: int, folder: Path, *, config: ModelConfig | None = None, repeats: int = 3) -> float:
    """Return the median seconds of averaging a model's gradients over ranks on this machine with gloo."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    processes, folder = _start(be_reducer, (config or ModelConfig(), repeats), ranks, folder)
    return statistics.median(
        max(times) for times in zip(*(f["s"] for f in _finish(processes, folder, 600)), strict=True)
    )


def be_rank(job: MeasuredRun) -> dict[str, Any]:
    """Train as `hiervl_train/pretrain.py` does; return the figures."""
    requested: list[float] = []  # s, wall time
    cpu: list[float] = []  # s, CPU time of the training thread
    reduced: list[float] = []  # s per averaging of gradients
    saves: list[dict[str, Any]] = []
    last = job.warmup + job.steps
    every = job.save_every or last
    overrides = [
        f"run.folder={job.folder}",
        f"run.max_steps={last}",
        f"metrics.every_steps={PERIOD}",
        f"save={{every_steps: {every}, every_minutes: null, keep_last: 1}}",
        "evaluation={every_steps: null, at_end: false}",
        *job.overrides,
    ]

    def task(config: PretrainConfig, here: DistributedContext) -> Task:
        made = pretraining_task(config, here)
        step_types = sorted({made.step_type(step) for step in range(PERIOD)})
        loaders = InMemory(made.loaders, step_types) if job.batches == "memory" else made.loaders
        return replace(made, loaders=TimedLoaders(loaders, requested, cpu))  # type: ignore[arg-type]

    class TimedReducer(GradientReducer):
        def finish(self) -> None:
            began = time.perf_counter()
            super().finish()
            reduced.append(time.perf_counter() - began)

    # The process is for this run only, so parts of the trainer can be replaced by timed ones.
    trainer.GradientReducer = TimedReducer  # type: ignore[misc]
    if job.save_every is not None:
        trainer.Checkpoints = type("AlternatingSavesHere", (AlternatingSaves,), {"saves": saves, "last_step": last})  # type: ignore[misc]
    code = launch(load(PretrainConfig, CONFIGS / f"{job.config}.yaml", overrides), task)
    if code:
        sys.exit(code)
    return {
        "steps": [end - start for start, end in itertools.pairwise(requested)],
        "cpu_steps": [end - start for start, end in itertools.pairwise(cpu)],
        "cpu_share": (cpu[-1] - cpu[job.warmup]) / (requested[-1] - requested[job.warmup]),
        "reduce_s": statistics.mean(reduced[job.warmup :]),
        "saves": saves,
        "peak_resident_gb": peak_resident() / 1e9,
        **_rates(job),
    }


def be_reducer(config: ModelConfig, repeats: int) -> dict[str, Any]:
    """Average gradients of a model's size with the other ranks; return the seconds of each repetition."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="env://")
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in HierVL(config).parameters()]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.ones(parameter.shape)
    reducer = GradientReducer({str(number): parameter for number, parameter in enumerate(parameters)})
    times = []
    for _ in range(1 + repeats):  # the first also connects the ranks
        dist.barrier()
        began = time.perf_counter()
        reducer.begin("step")
        reducer.finish()
        times.append(time.perf_counter() - began)
    dist.destroy_process_group()
    return {"s": times[1:]}


def peak_resident() -> int:
    """Return the peak resident bytes of this process, without its workers."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _rates(job: MeasuredRun) -> dict[str, float]:
    """Return the run's own metrics of the steps that count: means over time, and peaks."""
    rows = [row for row in read_metrics(job.folder) if row["step"] > job.warmup and "clips_per_second" in row]
    seconds = [row["seconds_per_step"] for row in rows]
    total = sum(seconds)

    def mean(name: str) -> float | None:
        if any(row.get(name) is None for row in rows):
            return None
        return sum(row[name] * s for row, s in zip(rows, seconds, strict=True)) / total

    rates = {name: mean(name) for name in ("clips_per_second", "data_wait_fraction", "mfu", "seconds_per_step")}
    gpu = [row["memory/gpu_peak_gib"] for row in rows if "memory/gpu_peak_gib" in row]
    if gpu:
        rates["gpu_peak_gb"] = max(gpu) * 2**30 / 1e9
    return {name: value for name, value in rates.items() if value is not None}


def _private(batch: Batch) -> Batch:
    """Return a copy of a batch, whose memory is shared with a worker that is about to end."""
    return replace(batch, **{name: tensor.clone() for name, tensor in batch.tensors().items()})


def _start(target: Callable[..., Any], arguments: tuple[Any, ...], ranks: int, folder: Path) -> tuple[list[Any], Path]:
    port = str(_free_port())
    processes = []
    for rank in range(ranks):
        variables = {
            "RANK": rank,
            "WORLD_SIZE": ranks,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {name: str(value) for name, value in variables.items()} if ranks > 1 else {}
        process = _forks.Process(target=_in_process, args=(target, arguments, environment, _output(folder, rank)))
        process.start()
        processes.append(process)
    return processes, folder


def _finish(processes: Sequence[Any], folder: Path, seconds: float) -> list[dict[str, Any]]:
    end = time.monotonic() + seconds
    try:
        for process in processes:
            process.join(max(0.1, end - time.monotonic()))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    if any(codes):
        outputs = [_output(folder, rank).with_suffix(".txt").read_text()[-2000:] for rank in range(len(processes))]
        raise RuntimeError(f"a measured run ended with {codes}:\n" + "\n".join(outputs))
    return [json.loads(_output(folder, rank).read_text()) for rank in range(len(processes))]


def _output(folder: Path, rank: int) -> Path:
    return folder.parent / f"{folder.name}.rank{rank}.json"


def _in_process(
    target: Callable[..., Any], arguments: tuple[Any, ...], environment: Mapping[str, str], output: Path
) -> None:
    os.environ.update(environment)
    file = os.open(output.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    output.write_text(json.dumps(target(*arguments)))


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def windows(steps: Sequence[float], saves: Sequence[Mapping[str, Any]], every: int) -> Iterator[tuple[str, float]]:
    """Yield, for each turn, the way of saving and the seconds of the `every` steps from the save on.

    `steps[i]` is the time between the requests for batches i and i + 1: step i (from 0) and everything after it. A save
    after `n` steps is therefore part of `steps[n - 1]`, and its effects on later steps are in the next ones.
    """
    for save in saves:
        first = save["step"] - 1
        if first + every <= len(steps):
            yield save["way"], sum(steps[first : first + every])
