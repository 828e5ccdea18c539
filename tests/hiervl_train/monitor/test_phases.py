"""The time report: what each phase took, and that phases make up the step."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from hiervl_train.monitor.metrics import MetricsConfig, MetricsWriter, read_metrics
from hiervl_train.monitor.page import write_page
from hiervl_train.monitor.phases import PHASES, PhaseClock
from hiervl_train.monitor.run_folder import RunFolder
from tests.hiervl_train.runs import finished


def test_phases_are_measured_and_the_same_phase_adds_up() -> None:
    clock = PhaseClock(torch.device("cpu"))
    began = time.perf_counter()
    for _ in range(2):
        clock.mark("forward")
        time.sleep(0.02)
        clock.mark("backward")
        time.sleep(0.01)
    clock.end(7)
    took = time.perf_counter() - began
    time.sleep(0.05)  # after the end: of no phase
    seconds = clock.take(7)
    assert seconds["forward"] >= 0.04 and seconds["backward"] >= 0.02
    assert sum(seconds.values()) == pytest.approx(took, abs=0.005)
    assert clock.take(7) == {} and clock.take(8) == {}


def test_nothing_is_measured_where_it_is_off() -> None:
    clock = PhaseClock(torch.device("cpu"), is_on=False)
    clock.mark("forward")
    clock.end(1)
    assert clock.take(1) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpus_phases_are_measured_by_events() -> None:
    clock = PhaseClock(torch.device("cuda"))
    x = torch.rand(4096, 4096, device="cuda")
    clock.mark("forward")
    for _ in range(20):
        x = x @ x / 4096
    clock.mark("backward")
    clock.end(1)
    seconds = clock.take(1)
    assert seconds["forward"] > 10 * seconds["backward"]


@pytest.mark.medium
def test_a_run_reports_every_phase_and_they_make_up_the_step(embedded: Path, tmp_path: Path) -> None:
    finished(embedded, tmp_path / "run", "run.max_steps=12", "schedule.clip_micro_batch=8", ranks=2)
    rows = [row for row in read_metrics(tmp_path / "run") if row["step"] > 6]
    for row in rows:
        step_type = "parent" if row["step"] % 6 == 0 else "child"
        seconds = {phase: row[f"time/{step_type}/{phase}"] for phase in PHASES}
        assert min(seconds.values()) >= 0 and seconds["forward"] > 0 and seconds["backward"] > 0
        assert f"time/{'child' if step_type == 'parent' else 'parent'}/forward" not in row
    total = sum(value for row in rows for name, value in row.items() if name.startswith("time/"))
    assert total == pytest.approx(sum(row["seconds_per_step"] for row in rows), rel=0.5)
    page = (tmp_path / "run" / "index.html").read_text()
    assert "Time of a step" in page and "child step" in page and "parent step" in page
    finished(embedded, tmp_path / "off", "run.max_steps=2", "run.time_report=false")
    assert not any(name.startswith("time/") for row in read_metrics(tmp_path / "off") for name in row)


def test_the_page_shows_milliseconds_and_shares(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with MetricsWriter(folder, MetricsConfig(tensorboard=False), first_step=1) as writer:
        for step in (1, 2):
            writer.write(
                step, {"time/child/forward": 0.1 * step, "time/child/reduce": 0.05, "time/parent/forward": 0.2}
            )
    page = write_page(folder).read_text()
    assert "150.0 ms · 75 %" in page and "50.0 ms · 25 %" in page and "200.0 ms · 100 %" in page and "–" in page
