"""Generating the embedded dataset: same bytes for the same configuration, and nothing half made."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.loading import ConfigError
from preprocessing.demo import DemoConfig, DemoDataset, generate
from tests.preprocessing.demo.conftest import CONFIG
from tests.preprocessing.demo.demo_files import hashes

pytestmark = pytest.mark.medium

SMALLEST = DemoConfig(size="tiny", videos=7, seconds=20, width=128, height=96)


def test_the_bytes_depend_on_the_config_and_not_on_the_workers(tmp_path: Path) -> None:
    one, two = generate(SMALLEST, tmp_path / "one", workers=1), generate(SMALLEST, tmp_path / "two", workers=2)
    assert hashes(one.root) == hashes(two.root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_second_call_does_nothing(dataset: DemoDataset) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")}
    assert generate(CONFIG, dataset.root) == dataset
    assert {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")} == before


def test_a_different_configuration_in_the_same_folder_is_refused_with_both_values(dataset: DemoDataset) -> None:
    with pytest.raises(ConfigError, match="seed is 0 there, 5 here"):
        generate(dataclasses.replace(CONFIG, seed=5), dataset.root)


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="neither empty nor an embedded dataset"):
        generate(SMALLEST, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("preprocessing.demo.build.make_video", fail)
    with pytest.raises(OSError, match="No space"):
        generate(SMALLEST, tmp_path / "demo", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed(
    dataset: DemoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocessing.demo.build.make_video", lambda *_: None)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    shutil.copytree(dataset.root, tmp_path / f".tmp-{gone.pid}-demo")
    generate(SMALLEST, tmp_path / "demo", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_benchmarks_are_added_to_a_dataset_made_without_them(dataset: DemoDataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.root, tmp_path / "old", copy_function=shutil.copy2)
    shutil.rmtree(tmp_path / "old" / "benchmarks")
    old = {path: path.stat().st_mtime_ns for path in (tmp_path / "old" / "videos").iterdir()}
    made = generate(CONFIG, tmp_path / "old")
    assert hashes(made.root) == hashes(dataset.root)
    assert {path: path.stat().st_mtime_ns for path in made.videos.iterdir()} == old


def test_torch_is_not_imported() -> None:
    code = "import sys, preprocessing.demo.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
