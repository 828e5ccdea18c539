"""Finds the source videos that annotations name, and looks into each of them once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocessing.errors import TransientError, UsageError
from preprocessing.video.probe import ProbedVideo, UnreadableError, probe, probe_pictures


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """One unit of work: look into one file. `root` tells a lost mount from a lost file."""

    video_uid: str
    path: Path  # a video file, or a folder of pictures
    root: Path
    frames_fps: float | None = None  # how many pictures of such a folder make a second


def find_videos(root: Path, pattern: str = "*") -> dict[str, Path]:
    """Return video_uid → file for every `<video_uid>.<extension>` and every folder `<video_uid>` of pictures.

    Hidden files are passed over. `pattern` says where below `root` they lie, as `*/rgb_frames/*`.
    """
    try:
        next(root.iterdir(), None)
        entries = sorted(path for path in root.glob(pattern) if not path.name.startswith("."))
    except FileNotFoundError:
        raise UsageError(f"videos.root = {root}: there is no such folder") from None
    except NotADirectoryError:
        raise UsageError(f"videos.root = {root}: a folder of videos is expected, this is a file") from None
    except OSError as error:
        raise TransientError(f"videos.root = {root}: {error.strerror}") from error
    found: dict[str, Path] = {}
    for path in entries:
        uid = path.name if path.is_dir() else path.name.rpartition(".")[0] or path.name
        if uid in found:
            names = [str(other.relative_to(root)) for other in (found[uid], path)]
            raise UsageError(f"videos.root: {names[0]} and {names[1]} are both video {uid}; keep one")
        found[uid] = path
    if not found and pattern != "*":
        raise UsageError(f"videos.root = {root}: nothing in it is named as videos.pattern = {pattern}")
    if not found:
        raise UsageError(f"videos.root = {root} is empty: is its disk mounted?")
    return found


def subset(video_uids: Iterable[str], *, limit: int | None, seed: int) -> set[str]:
    """Return `limit` of the videos, chosen by a seeded hash of their names: the same ones wherever they are chosen."""
    if limit is None:
        return set(video_uids)
    return set(sorted(video_uids, key=lambda uid: hashlib.blake2b(f"{seed}:{uid}".encode()).digest())[:limit])


def look_into(task: ProbeTask) -> ProbedVideo | str:
    """Return what a video is, or in words why it cannot be used; raise `TransientError` where its disk is gone."""
    try:
        return probe_pictures(task.path, task.frames_fps) if task.path.is_dir() else probe(task.path)
    except UnreadableError as error:
        return f"unreadable: {error}"
    except OSError as error:
        if not _is_mounted(task.root):
            raise TransientError(f"videos.root = {task.root}: gone or empty while it was read") from error
        return f"unreadable: {error.strerror or error}"


def _is_mounted(root: Path) -> bool:
    """Return whether a folder still lists something: the mount point of a lost disk is absent or empty."""
    try:
        return next(root.iterdir(), None) is not None
    except OSError:
        return False
