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
def undisturbed(world: World) -> tuple[dict[str, bytes], float]:
    """Every file of an undisturbed build, and how long it took (s)."""
    began = time.monotonic()
    done = world.build(world.root.parent / "built")
    assert done.returncode == 0, done.stderr
    return files_of(world.root.parent / "built" / "shards"), time.monotonic() - began


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


def test_kills_of_the_whole_tree(world: World, undisturbed: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    expected, seconds = undisturbed
    chance = random.Random(7)
    killed, output = 0, tmp_path / "0"
    interrupted_at = set()
    while killed < KILLS:
        process = subprocess.Popen(world.arguments(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.35, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            killed += 1
            interrupted_at.add(len(files_of(output)) if output.exists() else 0)
            continue
        assert process.returncode == 0
        assert files_of(output / "shards") == expected
        output = tmp_path / str(killed)
    assert world.build(output).returncode == 0
    assert files_of(output / "shards") == expected
    assert len(interrupted_at) > 3, "the kills all fell at the same place"


def test_kills_of_single_workers(world: World, undisturbed: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    expected, _ = undisturbed
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
