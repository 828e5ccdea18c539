"""Makes the embedded dataset once: plans, renders, annotates in a temporary folder, and puts it in its place whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
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

VERSION = 1  # raise it when the same config gives other bytes
MARKER = "demo.json"
_BENCHMARKS = "benchmarks"


@dataclass(frozen=True)
class DemoDataset:
    """Where the embedded dataset's files are."""

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
        """Return the paths of a dataset in `root`, made or not."""
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
    """Make the dataset of `config` in `root`, or return at once where it is already there.

    `root` is absent or complete, never half-made. The bytes do not depend on `workers` (processes; None: one for each
    core this process may use). Raises `ConfigError` where `root` holds something else, or a dataset of another config.
    """
    root = Path(root)
    if _is_made(config, root):
        _add_benchmarks(config, root)
        return DemoDataset.at(root)
    with _temporary_beside(root) as temporary:
        _make(config, temporary, workers or _cores())
        for path in sorted(temporary.rglob("*")):
            files.fsync(path)
        try:
            files.publish(temporary, root)
        except OSError:
            if not _is_made(config, root):  # another process may have been first
                raise
    return DemoDataset.at(root)


def _make(config: DemoConfig, folder: Path, workers: int) -> None:
    made = DemoDataset.at(folder)
    made.videos.mkdir()
    scripts = make_scripts(config)
    _make_videos(config, scripts, made.videos, min(workers, len(scripts)))
    remarks = narrate(config, scripts)
    tables.write_egoclip(made.egoclip, scripts, remarks.narrations)
    tables.write_egosummary(made.egosummary, scripts, remarks.summaries)
    tables.write_ego4d(made.ego4d, config, scripts)
    tables.write_narration(made.narration, scripts, remarks)
    tables.write_activities(made.activities, config, scripts, remarks)
    (folder / _BENCHMARKS).mkdir()
    write_benchmarks(folder / _BENCHMARKS, config, scripts, remarks)
    files.write_json(folder / MARKER, {"version": VERSION, "config": config.identity()})


def _add_benchmarks(config: DemoConfig, root: Path) -> None:
    """Give a dataset that was made before there were benchmarks its own; its videos need not be rendered again."""
    if (root / _BENCHMARKS).exists():
        return
    scripts = make_scripts(config)
    with _temporary_beside(root / _BENCHMARKS) as temporary:
        write_benchmarks(temporary, config, scripts, narrate(config, scripts))
        for path in sorted(temporary.iterdir()):
            files.fsync(path)
        try:
            files.publish(temporary, root / _BENCHMARKS)
        except OSError:
            if not (root / _BENCHMARKS).exists():  # another process may have been first
                raise


def _make_videos(config: DemoConfig, scripts: list[VideoScript], folder: Path, workers: int) -> None:
    if workers == 1:
        for script in scripts:
            make_video(config, script, folder)
        return
    # Spawned, as forked children of a threaded process may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for future in [pool.submit(make_video, config, script, folder) for script in scripts]:
            future.result()


def _is_made(config: DemoConfig, root: Path) -> bool:
    """Return whether `root` is this dataset; raise `ConfigError` where it is anything else but absent or empty."""
    marker = root / MARKER
    if not marker.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ConfigError(f"{root}: is neither empty nor an embedded dataset (no {MARKER} in it); choose another")
        return False
    found = json.loads(marker.read_text(encoding="utf-8"))
    wanted: dict[str, Any] = {"version": VERSION, **config.identity()}
    there: dict[str, Any] = {"version": found.get("version"), **found.get("config", {})}
    differing = [key for key in wanted if wanted[key] != there.get(key)]
    if differing:
        values = "; ".join(f"{key} is {there.get(key)!r} there, {wanted[key]!r} here" for key in differing)
        raise ConfigError(f"{root}: holds an embedded dataset of another config: {values}. Remove it or choose another")
    return True


@contextmanager
def _temporary_beside(root: Path) -> Iterator[Path]:
    """Yield a new folder beside `root`, removed at the end if it is still there; clear away what dead ones left."""
    root = root.absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    for leftover in root.parent.glob(f"{files.TEMPORARY}*-{root.name}"):
        number = leftover.name[len(files.TEMPORARY) :].split("-")[0]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = root.with_name(f"{files.TEMPORARY}{os.getpid()}-{root.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cores() -> int:
    """The cores that this process may use, where the system tells; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
