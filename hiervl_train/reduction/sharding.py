"""AdamW whose moments are divided over the ranks (ZeRO stage 1): each rank updates its parameters and sends them round.

A parameter's update depends on its own gradient and moments alone, so weights are those of the undivided optimiser, bit
for bit. Gradients are averaged on all ranks as always. Checkpoints hold the moments of all parameters, whatever the
number of ranks: rank 0 gathers them for a save (`gathered`), and each rank keeps its own part of a restored state.

torch's ZeroRedundancyOptimizer gathers states by pickling them, and has no skipped steps; FSDP also divides weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedAdamW(torch.optim.AdamW):
    """Fused AdamW over all parameters, which holds the moments of this rank's part. All ranks step together."""

    def __init__(self, parameters: list[nn.Parameter], **options: Any) -> None:
        """See `torch.optim.AdamW` for the options."""
        super().__init__(parameters, **options)
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._all = parameters
        self._owner = owners([parameter.nbytes for parameter in parameters], self._world)
        self._has_moments = [False] * len(parameters)  # on their owner, known to every rank

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update this rank's parameters, and give all ranks all updated parameters; other gradients are dropped."""
        updated: list[list[nn.Parameter]] = [[] for _ in range(self._world)]
        for number, parameter in enumerate(self._all):
            if parameter.grad is not None:
                self._has_moments[number] = True
                updated[self._owner[number]].append(parameter)
                if self._owner[number] != self._rank:
                    parameter.grad = None
        super().step()
        messages = []
        for owner, part in enumerate(updated):
            if part:
                flat = torch.cat([parameter.flatten() for parameter in part])
                messages.append((owner, part, flat, dist.broadcast(flat, owner, async_op=True)))
        for owner, part, flat, work in messages:
            assert work is not None
            work.wait()
            if owner != self._rank:
                pieces = flat.split([parameter.numel() for parameter in part])
                torch._foreach_copy_(
                    [parameter.data for parameter in part],
                    [piece.view_as(parameter) for piece, parameter in zip(pieces, part, strict=True)],
                )

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Give rank 0 the moments of all parameters while the block runs. All ranks enter it."""
        others: list[nn.Parameter] = []
        for owner in range(1, self._world):
            numbers = [n for n, its in enumerate(self._owner) if its == owner and self._has_moments[n]]
            part = [self._all[number] for number in numbers]
            if not part:
                continue
            if self._rank == owner:
                dist.send(torch.cat([x.flatten().float() for x in self._tensors(part)]), 0)
            elif self._rank == 0:
                sizes = [size for parameter in part for size in (parameter.numel(), parameter.numel(), 1)]
                flat = torch.empty(sum(sizes), dtype=torch.float32, device=part[0].device)
                dist.recv(flat, owner)
                self._take(part, list(flat.split(sizes)))
                others += part
        try:
            yield
        finally:
            for parameter in others:
                del self.state[parameter]

    def keep_own(self) -> None:
        """Forget the moments of other ranks' parameters, after a state of all parameters has been loaded."""
        for number, parameter in enumerate(self._all):
            self._has_moments[number] = parameter in self.state
            if self._has_moments[number] and self._owner[number] != self._rank:
                del self.state[parameter]

    def _tensors(self, part: list[nn.Parameter]) -> list[Tensor]:
        names = (*MOMENTS, "step")
        return [self.state[parameter][name] for parameter in part for name in names]

    def _take(self, part: list[nn.Parameter], pieces: list[Tensor]) -> None:
        remaining = iter(pieces)
        for parameter in part:
            state: dict[str, Tensor] = {"step": torch.empty(())}
            for name in MOMENTS:
                state[name] = next(remaining).view(parameter.shape).to(parameter.dtype)
            state["step"] = next(remaining).view(())
            self.state[parameter] = state


def owners(sizes: list[int], world: int) -> list[int]:
    """Return the rank of each parameter by its bytes: in order, each goes to the rank that has the fewest so far."""
    totals = [0] * world
    chosen = []
    for size in sizes:
        rank = totals.index(min(totals))
        totals[rank] += size
        chosen.append(rank)
    return chosen
