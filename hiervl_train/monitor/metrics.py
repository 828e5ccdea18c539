"""A run's numbers: averaged between two writes, appended to `metrics.jsonl` and to TensorBoard, read back.

A line is a JSON object {"step", "time", name: value …}: `step` steps were done when it was written, at the Unix time
`time`; a value that is no finite number is null. Counts (samples, failures, skipped steps) are those since the line
before, so that sums over a run's lines are the run's.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import torch

from shards import files

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
GIB = 2**30
_STEPS = 2**53  # more than any run has
_BLOCK_BYTES = 8 << 20  # of lines that are parsed together

# Dense matrix-product peaks in TFLOP/s, bfloat16 with float32 accumulation, from NVIDIA's data sheets (which head their
# columns with the doubled figure for sparse weights). Volta and Turing have no bfloat16: theirs is float16. The first
# entry all of whose words are in the device's name counts, so the special ones come first.
PEAK_TFLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250.0),
    (("H100", "PCIe"), 756.0),
    (("H100", "NVL"), 835.0),
    (("H200", "NVL"), 835.0),
    (("H200",), 989.0),  # also GH200
    (("H100",), 989.0),  # SXM: "NVIDIA H100 80GB HBM3"
    (("H800",), 989.0),
    (("A100",), 312.0),
    (("A800",), 312.0),
    (("A40",), 149.7),
    (("A30",), 165.0),
    (("A10G",), 70.0),
    (("A10",), 125.0),
    (("L40S",), 362.0),
    (("L40",), 181.0),
    (("L4",), 121.0),
    (("RTX A6000",), 154.8),
    (("V100",), 125.0),
    (("T4",), 65.0),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """How often numbers are written, where to, and what model FLOP utilisation is a share of."""

    every_steps: int = 10  # each line is the average of this many steps
    tensorboard: bool = True
    # TFLOP/s of one device that utilisation is a share of; null: the data sheet's by the device's name, or, where it
    # is not known and on a CPU, measured by a matrix product at the start.
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"every_steps = {self.every_steps}: at least 1 is needed")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"peak_tflops = {self.peak_tflops}: a positive number or null is needed")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What one device could do at most, and where that figure is from."""

    flops: float  # operations a second
    source: str

    def __str__(self) -> str:
        return f"{self.flops / 1e12:.4g} TFLOP/s a device: {self.source}"


def peak(device: torch.device | str, config: MetricsConfig) -> Peak:
    """Return what `mfu` is a share of on this device; its text names it (`mfu_denominator` of a run's environment)."""
    device = torch.device(device)
    if config.peak_tflops is not None:
        return Peak(flops=config.peak_tflops * 1e12, source="metrics.peak_tflops")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        tflops = peak_tflops_of(name)
        if tflops is not None:
            kind = "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
            return Peak(flops=tflops * 1e12, source=f"dense {kind} peak of {name} by its data sheet")
    return measure_peak(device)


def peak_tflops_of(device_name: str) -> float | None:
    """Return the data sheet's TFLOP/s of a device named as CUDA names it; None for unknown ones and slices of one."""
    if "MIG" in device_name:
        return None
    words = device_name.replace("-", " ").split()
    for wanted, tflops in PEAK_TFLOPS:
        if all(any(part in (word, word.removeprefix("G")) for word in words) for part in " ".join(wanted).split()):
            return tflops
    return None


