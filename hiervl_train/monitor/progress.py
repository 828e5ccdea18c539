"""Shows a run's progress, speed and remaining time: a bar on a terminal, lines in a log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_SPEED_STEPS = 200  # the remaining time is estimated from about this many last steps

_log = logging.getLogger(__name__)


class Progress:
    """The progress of a run, on its first rank. A step's `values` are those of `metrics.Window`, and `epoch` if known.

    The run's log file gets the lines in either case.
    """

    def __init__(
        self,
        console: Console,
        total_steps: int,
        *,
        done: int,
        log_every_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._total, self._clock = console, total_steps, clock
        self._every = log_every_seconds
        self._step, self._time = done, clock()
        self._began = self._printed = self._time
        self._seconds_per_step: float | None = None
        self._values: dict[str, float] = {}
        self._bar = Bar(
            TextColumn("step"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("step", total=total_steps, completed=done, numbers="", left="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Show that `step` steps are done; `values` may be given at some steps only, the last ones are shown."""
        now = self._clock()
        self._values |= values or {}
        if step > self._step:
            self._measure((now - self._time) / (step - self._step), step - self._step)
        self._step, self._time = step, now
        numbers = ", ".join(self._numbers())
        self._bar.update(self._task, completed=step, numbers=numbers, left=f"{self._left()} left")
        if now - self._printed >= self._every or step >= self._total:
            self._printed = now
            elapsed = _clock_text(now - self._began)
            text = ", ".join(
                [f"step {step:,} of {self._total:,}", *self._numbers(), f"{elapsed} elapsed", f"{self._left()} left"]
            )
            _log.info("%s", text)
            if not self._console.is_terminal:
                self._print(text)

    def print(self, text: str) -> None:
        """Print a line above the bar and log it; markup in it is not interpreted."""
        _log.info("%s", text)
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def _measure(self, seconds: float, steps: int) -> None:
        """Update the exponential average of the time of a step; at first it is the mean of all steps."""
        if self._seconds_per_step is None:
            self._seconds_per_step, self._measured = seconds, steps
            return
        self._measured += steps
        weight = max(steps / min(self._measured, _SPEED_STEPS), 1 / _SPEED_STEPS)
        self._seconds_per_step += min(weight, 1.0) * (seconds - self._seconds_per_step)

    def _numbers(self) -> list[str]:
        values, texts = self._values, []
        for name, value in values.items():
            if name.startswith("loss/"):
                texts.append(f"{name.removeprefix('loss/')} loss {_number(value)}")
        if "clips_per_second" in values:
            texts.append(f"{values['clips_per_second']:,.1f} clips/s")
        if "epoch" in values:
            texts.append(f"epoch {values['epoch']:.2f}")
        return texts

    def _left(self) -> str:
        if self._seconds_per_step is None:
            return "?"
        return _clock_text(max(self._total - self._step, 0) * self._seconds_per_step)


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def _clock_text(seconds: float) -> str:
    """Return a duration as h:mm:ss, preceded by days if it is that long."""
    return str(timedelta(seconds=round(seconds)))
