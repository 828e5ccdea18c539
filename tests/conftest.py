"""What every test may ask for."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.browser import Browser
from tests.paths import REPOSITORY

# A test run that a script started in its background has SIGINT ignored, and so would have all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Fixtures that build a dataset or start a browser or a cluster: a test that uses one is not for the inner loop.
MEDIUM_FIXTURES = {"browser", "embedded", "own_videos", "slurm"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `medium` what uses such a fixture."""
    for item in items:
        if MEDIUM_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.medium)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, started once per module; skips the tests where it is not installed."""
    with Browser() as browser:
        yield browser


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the embedded dataset at its smallest, built once for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "embedded"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = folder / "shards"
        if not (root / "dataset.json").exists():
            command = [sys.executable, str(REPOSITORY / "preprocessing" / "build_shards.py")]
            # One ffmpeg for all machines: what it makes decides the pixels that golden numbers are of.
            ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
            options = [f"output={root}", f"demo_root={folder}/source", "demo.size=tiny", f"ffmpeg={ffmpeg}"]
            subprocess.run([*command, *options, "dask.workers=1"], cwd=REPOSITORY, check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def own_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 videos with odd names and 100 captions: `videos`, `captions.csv`, and `shards` built by the one command."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "own videos"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "shards" / "dataset.json").exists():
            make = REPOSITORY / "examples" / "own_videos" / "make_videos.py"
            subprocess.run([sys.executable, str(make), str(folder), "--summaries"], check=True, capture_output=True)
            subprocess.run(own_videos_command(folder), cwd=REPOSITORY, check=True, capture_output=True)
    return folder


def own_videos_command(folder: Path, *overrides: str) -> list[str]:
    """Return the command that builds the fixture's shards."""
    return [
        sys.executable,
        str(REPOSITORY / "preprocessing" / "build_shards.py"),
        f"--config={REPOSITORY / 'configs' / 'preprocess' / 'custom.yaml'}",
        f"videos.root={folder / 'videos'}",
        f"annotations.captions={folder / 'captions.csv'}",
        f"output={folder / 'shards'}",
        *overrides,
    ]
