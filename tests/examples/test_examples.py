"""Each script of examples/ runs as a user would run it, on a small build of the embedded dataset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "examples").glob("*.py"))
EXPECTED = {
    "embed_clips.py": ["clips (8, 32), texts (8, 32)", "→"],
    "load_batches.py": ["batch 0 of", "video (8, 4, 3, 112, 112)", "resumed at batch 1: equal is True"],
    "read_with_webdataset.py": ["key frame (", "frames at 30 frames/s"],
    "walk_hierarchy.py": ["#Summary", "key frame ("],
}


@pytest.mark.medium
@pytest.mark.parametrize("name", [path.name for path in SCRIPTS])
def test_an_example_runs(name: str, embedded: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "examples" / name), str(embedded)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
