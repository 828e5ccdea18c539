"""What one rank computes for the tests of averaged gradients: the same steps, averaged in several ways."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hiervl_train.models import HierVL
from hiervl_train.reduction.reducer import GradientReducer
from hiervl_train.task import NO_SCOPE, NoScope
from tests.hiervl_train.made_up import batch_of, config_of, steps_of

STEPS = ("child", "parent", "child", "parent")  # the second of a type has a plan
GLOBAL = {"child": 8, "parent": 8}  # clips, summaries of all ranks together
BUCKET = 4000  # bytes
MICRO_BATCHES = {"plain": None, "cached": 1}


def results(rank: int, world: int) -> dict[str, Any]:
    """Return, by kind of step and way of averaging, gradients by name of each step, and what was seen on the way."""
    found: dict[str, Any] = {}
    for kind, micro_batch in MICRO_BATCHES.items():
        model, steps = steps_of(
            config_of(schedule={"clip_micro_batch": micro_batch, "summary_micro_batch": micro_batch})
        )
        named = dict(model.named_parameters())
        for way, options in {"overlapped": {}, "after": {"overlap": False}, "bf16": {"bf16": True}}.items():
            reducer = GradientReducer(named, bucket_bytes=BUCKET, **options)
            with during_backward() as launches:
                found[f"{kind} {way}"] = [
                    one_step(model, steps.by_type, reducer, number, rank, world) for number in range(len(STEPS))
                ]
            found[f"{kind} {way} launches"] = launches
            reducer.close()
        found[f"{kind} today"] = [
            one_step(model, steps.by_type, None, number, rank, world) for number in range(len(STEPS))
        ]
    found["other order"] = other_order(rank)
    found["errors"] = errors()
    return found


def one_step(
    model: HierVL, steps: Any, reducer: GradientReducer | None, number: int, rank: int, world: int
) -> dict[str, Tensor]:
    """Return the averaged gradients of a step, by parameter."""
    step_type = STEPS[number]
    model.zero_grad(set_to_none=True)
    batch = batch_of(step_type, GLOBAL[step_type] // world, seed=number, rank=rank)
    if reducer is None:
        steps[step_type](batch, NO_SCOPE)
        average_as_before(model.parameters())
    else:
        reducer.begin(step_type)
        steps[step_type](batch, _Scope(reducer))
        reducer.finish()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class _Scope(NoScope):
    """Tells the reducer which backward pass is the last, as the loop does."""

    def __init__(self, reducer: GradientReducer) -> None:
        self.last_backward = reducer.last_backward  # type: ignore[method-assign]


def average_as_before(parameters: Iterator[nn.Parameter]) -> None:
    """Average gradients as this project did before it had plans: after the backward pass, in the parameters' order."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    buckets: list[list[Tensor]] = [[]]
    for gradient in gradients:
        if buckets[-1] and sum(g.nbytes for g in buckets[-1]) + gradient.nbytes > BUCKET:
            buckets.append([])
        buckets[-1].append(gradient)
    for bucket in buckets:
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


@contextmanager
def during_backward() -> Iterator[list[bool]]:
    """Record of each asynchronous all-reduce whether it was started during a backward pass."""
    seen: list[bool] = []
    original = dist.all_reduce

    def recorded(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("async_op"):
            seen.append(torch._C._current_graph_task_id() != -1)
        return original(*args, **kwargs)

    dist.all_reduce = recorded
    try:
        yield seen
    finally:
        dist.all_reduce = original


def other_order(rank: int) -> list[dict[str, Tensor]]:
    """Return gradients of steps in which every rank, and every step, completes gradients in another order."""
    torch.manual_seed(0)
    parts = nn.ModuleList(nn.Linear(5, 5) for _ in range(6))
    reducer = GradientReducer(dict(parts.named_parameters()), bucket_bytes=150)
    found = []
    for step in range(4):
        parts.zero_grad(set_to_none=True)
        order = random.Random(100 * step + rank).sample(range(6), 6)
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(10 * step + rank))
        reducer.begin("step")
        with reducer.last_backward():
            torch.stack([(number + 1) * parts[number](x).square().sum() for number in order]).sum().backward()
        local = {name: p.grad.clone() for name, p in parts.named_parameters()}
        reducer.finish()
        gathered = {name: [torch.empty_like(g) for _ in range(dist.get_world_size())] for name, g in local.items()}
        for name, gradient in local.items():
            dist.all_gather(gathered[name], gradient)
        mean = {name: torch.stack(everyone).double().mean(0) for name, everyone in gathered.items()}
        found.append({"gradients": {n: p.grad.clone() for n, p in parts.named_parameters()}, "means": mean})
    reducer.close()
    return found


def errors() -> dict[str, str]:
    """Return the messages of what a reducer refuses."""
    return {
        "added to": _message(lambda layers, reducer: _twice(layers, reducer)),
        "other parameters": _message(lambda layers, reducer: _others(layers, reducer)),
    }


def _message(work: Callable[[nn.ModuleList, GradientReducer], None]) -> str:
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    reducer = GradientReducer(dict(layers.named_parameters()))
    try:
        work(layers, reducer)
    except RuntimeError as error:
        return str(error)
    finally:
        reducer.close()
    return "no error"


def _twice(layers: nn.ModuleList, reducer: GradientReducer) -> None:
    reducer.begin("child")
    for _ in range(2):
        with reducer.last_backward():
            layers[0](torch.ones(1, 2)).sum().backward()


def _others(layers: nn.ModuleList, reducer: GradientReducer) -> None:
    for number in range(2):
        layers.zero_grad(set_to_none=True)
        reducer.begin("child")
        with reducer.last_backward():
            layers[number](torch.ones(1, 2)).sum().backward()
        reducer.finish()
