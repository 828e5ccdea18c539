"""Compares runs on one and on two ranks, in float64 or float32: what they see, and how far their losses part.

    python -m tests.hiervl_train.worlds ROOT FOLDER [STEPS]      prints a table of 100 steps on a dataset
    python -m tests.hiervl_train.worlds --rank OUT DTYPE START PERTURBED key=value …      is one rank

START is `published`, or `random`: time attention then starts from random weights instead of the published ones, which
are a saddle point (docs/training.md). PERTURBED 1 moves every initial weight by one unit in its last place.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.loading import load
from hiervl_train import steps
from hiervl_train.config import PretrainConfig
from hiervl_train.distributed import DistributedContext
from hiervl_train.launch import launch
from hiervl_train.models.layers import TimeAttention
from hiervl_train.models.pixels import normalise
from hiervl_train.task import Step, StepResult, Task
from hiervl_train.tasks.pretraining import pretraining_task
from shards.loader import Batch
from tests.hiervl_train.runs import TINY, free_port
from tests.paths import REPOSITORY

QUIET = ("save={every_steps: null, every_minutes: null}",)


@dataclass(frozen=True, kw_only=True)
class World:
    """A finished run: the type and loss of each step, and digests of the initial weights and of what each step saw."""

    types: Sequence[str]
    losses: Sequence[float]
    batches: Sequence[Sequence[str]]  # by step, of each sample of the global batch in order
    weights: str


class PreciseEncoder(steps.Encoder):
    """Encodes in the model's own precision; the trainer's encoder returns float32."""

    def video(self, frames_BTCHW: Tensor) -> Tensor:
        """Return (B, D) of uint8 frames."""
        dtype = next(self._model.parameters()).dtype
        embedded: Tensor = self._model.encode_video(normalise(frames_BTCHW, order=self._order, dtype=dtype))
        return embedded

    def text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return (B, D) of tokens."""
        embedded: Tensor = self._model.encode_text(ids_BL, mask_BL)
        return embedded

    def aggregate(self, x_BKD: Tensor) -> Tensor:
        """Return (B, D) of K ordered embeddings."""
        aggregated: Tensor = self._model.aggregate(x_BKD)
        return aggregated


