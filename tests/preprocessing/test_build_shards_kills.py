"""Builds that are killed at random times, as a whole or one worker at a time, still give the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.preprocessing.world import World, files_of

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def expected(built: Path) -> dict[str, bytes]:
    """Every file of an undisturbed build."""
    return files_of(built / "shards")


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all its descendants with SIGKILL."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(30)


def progress(output: Path) -> int:
    """Return the number of files that a build has written so far."""
    return sum(
        1 for folder in ("work/chunks", "work/plan", "shards") for p in (output / folder).rglob("*") if p.is_file()
    )


@pytest.mark.parametrize("kills", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_the_whole_tree(kills: int, world: World, expected: dict[str, bytes], tmp_path: Path) -> None:
    chance = random.Random(7)
    killed, output = 0, tmp_path / "0"
    moments = set()
    while killed < kills:
        # At a random number of files, from before the first to after the last, plus a random delay.
        until = progress(output) + chance.randrange(12) if chance.random() < 0.8 else 0
        process = subprocess.Popen(world.arguments(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and progress(output) < until:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05 if until else 2))
        if process.poll() is None:
            kill_tree(process)
            killed += 1
            moments.add(progress(output))
            continue
        assert process.returncode == 0
        assert files_of(output / "shards") == expected
        output = tmp_path / str(killed)
    assert world.build(output).returncode == 0
    assert files_of(output / "shards") == expected
    assert len(moments) > kills // 3, f"the kills were too close together: {sorted(moments)}"


def test_kills_of_single_workers(world: World, expected: dict[str, bytes], tmp_path: Path) -> None:
    process = subprocess.Popen(world.arguments(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    killed = 0
    while process.poll() is None and killed < 3:
        workers = [child for child in psutil.Process(process.pid).children(recursive=True) if _is_worker(child)]
        if workers and list((tmp_path / "work" / "chunks").rglob("*.json")):
            os.kill(workers[killed % len(workers)].pid, signal.SIGKILL)
            killed += 1
            time.sleep(0.5)
        time.sleep(0.02)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages.decode()
    assert killed > 0
    assert files_of(tmp_path / "shards") == expected
