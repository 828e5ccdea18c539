"""A build that is killed at any moment, as a whole or a worker at a time, ends with the bytes of one that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.preprocessing.world import World, files_of, make_world

KILLS = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world") / "in")


@pytest.fixture(scope="module")
def expected(world: World) -> dict[str, bytes]:
    """Every file of an undisturbed build."""
    done = world.build(world.root.parent / "built")
    assert done.returncode == 0, done.stderr
    return files_of(world.root.parent / "built" / "shards")


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and everything that came of it, without warning."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(30)


def progress(output: Path) -> int:
    """Return how many files a build has finished or begun."""
    return sum(
        1 for folder in ("work/chunks", "work/plan", "shards") for p in (output / folder).rglob("*") if p.is_file()
    )


def test_kills_of_the_whole_tree(world: World, expected: dict[str, bytes], tmp_path: Path) -> None:
    chance = random.Random(7)
    killed, output = 0, tmp_path / "0"
    moments = set()
    while killed < KILLS:
        # Anywhere between before the first file and after the last, and then at any instant of what goes on there.
        until = progress(output) + chance.randrange(12) if chance.random() < 0.8 else 0
        process = subprocess.Popen(world.arguments(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and progress(output) < until:
            time.sleep(0.002)
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
    assert len(moments) > KILLS // 3, f"the kills fell too close together: {sorted(moments)}"


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
