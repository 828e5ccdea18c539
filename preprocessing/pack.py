"""Packs one shard: cuts its planned samples out of the chunks and records those that cannot be made."""

from __future__ import annotations

import itertools
import json
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq

from preprocessing.config import ChunkConfig
from preprocessing.errors import UNEXPECTED, TransientError, is_output_fault
from preprocessing.plan import plan_path
from preprocessing.video.chunks import Chunk, Damage, chunk_path, read_sidecar
from preprocessing.video.clips import CutError, Cutter, PacketSpan, read_packet_span
from shards import schema
from shards.schema import Sample
from shards.stats import FailedItem, ShardStats, is_done, shard_paths
from shards.writer import ShardWriter

PAST_END = "past the end of the video"
_EPSILON = 1e-6  # frames; tolerance for rounding errors in products such as 0.7 s × 30 fps


@dataclass(frozen=True, kw_only=True)
class PackTask:
    """One unit of work: one planned shard."""

    root: Path  # of the dataset
    work: Path  # folder of chunks and plans
    set_name: str
    split: str
    number: int
    videos: dict[str, int | str]  # video_uid → number of its chunks, or `reason: detail` where it has none
    chunk: ChunkConfig
    end_tolerance: float  # s
    toolchain: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ShardOutcome:
    """The number of samples of a written shard, and of planned samples that are not in it."""

    samples: int
    failed: int
    bytes: int  # size of the tar file
    errors: tuple[str, ...] = ()  # a traceback for each segment of a video at which our own code raised an exception


class CannotPackError(ValueError):
    """A sample that cannot be made; `reason` names the kind of failure, `detail` the place and the values."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True)
class _FrameRange:
    """The frames of a sample on its video's frame grid, at the rate of its rendition."""

    row: dict[str, Any]  # of the plan
    first: int
    stop: int  # exclusive
    clip_end: float  # s; the end of the video where the annotation is within tolerance of it


def pack_shard(task: PackTask) -> ShardOutcome:
    """Write one shard and return its counts. Samples that cannot be made are recorded in its statistics.

    A shard that is complete already is left untouched: its worker died before it could report it. Raises
    `TransientError` for machine faults such as a full disk.
    """
    if is_done(task.root, task.set_name, task.split, task.number):
        return _outcome(ShardStats.read(shard_paths(task.root, task.set_name, task.split, task.number)[2]))
    rows = pq.read_table(plan_path(task.work, task.set_name, task.split, task.number)).to_pylist()
    failed: list[FailedItem] = []
    errors: list[str] = []
    try:
        with ShardWriter(task.root, task.set_name, task.split, task.number, toolchain=task.toolchain) as writer:
            for (_, segment), group in itertools.groupby(rows, key=lambda row: (row["video_uid"], row["segment"])):
                for result in _guarded(_pack_segment(task, segment, members := list(group)), members, task, errors):
                    if isinstance(result, Sample):
                        writer.add(result)
                    else:
                        failed.append(result)
            stats = writer.finish(failed)
    except OSError as error:
        if is_output_fault(error):
            raise TransientError(f"{task.root}: {error.strerror or error}") from error
        raise
    return _outcome(stats, tuple(errors))


def _outcome(stats: ShardStats, errors: tuple[str, ...] = ()) -> ShardOutcome:
    return ShardOutcome(samples=stats.samples, failed=len(stats.failed), bytes=stats.bytes, errors=errors)


def _guarded(
    results: Iterator[Sample | FailedItem], rows: list[dict[str, Any]], task: PackTask, errors: list[str]
) -> Iterator[Sample | FailedItem]:
    """Yield the results of one segment; an exception of our own code fails its other rows and adds to `errors`."""
    missing = {row["key"] for row in rows}
    try:
        for result in results:
            missing.discard(result.key)
            yield result
    except (TransientError, OSError):
        raise  # faults of the machine
    except Exception as error:  # noqa: BLE001  the other videos of the shard are sound
        errors.append(traceback.format_exc())
        detail = f"{type(error).__name__}: {_portable(error, task.work)}"[:300]
        yield from (
            FailedItem(key=row["key"], reason=UNEXPECTED, detail=detail) for row in rows if row["key"] in missing
        )


def _pack_segment(task: PackTask, segment: str, rows: list[dict[str, Any]]) -> Iterator[Sample | FailedItem]:
    """Yield, for each planned row of one segment of a video, its sample or why it cannot be made."""
    video_uid = rows[0]["video_uid"]
    try:
        chunks = _chunks(task, video_uid)
    except CannotPackError as error:
        for row in rows:
            yield FailedItem(key=row["key"], reason=error.reason, detail=error.detail)
        return
    video = _Video(task, chunks)
    ranges: list[_FrameRange] = []
    for row in rows:
        try:
            ranges.append(video.frame_range(row))
        except CannotPackError as error:
            yield FailedItem(key=row["key"], reason=error.reason, detail=error.detail)
    if not ranges:
        return
    try:
        packets = video.packets(min(frames.first for frames in ranges), max(frames.stop for frames in ranges))
    except (CutError, av.FFmpegError) as error:
        if isinstance(error, OSError):  # the file is gone or cannot be read; its content is not at fault
            raise TransientError(f"{task.work}: a chunk of {video_uid}: {error}; rerun the same command") from error
        for frames in ranges:
            yield FailedItem(key=frames.row["key"], reason="chunk unreadable", detail=_portable(error, task.work))
        return
    with Cutter(packets) as cutter:
        for frames in ranges:
            try:
                yield video.sample(cutter, frames, segment)
            except CannotPackError as error:
                yield FailedItem(key=frames.row["key"], reason=error.reason, detail=error.detail)
            except (CutError, av.FFmpegError) as error:
                detail = _portable(error, task.work)
                yield FailedItem(key=frames.row["key"], reason="chunk unreadable", detail=detail)


