"""Chunks on disk: their files in the work folder, and the sidecar that records their source and toolchain."""

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
    """A time span of a source that must not be used."""

    start: float  # s from the source's first frame
    end: float  # s
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} at {self.start:.3f}–{self.end:.3f} s"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The record of a chunk: a part of a source video at full rate, and every k-th of its frames at low rate."""

    video_uid: str
    index: int
    start: float  # s from the source's first frame
    end: float  # s; where the chunk ends if no frame is missing
    frames: int  # of the full-rate rendition
    summary_frames: int  # of the low-rate rendition
    width: int  # px
    height: int  # px
    damage: tuple[Damage, ...]
    stated_end: float  # s; where the container or metadata say that the video ends, if later than its packets
    deinterlaced: bool
    tone_mapped: str  # the operator that mapped HDR to SDR; empty: none
    notes: tuple[str, ...]  # what was found out of the ordinary in the source
    bytes: int  # of both renditions
    cpu_seconds: float  # of ffmpeg
    source_size: int  # `ProbedVideo.size` at that time
    source_mtime_ns: int
    toolchain: dict[str, str]  # versions and format that determine the bytes

    @property
    def is_failed(self) -> bool:
        """Whether no frame of the chunk can be used."""
        return self.frames == 0 and bool(self.damage)


def chunk_path(work: Path, video_uid: str, index: int, rendition: str) -> Path:
    """Return the path of a rendition (`full` or `summary`) of a chunk."""
    return work / "chunks" / escape_id(video_uid) / f"{index:05d}.{rendition}.mp4"


def sidecar_path(work: Path, video_uid: str, index: int) -> Path:
    """Return the path of a chunk's sidecar, which is written last and marks the chunk as finished."""
    return work / "chunks" / escape_id(video_uid) / f"{index:05d}.json"


def write_sidecar(work: Path, chunk: Chunk) -> None:
    """Write a chunk's sidecar, which marks it as finished."""
    write_json(sidecar_path(work, chunk.video_uid, chunk.index), dataclasses.asdict(chunk))


def read_sidecar(work: Path, video_uid: str, index: int) -> Chunk | None:
    """Return the record of a chunk; None if it is absent or unreadable, so that the chunk is made again."""
    try:
        value: dict[str, Any] = json.loads(sidecar_path(work, video_uid, index).read_bytes())
        damage = tuple(Damage(**damage) for damage in value["damage"])
        return Chunk(**{**value, "damage": damage, "notes": tuple(value["notes"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def is_current(chunk: Chunk, source: ProbedVideo) -> bool:
    """Return whether a chunk was made from the current version of its source (same size and modification time)."""
    return (chunk.source_size, chunk.source_mtime_ns) == (source.size, source.mtime_ns)


def has_media(work: Path, chunk: Chunk) -> bool:
    """Return whether a chunk's files exist; with `chunk.keep: false` they are deleted after packing."""
    return chunk.frames == 0 or all(chunk_path(work, chunk.video_uid, chunk.index, r).exists() for r in RENDITIONS)


def delete_media(work: Path, video_uid: str, index: int) -> None:
    """Delete a chunk's files; its sidecar is kept as the record of that part of the source."""
    for rendition in RENDITIONS:
        chunk_path(work, video_uid, index, rendition).unlink(missing_ok=True)
