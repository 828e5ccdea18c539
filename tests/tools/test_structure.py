"""tools/structure.py: sizes, docstrings, imports and cycles of known sources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY
from tools import structure

MODULE = '''"""A module."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards import schema

# a comment
TEXT = """two
lines"""


class Public:
    """Documented."""

    def method(self):
        return os.name

    def _private(self):
        def inner():
            from . import sibling
            return sibling
        return inner


def documented():
    """Two
    lines."""
    return 1
'''


def write(root: Path, **sources: str) -> Path:
    """Write and commit files, named with `__` for a slash; return the repository."""
    for name, source in sources.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "Add files"]):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)
    return root


def test_a_module_is_measured() -> None:
    module = structure.parse_module("shards/a.py", MODULE)
    assert (module.name, module.lines, module.code_lines) == ("shards.a", 30, 16)
    assert module.functions == {
        "Public.method": 2,
        "Public._private": 5,
        "Public._private.inner": 3,
        "documented": 4,
    }
    assert module.public == {"(module)", "Public", "Public.method", "documented"}
    assert module.undocumented == {"Public.method"}
    assert module.imports == {"os", "typing.TYPE_CHECKING", "shards.schema", "shards.sibling"}


def test_imports_resolve_to_modules_of_the_tree() -> None:
    sources = {
        "shards/__init__.py": "",
        "shards/a.py": "from shards.b import name\nfrom . import c\nimport numpy",
        "shards/b.py": "import shards.c",
        "shards/c.py": "def f():\n    from shards.a import g",
        "eval/__init__.py": "from .entry import main",
        "eval/entry.py": "from shards import a, missing",
    }
    graph = structure.import_graph(structure.parse(sources))
    assert graph["shards.a"] == {"shards.b", "shards.c"}
    assert graph["eval"] == {"eval.entry"}
    assert graph["eval.entry"] == {"shards.a", "shards"}
    assert structure.cycles(graph) == [["shards.a", "shards.b", "shards.c"]]
    assert structure.arrows(graph) == {("eval", "shards"): 2}


def test_revisions_stand_side_by_side(tmp_path: Path) -> None:
    root = write(tmp_path, shards__a="from shards import b", shards__b="from shards import a")
    (root / "shards" / "b.py").write_text('"""Broken cycle."""\n')
    (root / ".gitignore").write_text("ignored.py\n")
    (root / "shards" / "ignored.py").write_text("not even Python (")
    command = [sys.executable, str(REPOSITORY / "tools" / "structure.py"), "--root", str(root), "--rev", "HEAD"]
    text = subprocess.run([*command, "--worktree"], check=True, capture_output=True, text=True).stdout
    assert "import cycles, HEAD: 1\n  shards.a ↔ shards.b\nimport cycles, working tree: 0" in text
    found = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True).stdout)
    assert found["HEAD"]["packages"]["shards"]["undocumented"] == 2


def test_an_unknown_revision_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path, shards__a="")
    assert structure.main(["--root", str(root), "--rev", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
