"""Copies between host and device that neither side waits for, through pinned memory and events.

A copy from pageable memory waits until the device has reached it, and reading a number (`float(loss)`) until the device
has done all that is queued: the device then has nothing to do until the host has queued more. On a CPU the same code
runs without events.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a host tensor on `device`, which its current stream makes in order with what it computes."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # the pinned block is reused only after the copy


class Readback:
    """Numbers on their way from the device to the host, queued behind what computes them."""

    def __init__(self, scalars: Sequence[Tensor]) -> None:
        """Start copying scalars, all of one device, to the host."""
        stacked = torch.stack([scalar.detach().double() for scalar in scalars])
        is_cuda = stacked.device.type == "cuda"
        self._host = torch.empty(len(scalars), dtype=torch.float64, pin_memory=is_cuda)
        self._host.copy_(stacked, non_blocking=is_cuda)
        self._event = torch.cuda.Event() if is_cuda else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(stacked.device))

    def values(self) -> list[float]:
        """Return the numbers; wait until the device has computed them, but not for what was queued after them."""
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._host.tolist()]
