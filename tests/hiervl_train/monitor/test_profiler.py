"""The profiler writes a trace and a table of the configured steps only."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loading import ConfigError, from_dict
from hiervl_train.monitor.profiler import ProfileConfig, Profiler


def run(folder: Path, config: ProfileConfig, steps: range, *, rank: int = 0) -> None:
    """Do steps of one named operation each, so that a trace says which steps it holds."""
    with Profiler(folder, config, rank=rank) as profiler:
        for step in steps:
            profiler.step(step)
            with torch.profiler.record_function(f"work of step {step}"):
                torch.ones(8, 8) @ torch.ones(8, 8)


def events(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    with gzip.open(folder / f"trace-rank{rank:05d}.json.gz", "rt") as file:
        return json.load(file)["traceEvents"]


def recorded(folder: Path, rank: int = 0) -> list[int]:
    names = {event.get("name", "") for event in events(folder, rank)}
    return sorted(int(name.rpartition(" ")[2]) for name in names if name.startswith("work of step "))


def test_the_trace_has_the_configured_steps_and_their_operations(tmp_path: Path) -> None:
    run(tmp_path, ProfileConfig(start=3, steps=2), range(10))
    assert recorded(tmp_path) == [3, 4]
    assert "aten::mm" in {event.get("name") for event in events(tmp_path)}


def test_the_table_is_sorted_by_time_and_names_operations(tmp_path: Path) -> None:
    run(tmp_path, ProfileConfig(start=0, steps=3, memory=True), range(10))
    by_time, by_memory = (tmp_path / "table.txt").read_text().split("\n\nself_cpu_memory_usage\n")
    assert by_time.startswith("self_cpu_time_total\n") and "aten::mm" in by_time and "CPU Mem" in by_memory
    shares = [float(row.split("%")[0].split()[-1]) for row in by_time.splitlines() if "%" in row and "Self" not in row]
    assert len(shares) > 2 and shares == sorted(shares, reverse=True)


def test_a_run_that_ends_early_writes_the_recorded_steps(tmp_path: Path) -> None:
    run(tmp_path, ProfileConfig(start=8, steps=100), range(10))
    assert recorded(tmp_path) == [8, 9]


def test_a_failed_run_writes_its_trace(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Profiler(tmp_path, ProfileConfig(start=0)) as profiler:
        profiler.step(0)
        torch.ones(8, 8) @ torch.ones(8, 8)
        raise KeyError("a batch")
    assert "aten::mm" in {event.get("name") for event in events(tmp_path)}


@pytest.mark.parametrize("steps", [range(10, 20), range(0, 3)], ids=["resumed behind it", "ended before it"])
def test_a_run_without_the_configured_steps_records_nothing(tmp_path: Path, steps: range) -> None:
    run(tmp_path, ProfileConfig(start=5, steps=5), steps)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_resumes_within_the_configured_steps_records_the_rest(tmp_path: Path) -> None:
    run(tmp_path, ProfileConfig(start=5, steps=5), range(8, 20))
    assert recorded(tmp_path) == [8, 9]


def test_no_profiler_runs_outside_the_configured_steps(tmp_path: Path) -> None:
    with Profiler(tmp_path, ProfileConfig(start=2, steps=2)) as profiler:
        running = []
        for step in range(6):
            profiler.step(step)
            running.append(torch.autograd._profiler_enabled())
    assert running == [False, False, True, True, False, False]


def test_each_rank_has_its_own_files(tmp_path: Path) -> None:
    for rank in (0, 3):
        run(tmp_path, ProfileConfig(start=0, steps=1), range(2), rank=rank)
    names = {"trace-rank00000.json.gz", "table.txt", "trace-rank00003.json.gz", "table-rank00003.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(("field", "value"), [("start", -1), ("steps", 0)])
def test_an_invalid_setting_is_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=field):
        from_dict(ProfileConfig, {field: value})
