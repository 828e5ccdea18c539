"""No step waits for the device: nothing reads a value of it, and what goes there is pinned."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hiervl_train.monitor.nonfinite import NonFiniteGuard
from hiervl_train.optim import OptimConfig, build_optimizer, update
from hiervl_train.transfer import Readback, to_device
from tests.hiervl_train.made_up import batch_of, config_of, steps_of
from tests.paths import REPOSITORY

# Operations that give the host a value, or a shape that depends on values: each waits for the device.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "repeat_interleave")


class Waits(TorchDispatchMode):
    """Records the operations that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        has_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name.startswith(WAITS) or has_mask:
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_no_step_reads_a_value_of_the_device(tmp_path: Path, micro_batch: int | None) -> None:
    schedule = {"clip_micro_batch": micro_batch, "summary_micro_batch": micro_batch}
    model, steps = steps_of(config_of(schedule=schedule))
    config = OptimConfig(clip_norm=1.0)
    parameters = list(model.parameters())
    optimizer = build_optimizer(parameters, config)
    guard = NonFiniteGuard(tmp_path, 0, 3)
    records = []
    with Waits() as waits:
        for step, step_type in enumerate(("child", "parent", "child"), 1):
            optimizer.zero_grad(set_to_none=True)
            batch = batch_of(step_type, 4, seed=step)
            result = steps.by_type[step_type](batch)
            norm = update(optimizer, parameters, config, 1e-3)
            records.append(guard.next(step, step_type, result, norm, batch.keys, lr=1e-3, waited=0.0))
        records.append(guard.flush())
    assert waits.found == []
    assert records[0] is None and [record.step for record in records[1:] if record] == [1, 2, 3]


def test_the_tracer_sees_what_waits() -> None:
    x = torch.arange(4.0)
    with Waits() as waits:
        float(x[0])
        x[x > 1]
        bool(x[0] > 1)
    assert len(waits.found) == 3


def test_numbers_are_those_of_the_moment_when_the_copy_began() -> None:
    loss = torch.tensor(1 / 3)
    numbers = Readback([loss, torch.tensor(torch.inf)])
    loss += 1
    assert numbers.values() == [float(torch.tensor(1 / 3)), torch.inf]


def test_only_pinned_memory_is_copied_asynchronously() -> None:
    """A copy from pageable memory waits in spite of `non_blocking`: all go through the modules that pin."""
    pinning = {"transfer.py", "data.py", "checkpoint/manager.py"}  # batches are pinned by the loader
    found = set()
    for path in (REPOSITORY / "hiervl_train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "non_blocking":
                found.add(str(path.relative_to(REPOSITORY / "hiervl_train")))
    assert found == pinning
    x = torch.arange(3)
    assert to_device(x, torch.device("cpu")) is x


def test_no_step_makes_a_tensor_of_numbers_on_the_device() -> None:
    """`torch.tensor([…], device=…)` copies from pageable memory."""
    root = REPOSITORY / "hiervl_train"
    paths = [root / name for name in ("steps.py", "losses.py", "objectives.py", "optim.py", "grad_cache.py")]
    found = []
    for path in (*paths, *root.glob("models/*.py"), *root.glob("tasks/*.py"), *root.glob("reduction/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.tensor", "torch.as_tensor")
            if is_call and any(k.arg == "device" and ast.unparse(k.value) != "'cpu'" for k in node.keywords):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_never_waited_for(tmp_path: Path) -> None:
    model, steps = steps_of(config_of())
    model.cuda()
    parameters = list(model.parameters())
    optimizer = build_optimizer(parameters, OptimConfig())
    guard = NonFiniteGuard(tmp_path, 0, 3)
    for step in range(1, 5):
        batch = batch_of("child", 4, seed=step).pin_memory()
        torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")  # the first steps allocate
        try:
            optimizer.zero_grad(set_to_none=True)
            result = steps.by_type["child"](batch.to("cuda", non_blocking=True))
            norm = update(optimizer, parameters, OptimConfig(), 1e-3)
            guard.next(step, "child", result, norm, batch.keys, lr=1e-3, waited=0.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
