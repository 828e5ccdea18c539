"""Datasets that are built once and shared by all tests of preprocessing, also between the processes of a test run."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.preprocessing.world import World, make_world

T = TypeVar("T")


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], T]], T]:
    """A function `(name, make) → value` that calls `make(folder)` once per test run and returns its (pickled) value."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def once(name: str, make: Callable[[Path], T]) -> T:
        folder = shared / f"preprocessing-{name}"
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            result = folder / "value.pickle"
            if not result.exists():
                result.write_bytes(pickle.dumps(make(folder)))
            value: T = pickle.loads(result.read_bytes())
            return value

    return once


@pytest.fixture(scope="session")
def world(make_once: Callable[[str, Callable[[Path], World]], World]) -> World:
    """Intact, irregular, broken and missing videos with annotations; not to be modified."""
    return make_once("world", lambda folder: make_world(folder / "in"))


@pytest.fixture(scope="session")
def built(world: World, make_once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    """The output of an undisturbed build of `world`, with which others are compared; not to be modified."""

    def make(folder: Path) -> Path:
        done = world.build(folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return make_once("built", make)
