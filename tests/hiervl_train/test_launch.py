"""A run that is asked to stop, however often and until its very end, saves, says so and exits with 85."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.hiervl_train.runs import Run, ended, start

pytestmark = pytest.mark.medium

EVERY_SECONDS = 0.02  # between two signals: hundreds arrive while a run saves and exits


def signal_until_the_end(run: Run, numbers: list[signal.Signals], seconds: float = 90) -> list[int | None]:
    """Send every rank the signals in turn until no rank is left; return the exit codes."""
    end = time.monotonic() + seconds
    sent = 0
    while any(process.is_alive() for process in run.processes) and time.monotonic() < end:
        for rank in range(len(run.processes)):
            run.signal(numbers[sent % len(numbers)], rank)
        sent += 1
        time.sleep(EVERY_SECONDS)
    return run.wait(1)


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGUSR2], [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]], ids=str
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_signals_that_are_repeated_until_the_process_is_gone_change_nothing(
    embedded: Path, tmp_path: Path, numbers: list[signal.Signals], ranks: int
) -> None:
    folder = tmp_path / "run"
    with ended(start(embedded, folder, "run.max_steps=100000", "save.every_steps=null", ranks=ranks)) as run:
        assert run.reached(3), run.output()
        assert signal_until_the_end(run, numbers) == [85] * ranks, run.output()
    status = json.loads((folder / "status.json").read_bytes())
    assert status["state"] == "stopped" and status["step"] >= 3
    assert status["reason"].startswith(("signal SIG", "another rank")), status
    assert (folder / "checkpoints" / f"step-{status['step']:08d}" / "complete.json").is_file()
