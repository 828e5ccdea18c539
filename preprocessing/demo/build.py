"""Makes the embedded dataset in a temporary folder (plan, render, annotate) and publishes it atomically."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loading import ConfigError
from preprocessing.demo import tables
from preprocessing.demo.benchmarks import BenchmarkFiles, write_benchmarks
from preprocessing.demo.config import DemoConfig
from preprocessing.demo.narrate import narrate
from preprocessing.demo.render.encode import make_video
from preprocessing.demo.script import VideoScript, make_scripts
from shards import files

VERSION = 1  # increase it when the same configuration gives different bytes
MARKER = "demo.json"  # marks a complete dataset, with its configuration
_BENCHMARKS = "benchmarks"


@dataclass(frozen=True)
class DemoDataset:
    """The paths of the embedded dataset's files."""

    root: Path
    videos: Path  # folder of <video_uid>.mp4
    egoclip: Path
    egosummary: Path
    ego4d: Path
    narration: Path
    activities: Path
    benchmarks: BenchmarkFiles

    @classmethod
    def at(cls, root: Path) -> DemoDataset:
        """Return the paths of a dataset in `root`, whether or not they exist."""
        return cls(
            root=root,
            videos=root / "videos",
            egoclip=root / "egoclip.csv",
            egosummary=root / "egosummary_full.csv",
            ego4d=root / "ego4d.json",
            narration=root / "narration.json",
            activities=root / "activities.json",
            benchmarks=BenchmarkFiles.at(root / _BENCHMARKS),
        )


def generate(config: DemoConfig, root: Path, *, workers: int | None = None) -> DemoDataset:
    """Make the dataset of `config` in `root` unless it exists already; return its paths.

    `root` is never left incomplete. The bytes do not depend on `workers` (processes; None: one per available core).
    Raises `ConfigError` where `root` contains something else or a dataset of a different configuration.
    """
    root = Path(root)
    if _is_made(config, root):
        _add_benchmarks(config, root)
        return DemoDataset.at(root)
    with _published_folder(root, is_made=lambda: _is_made(config, root)) as folder:
        _make(config, folder, workers or _cores())
    return DemoDataset.at(root)


def _make(config: DemoConfig, folder: Path, workers: int) -> None:
    """Make all files of the dataset in `folder`, which is empty."""
    paths = DemoDataset.at(folder)
    paths.videos.mkdir()
    scripts = make_scripts(config)
    _make_videos(config, scripts, paths.videos, min(workers, len(scripts)))
    annotations = narrate(config, scripts)
    tables.write_egoclip(paths.egoclip, scripts, annotations.narrations)
    tables.write_egosummary(paths.egosummary, scripts, annotations.summaries)
    tables.write_ego4d(paths.ego4d, config, scripts)
    tables.write_narration(paths.narration, scripts, annotations)
    tables.write_activities(paths.activities, config, scripts, annotations)
    (folder / _BENCHMARKS).mkdir()
    write_benchmarks(folder / _BENCHMARKS, config, scripts, annotations)
    files.write_json(folder / MARKER, {"version": VERSION, "config": config.identity()})


def _add_benchmarks(config: DemoConfig, root: Path) -> None:
    """Add the benchmark files to a dataset that was made without them, without rendering its videos again."""
    benchmarks = root / _BENCHMARKS
    if benchmarks.exists():
        return
    scripts = make_scripts(config)
    with _published_folder(benchmarks, is_made=benchmarks.exists) as folder:
        write_benchmarks(folder, config, scripts, narrate(config, scripts))


def _make_videos(config: DemoConfig, scripts: list[VideoScript], folder: Path, workers: int) -> None:
    if workers == 1:
        for script in scripts:
            make_video(config, script, folder)
        return
    # `spawn`, because forked children of a threaded process may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for future in [pool.submit(make_video, config, script, folder) for script in scripts]:
            future.result()


def _is_made(config: DemoConfig, root: Path) -> bool:
    """Return whether `root` is this dataset; raise `ConfigError` where it exists, is not empty and is not it."""
    marker = root / MARKER
    if not marker.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ConfigError(
                f"{root}: neither empty nor an embedded dataset (it has no {MARKER}); choose another folder"
            )
        return False
    content = json.loads(marker.read_text(encoding="utf-8"))
    wanted: dict[str, Any] = {"version": VERSION, **config.identity()}
    existing: dict[str, Any] = {"version": content.get("version"), **content.get("config", {})}
    differing = [key for key in wanted if wanted[key] != existing.get(key)]
    if differing:
        values = "; ".join(f"{key} is {existing.get(key)!r} there, {wanted[key]!r} here" for key in differing)
        raise ConfigError(
            f"{root}: contains an embedded dataset of a different configuration: {values}. Remove it or choose another "
            "folder"
        )
    return True


@contextmanager
def _published_folder(target: Path, *, is_made: Callable[[], bool]) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `target` at the end, unless another process was faster (`is_made`).

    The folder is removed on errors, and so are those that killed processes left behind.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{files.TEMPORARY}*-{target.name}"):
        number = leftover.name[len(files.TEMPORARY) :].split("-")[0]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = target.with_name(f"{files.TEMPORARY}{os.getpid()}-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            files.fsync(path)
        try:
            files.publish(temporary, target)
        except OSError:
            if not is_made():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
