"""Requests to stop are detected by signal, file and time limit, and change nothing else in the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.cli import ExitCode
from configs.loading import ConfigError, from_dict
from hiervl_train.preemption import PreemptionConfig, StopRequest, clear_stop_file

NEVER = PreemptionConfig(time_limit_minutes=None)


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_a_signal_is_a_request_and_handlers_are_restored(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with StopRequest(NEVER, tmp_path / "stop") as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == f"signal {name}"
    assert signal.getsignal(number) is before


def test_the_first_reason_stays(tmp_path: Path) -> None:
    with StopRequest(NEVER, tmp_path / "stop") as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        (tmp_path / "stop").touch()
        assert stop.reason == "signal SIGUSR2"


def test_a_second_interrupt_ends_a_hanging_process(tmp_path: Path) -> None:
    code = (
        "import sys, time, threading\n"
        "from pathlib import Path\n"
        "from hiervl_train.preemption import PreemptionConfig, StopRequest\n"
        "with StopRequest(PreemptionConfig(), Path(sys.argv[1])) as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.reason: time.sleep(0.01)\n"
        "    print(stop.reason, flush=True)\n"
        "    try: time.sleep(60)\n"
        "    except BaseException: time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "stop")], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "signal SIGINT\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT  # which a shell shows as 130
    assert ExitCode.INTERRUPTED == 128 + signal.SIGINT


def test_a_forked_worker_dies_of_sigterm_but_not_of_the_schedulers_signals(tmp_path: Path) -> None:
    with StopRequest(NEVER, tmp_path / "stop") as stop:
        worker = os.fork()
        if not worker:
            while True:
                time.sleep(0.01)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            os.kill(worker, number)
        time.sleep(0.2)
        assert os.waitpid(worker, os.WNOHANG) == (0, 0)
        os.kill(worker, signal.SIGTERM)
        assert os.waitpid(worker, 0)[1] == signal.SIGTERM
        assert stop.reason is None  # what a worker is sent is no request to the run


def test_the_stop_file_is_detected_within_two_seconds(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    with StopRequest(NEVER, file) as stop, StopRequest(NEVER, file, checks_file=False) as other:
        assert stop.reason is None
        file.touch()
        end = time.monotonic() + 2
        while stop.reason is None and time.monotonic() < end:
            time.sleep(0.05)
        assert stop.reason == "stop file"
        assert other.reason is None


def test_a_stale_stop_file_is_cleared_when_a_run_starts(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    file.touch()
    assert clear_stop_file(file)
    assert not clear_stop_file(file)
    with StopRequest(NEVER, file) as stop:
        assert stop.reason is None


def test_a_missing_folder_is_a_warning_and_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StopRequest(NEVER, tmp_path / "gone" / "stop") as stop:
        assert stop.reason is None
    assert "gone" in caplog.text


def test_the_time_limit_is_a_request_before_it_is_reached(tmp_path: Path) -> None:
    config = PreemptionConfig(time_limit_minutes=1.005, margin_minutes=1.0)
    with StopRequest(config, tmp_path / "stop") as stop:
        assert stop.reason is None
        time.sleep(0.35)
        assert stop.reason == "time limit"


@pytest.mark.parametrize(("seconds_left", "reason"), [(299, "time limit"), (400, None)])
def test_the_end_of_a_slurm_job_is_a_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds_left: float, reason: str | None
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + seconds_left)))
    with StopRequest(PreemptionConfig(time_limit_minutes=60), tmp_path / "stop") as stop:
        assert stop.reason == reason


def test_a_limit_within_its_margin_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"time_limit_minutes = 5\.0 is not more than margin_minutes = 5\.0"):
        PreemptionConfig(time_limit_minutes=5.0)
    with pytest.raises(ConfigError, match="margin_minutes"):
        from_dict(PreemptionConfig, {"margin_minutes": -1.0})
