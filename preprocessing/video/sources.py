"""Finds source videos on disk, selects subsets of them, and probes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocessing.errors import TransientError, UsageError
from preprocessing.video.probe import ProbedVideo, UnreadableError, probe, probe_frame_folder


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """One unit of work: probe one source."""

    video_uid: str
    path: Path  # a video file, or a folder of numbered frames
    root: Path  # videos.root, to distinguish a lost mount from a lost file
    frames_fps: float | None = None  # frame rate of such a folder; None: unknown


def find_videos(root: Path, pattern: str = "*") -> dict[str, Path]:
    """Return video_uid → path of every file `<video_uid>.<extension>` and every folder `<video_uid>` of frames.

    `pattern` is a glob below `root`, such as `*/rgb_frames/*`; hidden files are ignored. Raises `UsageError` where
    there is no such folder, it has no videos or two files of one video, and `TransientError` where it cannot be read.
    """
    try:
        next(root.iterdir(), None)
        entries = sorted(path for path in root.glob(pattern) if not path.name.startswith("."))
    except FileNotFoundError:
        raise UsageError(f"videos.root = {root}: there is no such folder") from None
    except NotADirectoryError:
        raise UsageError(f"videos.root = {root}: expected a folder of videos, found a file") from None
    except OSError as error:
        raise TransientError(f"videos.root = {root}: {error.strerror}") from error
    paths: dict[str, Path] = {}
    for path in entries:
        uid = path.name if path.is_dir() else path.name.rpartition(".")[0] or path.name
        if uid in paths:
            names = [str(other.relative_to(root)) for other in (paths[uid], path)]
            raise UsageError(f"videos.root: {names[0]} and {names[1]} are both video {uid}; keep one")
        paths[uid] = path
    if not paths and pattern != "*":
        raise UsageError(f"videos.root = {root}: no file or folder matches videos.pattern = {pattern}")
    if not paths:
        raise UsageError(f"videos.root = {root} is empty: is its disk mounted?")
    return paths


def subset(video_uids: Iterable[str], *, limit: int | None, seed: int) -> set[str]:
    """Return `limit` of the videos (all if None), chosen by a seeded hash of their uids and thus reproducible."""
    if limit is None:
        return set(video_uids)
    return set(sorted(video_uids, key=lambda uid: hashlib.blake2b(f"{seed}:{uid}".encode()).digest())[:limit])


def probe_video(task: ProbeTask) -> ProbedVideo | str:
    """Return the properties of a video, or `unreadable: detail` where it cannot be used.

    Raises `TransientError` where `task.root` is no longer mounted.
    """
    try:
        return probe_frame_folder(task.path, task.frames_fps) if task.path.is_dir() else probe(task.path)
    except UnreadableError as error:
        return f"unreadable: {error}"
    except OSError as error:
        if not _is_mounted(task.root):
            raise TransientError(f"videos.root = {task.root}: disappeared or became empty during the build") from error
        return f"unreadable: {error.strerror or error}"


def _is_mounted(root: Path) -> bool:
    """Return whether a folder has entries: the mount point of a lost disk is absent or empty."""
    try:
        return next(root.iterdir(), None) is not None
    except OSError:
        return False
