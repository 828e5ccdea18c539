"""Packs one shard: cuts its planned samples out of the chunks, and accounts for those that cannot be made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq

from preprocessing.config import ChunkConfig
from preprocessing.errors import TransientError, is_output_fault
from preprocessing.plan import plan_path
from preprocessing.video.chunks import Chunk, Damage, chunk_path, read_sidecar
from preprocessing.video.clips import CutError, Cutter, read_packet_span
from shards import schema
from shards.schema import Sample
from shards.stats import FailedItem, ShardStats, is_done, shard_paths
from shards.writer import ShardWriter

PAST_END = "past the end of the video"  # filtered, not failed: the annotation asks for what never was
_EPSILON = 1e-6  # frames; times such as 0.7 s × 30 fps miss the whole number by less


@dataclass(frozen=True, kw_only=True)
class PackTask:
    """One unit of work: one planned shard. `videos` has the number of chunks of each video, or why it has none."""

    root: Path
    work: Path
    set_name: str
    split: str
    number: int
    videos: dict[str, int | str]
    chunk: ChunkConfig
    end_tolerance: float  # s
    toolchain: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What became of one shard."""

    samples: int
    failed: int
    filtered: int
    bytes: int


class CannotPackError(ValueError):
    """One sample cannot be made; `reason` is the same for all of a kind, `detail` says which and where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True)
class _Span:
    """A sample's place on its video's grid of frames, at the rate of its rendition."""

    row: dict[str, Any]
    first: int
    stop: int
    clip_end: float  # s; the video's end where the annotation overshoots it a little


def pack_shard(task: PackTask) -> Packed:
    """Write one shard. Raises `TransientError` where the machine failed; a sample's own trouble is recorded.

    A shard that is there already is left as it is: its worker died between writing it and saying so.
    """
    if is_done(task.root, task.set_name, task.split, task.number):
        return _packed(ShardStats.read(shard_paths(task.root, task.set_name, task.split, task.number)[2]))
    rows = pq.read_table(plan_path(task.work, task.set_name, task.split, task.number)).to_pylist()
    failed: list[FailedItem] = []
    try:
        with ShardWriter(task.root, task.set_name, task.split, task.number, toolchain=task.toolchain) as writer:
            for (_, segment), group in itertools.groupby(rows, key=lambda row: (row["video_uid"], row["segment"])):
                for made in _pack_segment(task, segment, list(group)):
                    if isinstance(made, Sample):
                        writer.add(made)
                    else:
                        failed.append(made)
            stats = writer.finish(failed)
    except OSError as error:
        if is_output_fault(error):
            raise TransientError(f"{task.root}: {error.strerror or error}") from error
        raise
    return _packed(stats)


def _packed(stats: ShardStats) -> Packed:
    filtered = sum(item.reason == PAST_END for item in stats.failed)
    return Packed(samples=stats.samples, failed=len(stats.failed) - filtered, filtered=filtered, bytes=stats.bytes)


def _pack_segment(task: PackTask, segment: str, rows: list[dict[str, Any]]) -> Iterator[Sample | FailedItem]:
    """Yield a sample, or why there is none, for each row; all are of one segment of one video."""
    video_uid = rows[0]["video_uid"]
    try:
        chunks = _chunks(task, video_uid)
    except CannotPackError as error:
        for row in rows:
            yield FailedItem(key=row["key"], reason=error.reason, detail=error.detail)
        return
    video = _Video(task, chunks)
    spans: list[_Span] = []
    for row in rows:
        try:
            spans.append(video.span(row))
        except CannotPackError as error:
            yield FailedItem(key=row["key"], reason=error.reason, detail=error.detail)
    if not spans:
        return
    try:
        stretch = video.stretch(min(span.first for span in spans), max(span.stop for span in spans))
    except (CutError, av.FFmpegError) as error:
        if isinstance(error, OSError):  # the file is not there or cannot be read: no fault of what is in it
            raise TransientError(f"{task.work}: a chunk of {video_uid}: {error}; run again") from error
        for span in spans:
            yield FailedItem(key=span.row["key"], reason="chunk unreadable", detail=_portable(error, task.work))
        return
    with Cutter(stretch) as cutter:
        for span in spans:
            try:
                yield video.sample(cutter, span, segment)
            except CannotPackError as error:
                yield FailedItem(key=span.row["key"], reason=error.reason, detail=error.detail)
            except (CutError, av.FFmpegError) as error:
                detail = _portable(error, task.work)
                yield FailedItem(key=span.row["key"], reason="chunk unreadable", detail=detail)


def _chunks(task: PackTask, video_uid: str) -> list[Chunk]:
    """Return the records of all chunks of a video; raise `CannotPackError` where the video has none."""
    known = task.videos[video_uid]
    if isinstance(known, str):
        reason, _, detail = known.partition(": ")
        raise CannotPackError(reason, detail or reason)
    chunks = [read_sidecar(task.work, video_uid, index) for index in range(known)]
    present = [chunk for chunk in chunks if chunk is not None]
    if len(present) != known:
        raise TransientError(f"{task.work}: chunks of {video_uid} vanished while shards were packed; run again")
    return present


class _Video:
    """A video's chunks, seen as one row of frames of one rendition."""

    def __init__(self, task: PackTask, chunks: list[Chunk]) -> None:
        self._task = task
        self._chunks = chunks
        is_long = schema.set_spec(task.set_name).is_long
        self._rendition = "summary" if is_long else "full"
        self._fps = task.chunk.summary_fps if is_long else task.chunk.fps
        self._per_chunk = task.chunk.seconds * self._fps
        self._end = chunks[-1].end
        self._frames = math.ceil(self._end * self._fps - _EPSILON)

    def span(self, row: dict[str, Any]) -> _Span:
        """Return where a sample lies; raise `CannotPackError` where the video does not have all of it, sound."""
        start, end = row["clip_start"], row["clip_end"]
        if start >= self._end:
            raise CannotPackError(PAST_END, f"starts at {start:.3f} s, the video ends at {self._end:.3f} s")
        if math.isfinite(end) and end > self._end + self._task.end_tolerance:
            raise CannotPackError("ends after the video", f"ends at {end:.3f} s, the video at {self._end:.3f} s")
        end = min(end, self._end)
        self._require_sound(start, end)
        first = min(math.floor(start * self._fps + _EPSILON), self._frames - 1)
        stop = min(max(math.ceil(end * self._fps - _EPSILON), first + 1), self._frames)
        return _Span(row=row, first=first, stop=stop, clip_end=end)

    def stretch(self, first: int, stop: int) -> Any:
        """Return the packets of frames `first … stop − 1`."""
        wanted = range(first // self._per_chunk, (stop - 1) // self._per_chunk + 1)
        files = [
            (chunk_path(self._task.work, chunk.video_uid, chunk.index, self._rendition), chunk.index * self._per_chunk)
            for chunk in (self._chunks[index] for index in wanted)
            if chunk.frames
        ]
        if not files:
            raise CutError(f"no chunk holds frames {first}–{stop - 1}")
        return read_packet_span(files, fps=self._fps, first=first, stop=stop)

    def sample(self, cutter: Cutter, span: _Span, segment: str) -> Sample:
        """Return the finished sample of a span."""
        cut = cutter.cut(span.first, span.stop)
        media_start = cut.first / self._fps
        self._require_sound(media_start, media_start + cut.frames / self._fps)
        row = {**span.row, "segment": segment}
        fields: dict[str, Any] = {
            "video_uid": row["video_uid"],
            "clip_start": row["clip_start"],
            "clip_end": span.clip_end,
            "media_start": media_start,
            "first_frame": span.first - cut.first,
            "clip_frames": span.stop - span.first,
            "num_frames": cut.frames,
            "fps": float(self._fps),
            "width": self._chunks[0].width,
            "height": self._chunks[0].height,
            "text": row["text"],
            **{name: row[name] for name in schema.own_fields(self._task.set_name)},
        }
        record = schema.from_json(self._task.set_name, fields)
        return Sample(key=row["key"], record=record, jpg=cut.jpg, mp4=cut.mp4)

    def _require_sound(self, start: float, end: float) -> None:
        """Raise `CannotPackError` where `start … end` (s) touches damage."""
        touched: list[Damage] = [
            damage for chunk in self._chunks for damage in chunk.damage if damage.start < end and damage.end > start
        ]
        if touched:
            raise CannotPackError("damaged source", "; ".join(map(str, touched)))


def _portable(error: Exception, work: Path) -> str:
    """Return an error's text without the work folder, which differs from machine to machine."""
    return str(error).replace(str(work), "WORK")
