"""Real training runs for tests: a tiny model on the embedded dataset, one process per rank, from a fork server."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from hiervl_train.monitor.metrics import read_metrics
from tests.paths import REPOSITORY

# Every setting that affects the losses, whatever the defaults are; without dropout, so that they do not depend on the
# number of ranks.
TINY = (
    "model.img_size=32",
    "model.patch_size=16",
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.text={vocab_size: 400, n_layers: 1, n_heads: 2, dim: 32, hidden_dim: 64, max_position_embeddings: 64, "
    "dropout: 0.0, attention_dropout: 0.0}",
    "model.projection_dim=16",
    "model.aggregator={depth: 1, num_heads: 2, tokens: 4, drop_path: 0.0, position_std: 0.2}",
    "schedule={epochs: 1000, clips: 16, summaries: 4, clip_micro_batch: null, summary_micro_batch: null}",
    "sample={frames: 2, windows: 3, narrations: 3}",
    "init={video: null, text: null}",
    "optim={lr: 0.002}",
    "speed={bf16: false, compile: false}",
    "objective.temperature=0.2",
    "data={workers: 1, summary_workers: 1}",
    "metrics={every_steps: 1, tensorboard: false, peak_tflops: 1.0}",
    "save={every_steps: 5, every_minutes: null, keep_last: 3}",
    "evaluation={every_steps: null, at_end: false}",
)
DROPOUT = "model.text.dropout=0.1"
# The checkpoint of a tiny run, written by the first version of this code with its configuration keys, and its outputs.
FIRST_VERSION = REPOSITORY / "tests" / "hiervl_train" / "data" / "run_of_first_version"

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # of the fork server, and so of all runs: a missing name is not looked up
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["hiervl_train.pretrain", "hiervl_train.finetune", "torch._dynamo"])


@dataclass(frozen=True, kw_only=True)
class Run:
    """A started run: its folder, and its processes in the order of ranks."""

    folder: Path
    processes: Sequence[ForkServerProcess]

    def wait(self, seconds: float = 300) -> list[int | None]:
        """Return the exit codes of all ranks; kill those that still run after `seconds`."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self) -> None:
        """Kill all ranks."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()

    def signal(self, number: signal.Signals, rank: int = 0) -> None:
        """Send a rank a signal."""
        pid = self.processes[rank].pid
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def reached(self, step: int, seconds: float = 240) -> bool:
        """Wait until the run has written the metrics of a step; return whether it did before it ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(row["step"] >= step for row in read_metrics(self.folder)):
                return True
            if not all(process.is_alive() for process in self.processes):
                return False
            time.sleep(0.02)
        return False

    def output(self) -> str:
        """Return what all ranks have printed so far."""
        return "".join(path.read_text() for path in sorted(self.folder.parent.glob(f"{self.folder.name}.rank*.txt")))


def start(
    root: Path,
    folder: Path,
    *overrides: str,
    ranks: int = 1,
    environment: Mapping[str, str] = {},
    entry: str = "pretrain",
    settings: Sequence[str] = TINY,
) -> Run:
    """Start a run of an entry of `hiervl_train`, by default pretraining with the tiny model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    argv = [*settings, f"data.root={root}", f"run.folder={folder}", *overrides]
    port = str(free_port())
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {name: str(value) for name, value in place.items()} if ranks > 1 else {}
        output = folder.parent / f"{folder.name}.rank{rank}.txt"
        process = _forks.Process(target=_be_rank, args=(entry, argv, {**variables, **environment}, output))
        process.start()
        processes.append(process)
    return Run(folder=folder, processes=processes)


def finished(
    root: Path,
    folder: Path,
    *overrides: str,
    ranks: int = 1,
    codes: Sequence[int] = (0,),
    entry: str = "pretrain",
    settings: Sequence[str] = TINY,
) -> list[float]:
    """Run to the end; return the losses by step. Fails where an exit code is not among `codes`."""
    run = start(root, folder, *overrides, ranks=ranks, entry=entry, settings=settings)
    found = run.wait()
    assert set(found) <= set(codes), f"{found}\n{run.output()}"
    return losses(folder)


def losses(folder: Path) -> list[float]:
    """Return the loss of each step; fails where a step has no line, or two."""
    rows = [row for row in read_metrics(folder) if "skipped_steps" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [loss for row in rows for name, loss in row.items() if name.startswith("loss/")]


def free_port() -> int:
    """Return a port of the loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def ended(run: Run) -> Iterator[Run]:
    """End a run with the block, whatever happens in it."""
    try:
        yield run
    finally:
        run.kill()


def _be_rank(entry: str, argv: list[str], environment: dict[str, str], output: Path) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(importlib.import_module(f"hiervl_train.{entry}").main(argv))
