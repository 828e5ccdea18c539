"""The rooms of the project import each other one way only, and each can be used without what it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

ROOMS = ("configs", "shards", "preprocessing", "hiervl_train", "eval", "cluster")
MAY_IMPORT = {
    "configs": set(),
    "shards": set(),
    "preprocessing": {"configs", "shards"},
    "hiervl_train": {"configs", "shards"},
    "eval": {"configs", "shards", "hiervl_train"},
    "cluster": {"configs"},
}
# Entry scripts may join what is not joined here: a run evaluates itself.
ENTRIES_MAY_IMPORT = {"hiervl_train/pretrain.py": {"eval"}, "hiervl_train/finetune.py": {"eval"}}
MUST_NOT_USE = {
    "shards": {"dask", "distributed"},
    "preprocessing": {"torch", "torchvision", "timm", "transformers"},
    "configs": {"torch", "dask"},
}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level package and line of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


def allowed(path: Path, room: str) -> set[str]:
    """Return the rooms that a file may import."""
    return MAY_IMPORT[room] | ENTRIES_MAY_IMPORT.get(path.relative_to(REPOSITORY).as_posix(), set())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for path in (REPOSITORY / room).rglob("*.py")
        for name, line in imported(path)
        if (name in ROOMS and name != room and name not in allowed(path, room)) or name in MUST_NOT_USE.get(room, ())
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["shards", "preprocessing", "configs"])
def test_a_processing_node_needs_no_torch(room: str) -> None:
    entries = {
        "shards": "shards.verify.run, shards.inspect.tables, shards.index",
        "preprocessing": "preprocessing.build_shards",
        "configs": "configs.loading",
    }
    code = f"import sys, {entries[room]}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(REPOSITORY))
        for room in (*ROOMS, "benchmarks", "tests")
        for path in (REPOSITORY / room).rglob("*.py")
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_nothing_is_run_through_a_shell_or_as_text() -> None:
    found = []
    for path in (p for room in ROOMS for p in (REPOSITORY / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.keyword) and node.arg == "shell":
                found.append(f"{path}:{node.value.lineno}")
    assert not found
