"""Averages the gradients of all ranks, bucket by bucket, while the backward pass still computes others.

    reducer.begin("child")
    with reducer.last_backward():
        loss.backward()
    reducer.finish()

Buckets are launched in the order of the step type's plan as soon as all their gradients are complete, by hooks that run
when a gradient has been accumulated. Without overlap, `finish` launches the same buckets in the same order, so the two
ways give the same numbers, bit for bit, on any number of ranks. The first step of a type has no plan yet: it records
the order in which gradients are complete, takes rank 0's, and averages after its backward pass.

Blocks may be compiled one by one. If a whole model is compiled as one graph, all hooks run at the end of its backward
pass and nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hiervl_train.collectives import broadcast_json, world_size
from hiervl_train.reduction.plan import BucketPlan

MIB = 2**20


class Work(Protocol):
    """A collective that was started."""

    def wait(self) -> object:
        """Wait for it: on a GPU the current stream does, not the host."""
        ...


@dataclass
class _Step:
    """The step that is being computed."""

    step_type: str
    completed: dict[int, None] = field(default_factory=dict)  # parameters, as their gradients were complete
    missing: list[int] = field(default_factory=list)  # per bucket, the gradients that it still waits for
    launched: list[tuple[Tensor, Work]] = field(default_factory=list)  # per launched bucket


class GradientReducer:
    """Averages gradients over ranks; with a single rank it does nothing. All ranks take the same types of steps."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        overlap: bool = True,
        bf16: bool = False,
        bucket_bytes: int = 32 * MIB,
    ) -> None:
        """Register hooks on named parameters. `bf16` sends bfloat16: half the bytes, sums of 8 significant bits."""
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._overlap, self._bucket_bytes = overlap, bucket_bytes
        self._dtype = torch.bfloat16 if bf16 else None
        self._world = world_size()
        self._plans: dict[str, BucketPlan] = {}
        self._bucket_of: dict[str, dict[int, int]] = {}
        self._step: _Step | None = None
        self._is_last = False
        self._hooks: list[RemovableHandle] = []
        if self._world > 1:
            self._hooks = [
                parameter.register_post_accumulate_grad_hook(self._hook(number))
                for number, parameter in enumerate(self._parameters)
            ]

    def begin(self, step_type: str) -> None:
        """Begin a step whose gradients are still to be computed."""
        self._step = _Step(step_type=step_type)
        if step_type in self._plans:
            self._step.missing = [len(bucket) for bucket in self._plans[step_type].buckets]

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        """Declare that the gradients computed in this block are complete: nothing is added to them afterwards.

        A step may have several such blocks for different parameters.
        """
        self._is_last = True
        try:
            yield
        finally:
            self._is_last = False

    def finish(self) -> None:
        """Replace all gradients of the step by their means over ranks; parameters without a gradient stay without.

        Raises RuntimeError, by name, where a parameter has a gradient that the first step of its type did not have, or
        lacks one: ranks would average different parameters with each other.
        """
        if self._world == 1 or self._step is None:
            return
        step, self._step = self._step, None
        with_gradient = [number for number, parameter in enumerate(self._parameters) if parameter.grad is not None]
        plan = self._plans.get(step.step_type) or self._make_plan(step, with_gradient)
        self._require_same(step.step_type, plan, with_gradient)
        while len(step.launched) < len(plan.buckets):
            self._launch(step, plan)
        for bucket, (flat, work) in zip(plan.buckets, step.launched, strict=True):
            work.wait()
            self._take(bucket, flat)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, number: int) -> Callable[[Tensor], None]:
        def complete(_: Tensor) -> None:
            step = self._step
            if step is None:
                return
            if number in step.completed:
                raise RuntimeError(
                    f"{self._names[number]} got a gradient after its last backward pass of this {step.step_type} step, "
                    "when it may have been averaged already: `last_backward` must hold its last gradient only"
                )
            if self._is_last:
                step.completed[number] = None
                self._launch_ready(step, number)

        return complete

    def _launch_ready(self, step: _Step, number: int) -> None:
        """Launch the buckets that are complete, in the plan's order."""
        plan = self._plans.get(step.step_type)
        if plan is None or not self._overlap:
            return
        bucket = self._bucket_of[step.step_type].get(number)
        if bucket is None:
            return  # `finish` names it
        step.missing[bucket] -= 1
        while len(step.launched) < len(plan.buckets) and not step.missing[len(step.launched)]:
            self._launch(step, plan)

    def _launch(self, step: _Step, plan: BucketPlan) -> None:
        """Start summing the next bucket of the plan over ranks."""
        flat = torch.cat([self._gradient(number).flatten() for number in plan.buckets[len(step.launched)]])
        if self._dtype is not None:
            flat = flat.to(self._dtype)
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        step.launched.append((flat, work))

    def _take(self, bucket: tuple[int, ...], flat: Tensor) -> None:
        """Copy the means of a summed bucket into the gradients."""
        gradients = [self._gradient(number) for number in bucket]
        flat = flat.to(gradients[0].dtype)
        flat /= self._world
        means = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [mean.view_as(gradient) for mean, gradient in zip(means, gradients, strict=True)]
        )

    def _make_plan(self, step: _Step, with_gradient: list[int]) -> BucketPlan:
        """Return and keep the plan of a step type, from the order in which its first step completed gradients."""
        # What no block of `last_backward` held comes last, in reverse order of registration.
        order = [*step.completed, *(number for number in reversed(with_gradient) if number not in step.completed)]
        order = broadcast_json(order, None)
        plan = BucketPlan.of(order, self._parameters, self._bucket_bytes)
        self._plans[step.step_type] = plan
        self._bucket_of[step.step_type] = {
            number: index for index, bucket in enumerate(plan.buckets) for number in bucket
        }
        return plan

    def _require_same(self, step_type: str, plan: BucketPlan, with_gradient: list[int]) -> None:
        different = plan.parameters.symmetric_difference(with_gradient)
        if different:
            names = ", ".join(self._names[number] for number in sorted(different)[:5])
            raise RuntimeError(
                f"{len(different)} parameters have a gradient in only some {step_type} steps, or on some ranks: {names}"
            )

    def _gradient(self, number: int) -> Tensor:
        gradient = self._parameters[number].grad
        assert gradient is not None
        return gradient
