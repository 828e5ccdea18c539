"""Versions are pinned in constraints.txt alone; whatever repeats them agrees."""

from __future__ import annotations

import re
import tomllib

import yaml

from tests.paths import REPOSITORY


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9_.-]*", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def _pins(lines: list[str]) -> dict[str, str]:
    return {_name(line): line.split("==")[1].strip() for line in lines if "==" in line and not line.startswith("#")}


PINS = _pins((REPOSITORY / "constraints.txt").read_text().splitlines())


def _direct() -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return {_name(requirement) for group in groups for requirement in group}


def test_every_direct_dependency_is_pinned() -> None:
    assert not _direct() - PINS.keys()


def test_conda_users_get_the_same_versions() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    conda = _pins(pip)
    assert conda == {name: PINS[name] for name in _direct()}


def test_no_other_file_pins_a_version() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    pinned = {_name(found) for found in re.findall(r'"([^"]+==[^"]+)"', pyproject)}
    assert pinned <= {"ffmpeg-python"}, "ffmpeg-python has had one release for years; the rest is bounded from below"