def _chunks(task: PackTask, video_uid: str) -> list[Chunk]:
    """Return the records of all chunks of a video; raise `CannotPackError` where the video has none."""
    count = task.videos[video_uid]
    if isinstance(count, str):
        reason, _, detail = count.partition(": ")
        raise CannotPackError(reason, detail or reason)
    chunks = [read_sidecar(task.work, video_uid, index) for index in range(count)]
    present = [chunk for chunk in chunks if chunk is not None]
    if len(present) != count:
        raise TransientError(
            f"{task.work}: chunks of {video_uid} disappeared while shards were packed; rerun the same command"
        )
    return present


class _Video:
    """The chunks of a video as one sequence of frames of one rendition."""

    def __init__(self, task: PackTask, chunks: list[Chunk]) -> None:
        self._task = task
        self._chunks = chunks
        is_long = schema.set_spec(task.set_name).is_long
        self._rendition = "summary" if is_long else "full"
        self._fps = task.chunk.summary_fps if is_long else task.chunk.fps
        self._per_chunk = task.chunk.seconds * self._fps
        self._end = chunks[-1].end
        self._frames = math.ceil(self._end * self._fps - _EPSILON)

    def frame_range(self, row: dict[str, Any]) -> _FrameRange:
        """Return the frames of a planned row; raise `CannotPackError` where they are not all present and undamaged."""
        start, end = row["clip_start"], row["clip_end"]
        if start >= self._end:
            raise CannotPackError(PAST_END, f"starts at {start:.3f} s, the video ends at {self._end:.3f} s")
        if math.isfinite(end) and end > self._end + self._task.end_tolerance:
            raise CannotPackError("ends after the video", f"ends at {end:.3f} s, the video at {self._end:.3f} s")
        end = min(end, self._end)
        self._require_undamaged(start, end)
        first = min(math.floor(start * self._fps + _EPSILON), self._frames - 1)
        stop = min(max(math.ceil(end * self._fps - _EPSILON), first + 1), self._frames)
        return _FrameRange(row=row, first=first, stop=stop, clip_end=end)

    def packets(self, first: int, stop: int) -> PacketSpan:
        """Return the packets of frames `first … stop − 1`; raise `CutError` where no chunk has them."""
        chunks = self._chunks[first // self._per_chunk : (stop - 1) // self._per_chunk + 1]
        files = [
            (chunk_path(self._task.work, chunk.video_uid, chunk.index, self._rendition), chunk.index * self._per_chunk)
            for chunk in chunks
            if chunk.frames
        ]
        if not files:
            raise CutError(f"no chunk holds frames {first}–{stop - 1}")
        return read_packet_span(files, fps=self._fps, first=first, stop=stop)

    def sample(self, cutter: Cutter, frames: _FrameRange, segment: str) -> Sample:
        """Return the finished sample of a frame range; raise `CannotPackError` where its clip touches damage."""
        cut = cutter.cut(frames.first, frames.stop)
        media_start = cut.first / self._fps
        self._require_undamaged(media_start, media_start + cut.frames / self._fps)
        row = {**frames.row, "segment": segment}
        fields: dict[str, Any] = {
            "video_uid": row["video_uid"],
            "clip_start": row["clip_start"],
            "clip_end": frames.clip_end,
            "media_start": media_start,
            "first_frame": frames.first - cut.first,
            "clip_frames": frames.stop - frames.first,
            "num_frames": cut.frames,
            "fps": float(self._fps),
            "width": self._chunks[0].width,
            "height": self._chunks[0].height,
            "text": row["text"],
            **{name: row[name] for name in schema.own_fields(self._task.set_name) if name != "extra"},
        }
        if "extra" in row:  # only in plans of own captions, as JSON
            fields["extra"] = json.loads(row["extra"])
        record = schema.from_json(self._task.set_name, fields)
        return Sample(key=row["key"], record=record, jpg=cut.jpg, mp4=cut.mp4)

    def _require_undamaged(self, start: float, end: float) -> None:
        """Raise `CannotPackError` where `start … end` (s) overlaps damage."""
        touched: list[Damage] = [
            damage for chunk in self._chunks for damage in chunk.damage if damage.start < end and damage.end > start
        ]
        if touched:
            raise CannotPackError("damaged source", "; ".join(map(str, touched)))


def _portable(error: Exception, work: Path) -> str:
    """Return an error's text without the path of the work folder, so that shards do not depend on it."""
    return str(error).replace(str(work), "WORK")
