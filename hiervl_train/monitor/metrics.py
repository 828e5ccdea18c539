"""A run's metrics: averaged over a few steps, written to `metrics.jsonl`, TensorBoard and W&B, read back.

A line is a JSON object {"step", "time", name: value …}: `step` steps were done at the Unix time `time`; a non-finite
value is null. Counts (samples, failures, skipped steps) are those since the previous line, so that sums over all lines
are the run's.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.json
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from configs.loading import read_yaml
from shards import files

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WANDB = "wandb"
GIB = 2**30
_STEPS = 2**53  # an upper bound of step numbers
_BLOCK_BYTES = 8 << 20  # of lines that are parsed together

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """How often metrics are written, where to, and the denominator of the utilisation (MFU)."""

    every_steps: PositiveInt = 10  # steps that each line averages
    tensorboard: bool = True  # write TensorBoard's event files, too
    wandb: str | None = None  # name of the Weights & Biases project to log to, too; null: none
    # Peak TFLOP/s of one device, the denominator of the utilisation (MFU); null: by the device's name from its data
    # sheet, or, for an unknown device or a CPU, measured by a matrix product at the start.
    peak_tflops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class MetricsError(RuntimeError):
    """Metrics cannot be written as configured; the message says what to install or to set."""

    exit_code: ClassVar[int] = 2


class MetricsWriter:
    """Writes metrics to a run's `metrics.jsonl`, TensorBoard and W&B; the first rank of a run has one."""

    def __init__(self, folder: str | os.PathLike[str], config: MetricsConfig, *, first_step: int) -> None:
        """Open the files of a run that writes lines from step `first_step` on.

        A killed run may have written lines after its last checkpoint. Those steps are repeated, so their lines are
        dropped, and so is an incomplete line. Raises `MetricsError` where W&B is configured and not installed.
        """
        folder = Path(folder)
        self._path = folder / METRICS
        folder.mkdir(parents=True, exist_ok=True)
        _drop_from(self._path, first_step)
        self._file = self._path.open("ab")
        self._tensorboard: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # imported late: it takes a second

            self._tensorboard = SummaryWriter(str(folder / TENSORBOARD), purge_step=first_step)
        self._wandb = _open_wandb(config.wandb, folder) if config.wandb is not None else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line after `step` steps.

        A kill of the process cannot lose it, a power failure can (see `sync`).
        """
        now = time.time()
        self._file.write(line(step, now, values))
        self._file.flush()
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if self._tensorboard is not None:
            for name, value in finite.items():
                self._tensorboard.add_scalar(name, value, step, walltime=now)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def sync(self) -> None:
        """Make all lines durable, as a checkpoint is: the metrics before it cannot be lost then."""
        os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Close the files, and finish the W&B run."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_wandb(project: str, folder: Path) -> Any:
    """Start, or continue, the W&B run of a run's folder: named as the folder, with the configuration in it."""
    try:
        import wandb
    except ImportError:
        raise MetricsError(
            f"metrics.wandb = {project}: the package wandb is not installed; run `pip install 'hiervl[wandb]'` or set "
            "metrics.wandb=null"
        ) from None
    id_file = folder / WANDB / "run-id.txt"
    if not id_file.is_file():
        files.write_bytes(id_file, secrets.token_hex(8).encode())
    config_file = folder / "config.yaml"
    return wandb.init(
        project=project,
        name=folder.resolve().name,
        id=id_file.read_text(),
        resume="allow",  # W&B ignores the steps that a resumed run repeats
        dir=folder,
        config=read_yaml(config_file) if config_file.is_file() else None,
        settings=wandb.Settings(console="off", silent=True),
    )


