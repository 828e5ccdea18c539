"""What a chunk is on disk: its files in the work folder and the sidecar that says from what and how it was made."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.video.probe import ProbedVideo
from shards.files import write_json
from shards.keys import escape_id

RENDITIONS = ("full", "summary")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A stretch of a source that must not be used. Times are seconds from the first frame."""

    start: float
    end: float
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} at {self.start:.3f}–{self.end:.3f} s"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A finished chunk: `frames` frames at the chunk rate from `start` on, and every k-th of them once more."""

    video_uid: str
    index: int
    start: float  # s from the source's first frame
    end: float  # s, where the chunk would end if nothing were missing
    frames: int
    summary_frames: int
    width: int
    height: int
    damage: tuple[Damage, ...]
    bytes: int  # of both renditions
    cpu_seconds: float  # of ffmpeg, for the summary table and for --dry-run
    source_size: int
    source_mtime_ns: int
    toolchain: dict[str, str]  # toolchain and format

    @property
    def is_failed(self) -> bool:
        """Whether no frame of the chunk can be used."""
        return self.frames == 0 and bool(self.damage)


def chunk_path(work: Path, video_uid: str, index: int, rendition: str) -> Path:
    """Return where a rendition (`full` or `summary`) of a chunk lies."""
    return work / "chunks" / escape_id(video_uid) / f"{index:05d}.{rendition}.mp4"


def sidecar_path(work: Path, video_uid: str, index: int) -> Path:
    """Return where the sidecar of a chunk lies; it is written last and marks the chunk as done."""
    return work / "chunks" / escape_id(video_uid) / f"{index:05d}.json"


def write_sidecar(work: Path, chunk: Chunk) -> None:
    """Mark a chunk as done."""
    write_json(sidecar_path(work, chunk.video_uid, chunk.index), dataclasses.asdict(chunk))


def read_sidecar(work: Path, video_uid: str, index: int) -> Chunk | None:
    """Return the record of a chunk, None where there is none yet (or an unreadable one, which is made again)."""
    try:
        value: dict[str, Any] = json.loads(sidecar_path(work, video_uid, index).read_bytes())
        return Chunk(**{**value, "damage": tuple(Damage(**damage) for damage in value["damage"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def is_current(chunk: Chunk, source: ProbedVideo) -> bool:
    """Return whether a chunk was made from the source file as it is now."""
    return (chunk.source_size, chunk.source_mtime_ns) == (source.size, source.mtime_ns)


def has_media(work: Path, chunk: Chunk) -> bool:
    """Return whether the chunk's files are there (they are not where `chunk.keep` is false and it was packed)."""
    return chunk.frames == 0 or all(chunk_path(work, chunk.video_uid, chunk.index, r).exists() for r in RENDITIONS)


def delete_media(work: Path, video_uid: str, index: int) -> None:
    """Remove a chunk's files; its sidecar stays, as the account of what became of that stretch of the source."""
    for rendition in RENDITIONS:
        chunk_path(work, video_uid, index, rendition).unlink(missing_ok=True)