def measure_peak(device: torch.device | str, *, seconds: float = 0.3) -> Peak:
    """Return the speed of the fastest of some square matrix products: bfloat16 on a GPU, float32 on a CPU."""
    device = torch.device(device)
    is_cpu = device.type == "cpu"
    size, dtype = (1024, torch.float32) if is_cpu else (8192, torch.bfloat16)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best, began = math.inf, None
    while began is None or time.perf_counter() - began < seconds:
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait_for(device)
        if began is None:
            began = time.perf_counter()  # the first product also loads libraries; it is not counted
            continue
        best = min(best, time.perf_counter() - start)
    where = f"{torch.get_num_threads()} CPU threads" if is_cpu else torch.cuda.get_device_name(device)
    kind = str(dtype).removeprefix("torch.")
    return Peak(flops=2 * size**3 / best, source=f"measured, {kind} product of {size} × {size} matrices on {where}")


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class MetricsWriter:
    """Appends lines to a run's `metrics.jsonl` and its TensorBoard folder; one process of a run has one."""

    def __init__(self, folder: str | os.PathLike[str], config: MetricsConfig, *, first_step: int) -> None:
        """Open the files of a run that will write lines of steps from `first_step` on.

        A run that was killed had perhaps written lines behind its last checkpoint: as those steps are done again,
        their lines are dropped, and so is a line that was half written.
        """
        folder = Path(folder)
        self._path = folder / METRICS
        folder.mkdir(parents=True, exist_ok=True)
        _drop_from(self._path, first_step)
        self._file = self._path.open("ab")
        self._tensorboard: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # here, as it takes a second to import

            self._tensorboard = SummaryWriter(str(folder / TENSORBOARD), purge_step=first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line of a moment when `step` steps are done.

        On return the operating system has it: a kill does not lose it, a power cut can (see `sync`).
        """
        now = time.time()
        self._file.write(line(step, now, values))
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                if math.isfinite(value):
                    self._tensorboard.add_scalar(name, value, step, walltime=now)

    def sync(self) -> None:
        """Make what was written durable, as a checkpoint is: the numbers before it are then never lost."""
        os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def line(step: int, now: float, values: Mapping[str, float]) -> bytes:
    """Return a line of `metrics.jsonl`: strict JSON, whatever the numbers are."""
    if reserved := {"step", "time"} & values.keys():
        raise ValueError(f"metrics named {sorted(reserved)}: every line has its own")
    row = {"step": step, "time": round(now, 3)} | {name: _finite(value) for name, value in values.items()}
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _finite(value: float) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the lines of a run in the order they were written; a line that is not whole is left out with a warning."""
    return [row for row, _ in _rows(Path(folder) / METRICS)]


def read_columns(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the lines of a run as one float64 array a name, NaN where a line has no (finite) value; fast when long."""
    path = Path(folder) / METRICS
    data = path.read_bytes() if path.exists() else b""
    data = data[: data.rfind(b"\n") + 1]
    if not data:
        return {}
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(data), read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES)
        )
        found = {name: _column(table[name]) for name in table.column_names}
        steps = found["step"]
        if pa.types.is_integer(table["step"].type) and ((steps >= 0) & (steps < _STEPS)).all():
            return found
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError):
        pass  # a damaged line, which the slower way leaves out, or a value that is no number
    rows = read_metrics(folder)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([_number(row.get(name)) for row in rows], dtype=np.float64) for name in names}


def _column(values: pa.ChunkedArray) -> np.ndarray:
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)


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
        if row is None or is_last:  # a last line without its end may have lost digits and be JSON all the same
            _log.warning("%s, line %d is left out: %r is not a whole line of metrics", path, number, piece[:60])
            continue
        yield row, piece


def _parse(piece: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(piece)
    except ValueError:
        return None
    is_whole = isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < _STEPS
    return row if is_whole else None


def _drop_from(path: Path, first_step: int) -> None:
    """Keep only the whole lines of steps before `first_step`; the file is replaced at once, or left alone."""
    kept = b"".join(piece + b"\n" for row, piece in _rows(path) if row["step"] < first_step)
    if path.exists() and path.stat().st_size != len(kept):
        files.write_bytes(path, kept)


class Window:
    """What happened since the last line of metrics, told step by step; `values` returns the averages and begins anew.

    Clips and operations are this process's; every rank does the same number, so the whole run's are `world` times
    as many. Time counts from the creation of the object, or from the call of `values` before.
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
        self._paused = 0.0
        self._steps = self._skipped = 0
        self._clips, self._flops = 0, 0.0
        self._losses: dict[str, list[float]] = {}
        self._waits: dict[str, list[float]] = {}
        self._norms: list[float] = []
        self._data: Counter[str] = Counter()

    def add(
        self,
        kind: str,
        *,
        loss: float,
        grad_norm: float,
        clips: int,
        flops: float = 0.0,
        wait_seconds: float = 0.0,
        is_skipped: bool = False,
    ) -> None:
        """Note a step of a kind ("child", "parent"): its loss, gradient norm before clipping, this process's clips and
        operations, and how long it waited for its batch. The numbers of a skipped step count, its loss does not."""
        self._steps += 1
        self._clips += clips
        self._flops += flops
        self._waits.setdefault(kind, []).append(wait_seconds)
        if is_skipped:
            self._skipped += 1
        else:
            self._losses.setdefault(kind, []).append(loss)
            self._norms.append(grad_norm)

    def add_data(self, metrics: Mapping[str, float]) -> None:
        """Note what a loader counted (`Loader.metrics()`): samples, failures by reason, cache hits where it has them.

        Its `wait_seconds` are left out: the steps tell theirs.
        """
        for name, value in metrics.items():
            if name != "wait_seconds":
                self._data[name] += value  # type: ignore[assignment]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block (an evaluation, say) out of every speed."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    @property
    def steps(self) -> int:
        """Steps noted since the last call of `values`."""
        return self._steps

    def values(self, *, lr: float) -> dict[str, float]:
        """Return the averages under their names, and begin anew; a level without a step has no loss and no wait."""
        seconds = max(self._clock() - self._began - self._paused, 1e-9)
        found = {f"loss/{kind}": _mean(losses) for kind, losses in self._losses.items()}
        found["lr"] = lr
        if self._norms:
            found["grad_norm"] = _mean(self._norms)
        if self._steps:
            per_device = self._clips / seconds
            found["clips_per_second"] = per_device * self._world
            found["clips_per_second_per_gpu"] = per_device
            if self._peak is not None:
                found["mfu"] = self._flops / seconds / self._peak
            found["data_wait_fraction"] = sum(map(sum, self._waits.values())) / seconds
            found |= {f"wait_seconds/{kind}": _mean(waits) for kind, waits in self._waits.items()}
            found["seconds_per_step"] = seconds / self._steps
        found |= memory(self._device)
        found |= {f"data/{name}": value for name, value in sorted(self._data.items())}
        found["skipped_steps"] = self._skipped
        self._begin()
        return found


def memory(device: torch.device | str = "cpu") -> dict[str, float]:
    """Return GiB of this process in memory and, on a GPU, the peaks since the call before."""
    found = {"memory/process_gib": _resident_bytes() / GIB}
    device = torch.device(device)
    if device.type == "cuda":
        found["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        found["memory/gpu_reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
        torch.cuda.reset_peak_memory_stats(device)
    return found


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # no Linux: the most it ever was, which macOS counts in bytes
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