def line(step: int, now: float, values: Mapping[str, float]) -> bytes:
    """Return a line of `metrics.jsonl`: strict JSON, in which non-finite values are null."""
    if reserved := {"step", "time"} & values.keys():
        raise ValueError(f"metrics must not be named {sorted(reserved)}: every line has these keys")
    row = {"step": step, "time": round(now, 3)} | {name: _finite(value) for name, value in values.items()}
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _finite(value: float) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the lines of a run in order; an incomplete line is left out with a warning."""
    return [row for row, _ in _rows(Path(folder) / METRICS)]


def read_columns(folder: str | os.PathLike[str]) -> dict[str, NDArray[np.float64]]:
    """Return the lines of a run as one float64 array per name, NaN where a line has no finite value."""
    path = Path(folder) / METRICS
    data = path.read_bytes() if path.exists() else b""
    data = data[: data.rfind(b"\n") + 1]
    if not data:
        return {}
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(data), read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES)
        )
        columns = {name: _column(table[name]) for name in table.column_names}
        steps = columns["step"]
        if pa.types.is_integer(table["step"].type) and ((steps >= 0) & (steps < _STEPS)).all():
            return columns
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError):
        pass  # a damaged line, which the slower reader leaves out, or a value that is not a number
    rows = read_metrics(folder)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([_number(row.get(name)) for row in rows], dtype=np.float64) for name in names}


def _column(values: pa.ChunkedArray) -> NDArray[np.float64]:
    column: NDArray[np.float64] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return column


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    pieces = data.split(b"\n")
    for number, piece in enumerate(pieces, 1):
        is_last = number == len(pieces)
        if is_last and not piece:
            return
        row = _parse(piece)
        if row is None or is_last:  # a last line without its end may be valid JSON that lost digits
            _log.warning("%s, line %d is left out: %r is not a complete line of metrics", path, number, piece[:60])
            continue
        yield row, piece


def _parse(piece: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(piece)
    except ValueError:
        return None
    is_complete = isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < _STEPS
    return row if is_complete else None


def _drop_from(path: Path, first_step: int) -> None:
    """Keep only the complete lines of steps before `first_step`; the file is replaced atomically, or not touched."""
    kept = b"".join(piece + b"\n" for row, piece in _rows(path) if row["step"] < first_step)
    if path.exists() and path.stat().st_size != len(kept):
        files.write_bytes(path, kept)


class Window:
    """Accumulates steps since the last line of metrics; `values` returns the averages and resets.

    Clips and operations are this process's; every rank does the same number, so the run's are `world` times as many.
    Time counts from the creation of the object, or from the previous call of `values`.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        world: int = 1,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Average over steps on `device` of each of `world` ranks; `peak_flops` is `Peak.flops`, None for no `mfu`."""
        self._device, self._world = torch.device(device), world
        self._peak, self._clock = peak_flops, clock
        self._begin()

    def _begin(self) -> None:
        self._began = self._clock()
        self._steps = self._skipped = 0
        self._clips, self._flops = 0, 0.0
        self._losses: dict[str, list[float]] = {}
        self._waits: dict[str, list[float]] = {}
        self._norms: list[float] = []
        self._phases: dict[str, list[float]] = {}
        self._data: dict[str, float] = {}

    def add(
        self,
        step_type: str,
        *,
        loss: float,
        grad_norm: float,
        clips: int,
        flops: float = 0.0,
        wait_seconds: float = 0.0,
        is_skipped: bool = False,
        phases: Mapping[str, float] | None = None,
    ) -> None:
        """Add a step of a type ("child", "parent"): its loss, gradient norm before clipping, this process's clips and
        operations, the seconds it waited for its batch, and those of its phases by name. A skipped step counts, but its
        loss and norm do not."""
        for phase, seconds in (phases or {}).items():
            self._phases.setdefault(f"time/{step_type}/{phase}", []).append(seconds)
        self._steps += 1
        self._clips += clips
        self._flops += flops
        self._waits.setdefault(step_type, []).append(wait_seconds)
        if is_skipped:
            self._skipped += 1
        else:
            self._losses.setdefault(step_type, []).append(loss)
            self._norms.append(grad_norm)

    def add_data(self, metrics: Mapping[str, float]) -> None:
        """Add a loader's counts (`Loader.metrics()`): samples, failures by reason, cache hits.

        Its `wait_seconds` do not count: those of the steps do.
        """
        for name, value in metrics.items():
            if name != "wait_seconds":
                self._data[name] = self._data.get(name, 0.0) + value

    @property
    def steps(self) -> int:
        """Steps added since the last call of `values`."""
        return self._steps

    def values(self, *, lr: float) -> dict[str, float]:
        """Return the averages by name, and reset; a step type without a step has no loss and no wait."""
        seconds = max(self._clock() - self._began, 1e-9)
        values = {f"loss/{step_type}": _mean(losses) for step_type, losses in self._losses.items()}
        values["lr"] = lr
        if self._norms:
            values["grad_norm"] = _mean(self._norms)
        if self._steps:
            per_device = self._clips / seconds
            values["clips_per_second"] = per_device * self._world
            values["clips_per_second_per_gpu"] = per_device
            if self._peak is not None:
                values["mfu"] = self._flops / seconds / self._peak
            values["data_wait_fraction"] = sum(map(sum, self._waits.values())) / seconds
            values |= {f"wait_seconds/{step_type}": _mean(waits) for step_type, waits in self._waits.items()}
            values["seconds_per_step"] = seconds / self._steps
            values |= {name: _mean(seconds) for name, seconds in self._phases.items()}
        values |= memory(self._device)
        values |= {f"data/{name}": value for name, value in sorted(self._data.items())}
        values["skipped_steps"] = self._skipped
        self._begin()
        return values


def memory(device: torch.device | str = "cpu") -> dict[str, float]:
    """Return the resident memory of this process in GiB and, on a GPU, its peaks since the previous call."""
    values = {"memory/process_gib": _resident_bytes() / GIB}
    device = torch.device(device)
    if device.type == "cuda":
        values["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        values["memory/gpu_reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
        torch.cuda.reset_peak_memory_stats(device)
    return values


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # not Linux: the peak instead, in bytes on macOS
        peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak_memory if sys.platform == "darwin" else peak_memory * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
