"""Measures a step by phase: waiting for data, copying it, forward, backward, averaging, optimiser, logging.

On a CPU by the clock. On a GPU by events between what is queued, so that a phase's time is the GPU's, its idle time
included: data that is late shows under `data`, a network that is not hidden under `reduce`.
"""

from __future__ import annotations

import time
from typing import Any

import torch

PHASES = ("data", "copy", "forward", "backward", "reduce", "optimiser", "log")


class PhaseClock:
    """Measures one step at a time. `mark` begins a phase and ends the previous one; a phase may come several times."""

    def __init__(self, device: torch.device, *, is_on: bool = True) -> None:
        """Measure on `device`, or with `is_on` false nothing."""
        self._is_cuda, self._is_on = device.type == "cuda", is_on
        self._marks: list[tuple[str, Any]] = []
        self._ended: dict[int, tuple[list[tuple[str, Any]], Any]] = {}

    def mark(self, phase: str) -> None:
        """Begin a phase."""
        if self._is_on:
            self._marks.append((phase, self._now()))

    def end(self, step: int) -> None:
        """End the last phase of a step; what follows until the next mark belongs to none."""
        if self._is_on:
            self._ended[step] = (self._marks, self._now())
            self._marks = []

    def take(self, step: int) -> dict[str, float]:
        """Return the seconds of each phase of an ended step, and forget it; empty where it was not measured.

        Waits until the device has computed the step.
        """
        marks, end = self._ended.pop(step, ([], None))
        if not marks:
            return {}
        if self._is_cuda:
            end.synchronize()
        seconds = dict.fromkeys((phase for phase, _ in marks), 0.0)
        for (phase, began), (_, ended) in zip(marks, [*marks[1:], ("", end)], strict=True):
            seconds[phase] += began.elapsed_time(ended) / 1000 if self._is_cuda else ended - began
        return seconds

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