def train(
    root: Path,
    folder: Path,
    *options: str,
    ranks: int,
    dtype: str = "float64",
    start: str = "published",
    perturbed: bool = False,
    max_steps: int = 100,
) -> World:
    """Train the tiny model with the trainer on some ranks; return what they recorded."""
    folder.mkdir(parents=True)
    settings = [*TINY, *QUIET, f"data.root={root}", f"run.folder={folder / 'run'}", f"run.max_steps={max_steps}"]
    port = str(free_port())
    processes = []
    for rank in range(ranks):
        out = folder / f"rank{rank}.json"
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {name: str(value) for name, value in place.items()} if ranks > 1 else {}
        command = [sys.executable, "-m", "tests.hiervl_train.worlds", "--rank", str(out), dtype, start]
        processes.append(
            subprocess.Popen(
                [*command, str(int(perturbed)), *settings, *options],
                cwd=REPOSITORY,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    output = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(output)
    return _merged([json.loads((folder / f"rank{rank}.json").read_bytes()) for rank in range(ranks)])


def parted(one: World, other: World) -> dict[str, list[tuple[int, float]]]:
    """Return by step type the steps, from 1, and by how much the losses differ."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, (step_type, mine, theirs) in enumerate(zip(one.types, one.losses, other.losses, strict=True), start=1):
        found.setdefault(step_type, []).append((step, abs(mine - theirs)))
    return found


def _merged(records: Sequence[Mapping[str, Any]]) -> World:
    """Return the ranks' records as one; every rank must have started from the same weights and had the same losses."""
    first = records[0]
    assert all(record["weights"] == first["weights"] for record in records)
    assert all(record["losses"] == first["losses"] for record in records)
    batches = [[sample for part in parts for sample in part] for parts in zip(*(r["batches"] for r in records))]  # noqa: B905
    return World(types=first["types"], losses=first["losses"], batches=batches, weights=first["weights"])


def _be_rank(out: Path, dtype: str, start: str, perturbed: str, options: Sequence[str]) -> int:
    steps.Encoder = PreciseEncoder  # type: ignore[misc]
    record: dict[str, Any] = {"types": [], "losses": [], "batches": []}

    def make(config: PretrainConfig, context: DistributedContext) -> Task:
        task = pretraining_task(config, context)
        task.model.to(getattr(torch, dtype))
        if start == "random":
            _start_time_attention_at_random(task.model)
        if perturbed == "1":
            _move_by_one_unit(task.model)
        record["weights"] = _digest(*(p.detach() for p in task.model.parameters()))
        return replace(task, steps={name: _recorded(name, step, record) for name, step in task.steps.items()})

    code = launch(load(PretrainConfig, None, options), make)
    out.write_text(json.dumps(record))
    return code


def _recorded(name: str, step: Step, record: dict[str, Any]) -> Callable[..., StepResult]:
    def run(batch: Batch, *scope: Any) -> StepResult:
        result = step(batch, *scope)
        record["types"].append(name)
        record["losses"].append(float(result.loss))
        narrations = batch.narrations or [()] * len(batch.keys)
        samples = zip(batch.keys, batch.texts, narrations, batch.video, strict=True)
        record["batches"].append(
            [f"{key} {text} {list(told)} {_digest(frames)}" for key, text, told, frames in samples]
        )
        return result

    return run


def _start_time_attention_at_random(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, TimeAttention):
            for weight in (module.qkv.weight, module.proj.weight):
                weight.data.copy_(0.05 * torch.randn(weight.shape, generator=generator))


def _move_by_one_unit(model: nn.Module) -> None:
    """Move every weight that is not zero to one of its neighbours among the numbers of its type."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        towards = torch.where(torch.rand(parameter.shape, generator=generator) < 0.5, -9.0, 9.0).to(parameter.dtype)
        moved = torch.nextafter(parameter.data, towards)
        parameter.data.copy_(torch.where(parameter.data == 0, parameter.data, moved))


def _digest(*tensors: Tensor) -> str:
    return hashlib.blake2b(b"".join(t.contiguous().numpy().tobytes() for t in tensors), digest_size=8).hexdigest()


def _print_table(root: Path, folder: Path, max_steps: int) -> None:
    """Print by how much the losses have parted up to some steps: two ranks, and one rank with moved weights."""
    marks = [step for step in (12, 24, 36, 48, 72, 96) if step <= max_steps]
    print("largest difference of a loss up to step: " + "  ".join(f"{mark:>7}" for mark in marks))
    for dtype in ("float64", "float32"):
        for start in ("published", "random"):
            kind = {"dtype": dtype, "start": start, "max_steps": max_steps}
            where = folder / f"{dtype}-{start}"
            one = train(root, where / "one", ranks=1, **kind)  # type: ignore[arg-type]
            two = train(root, where / "two", ranks=2, **kind)  # type: ignore[arg-type]
            moved = train(root, where / "moved", ranks=1, perturbed=True, **kind)  # type: ignore[arg-type]
            assert one.batches == two.batches == moved.batches and one.weights == two.weights
            for name, other in (("two ranks", two), ("one unit", moved)):
                for step_type, differences in parted(one, other).items():
                    worst = [max(value for step, value in differences if step <= mark) for mark in marks]
                    cells = "  ".join(f"{value:7.1e}" for value in worst)
                    print(f"{dtype}  {start:9}  {name:9}  {step_type:6}  {cells}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        sys.exit(_be_rank(Path(sys.argv[2]), *sys.argv[3:6], sys.argv[6:]))  # type: ignore[misc, arg-type]
    _print_table(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 100)
