"""The packages named like modules of the standard library, `inspect` and `html`, shadow nothing and are distributed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shards.dataset import Dataset
from tests.paths import REPOSITORY

SHARDS = REPOSITORY / "shards"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def test_no_module_or_regular_package_is_named_like_one_of_the_standard_library() -> None:
    names = {path.stem for path in SHARDS.glob("*.py")} | {path.parent.name for path in SHARDS.glob("*/__init__.py")}
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize("name", ["schema.py", "card.py"])
def test_a_module_run_by_path_imports_the_standard_library(name: str, tmp_path: Path) -> None:
    """Running a file puts its folder first in `sys.path`; `dataclasses` imports inspect, and pyarrow and yaml more."""
    command = [sys.executable, str(SHARDS / name)]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["inspect", "html"])
def test_beside_the_modules_the_standard_librarys_packages_come_first(name: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(SHARDS)!r}); sys.modules.pop({name!r}, None); import {name} as found; "
    command = [sys.executable, "-c", f"{code} sys.exit({str(SHARDS)!r} in found.__file__)"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_inspect_runs_from_any_folder(sample_dataset: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shards.inspect", str(sample_dataset.root)]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "clips/train" in done.stdout


def test_a_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(SHARDS, tmp_path / "shards", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("shards/")}
    expected = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "shards").rglob("*") if path.is_file()}
    assert packed == expected
