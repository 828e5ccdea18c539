"""Progress: a bar on a terminal, regular lines elsewhere, and a reliable remaining time."""

from __future__ import annotations

import io
import logging
import math
import re

import pytest
from rich.console import Console

from hiervl_train.monitor.progress import Progress


class Clock:
    """A time that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_a_log_gets_a_line_every_thirty_seconds_and_the_last() -> None:
    clock, console = Clock(), Console(file=io.StringIO(), width=40)
    with Progress(console, 100, done=0, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.step(step, {"loss/child": 2.5, "loss/parent": 1.25, "clips_per_second": 1234.5, "epoch": 0.5})
    said = lines(console.file.getvalue())  # type: ignore[attr-defined]
    assert [line.split(",")[0] for line in said] == [f"step {step} of 100" for step in (30, 60, 90, 100)]
    assert said[0] == (
        "step 30 of 100, child loss 2.5000, parent loss 1.2500, 1,234.5 clips/s, epoch 0.50, 0:00:30 elapsed, "
        "0:01:10 left"
    )


def test_the_last_values_are_shown_with_every_step() -> None:
    clock, console = Clock(), Console(file=io.StringIO(), width=200)
    with Progress(console, 10, done=0, log_every_seconds=0, clock=clock) as progress:
        progress.step(1, {"loss/child": 3.0})
        progress.step(2)
        progress.step(3, {"loss/parent": math.nan})
    said = lines(console.file.getvalue())  # type: ignore[attr-defined]
    assert "child loss 3.0000" in said[1] and "child loss 3.0000, parent loss not finite" in said[2]


def test_remaining_time_counts_from_the_resumed_step_and_follows_the_speed() -> None:
    clock, console = Clock(), Console(file=io.StringIO(), width=200)
    with Progress(console, 3000, done=1000, log_every_seconds=0, clock=clock) as progress:
        clock.now += 2.0
        progress.step(1001)
        for step in range(1002, 2001):
            clock.now += 0.5
            progress.step(step)
        for step in range(2001, 2801):
            clock.now += 0.1
            progress.step(step)
    said = lines(console.file.getvalue())  # type: ignore[attr-defined]
    assert said[0].endswith("1:06:38 left")
    left = {int(line.split()[1].replace(",", "")): line.rpartition(", ")[2] for line in said}
    assert left[2000] == "0:08:20 left"
    # 200 steps at 0.1 s are 20 s; the slow steps before still weigh a little
    assert 20 <= int(re.sub(r"\D", "", left[2800])) <= 23


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with Progress(console, 4, done=1, log_every_seconds=0) as progress:
        progress.step(2, {"loss/child": 2.5, "clips_per_second": 10.0})
        progress.print("a line [bold]above[/bold]")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert "2/4" in text and "child loss 2.5000, 10.0 clips/s" in text and "left" in text
    assert "a line [bold]above[/bold]" in text and "step 2 of 4" not in text


def test_printed_lines_are_not_interpreted_as_markup_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), width=20)
    text = "/data/[red]x[/red]/[/] " + "long " * 20
    with caplog.at_level(logging.INFO, logger="hiervl_train"), Progress(console, 4, done=0) as progress:
        progress.print(text)
    assert console.file.getvalue() == text + "\n"  # type: ignore[attr-defined]
    assert caplog.messages == [text]


def test_the_log_gets_the_lines_on_a_terminal_too(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with (
        caplog.at_level(logging.INFO, logger="hiervl_train"),
        Progress(console, 2, done=0, log_every_seconds=0) as progress,
    ):
        progress.step(1, {"loss/child": 2.5})
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("step 1 of 2, child loss 2.5000")
