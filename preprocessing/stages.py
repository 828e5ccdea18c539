"""The stages of a build that run on a cluster: probe the videos, transcode them into chunks, pack the shards."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow.parquet as pq
from rich.console import Console

from preprocessing import jobs, report
from preprocessing.annotations import Annotations
from preprocessing.config import BuildConfig
from preprocessing.errors import UNEXPECTED, TransientError, UsageError, is_output_fault
from preprocessing.pack import PackTask, ShardOutcome, pack_shard
from preprocessing.plan import ShardPlan, plan_path, write_plan
from preprocessing.progress import StageProgress, log_file
from preprocessing.publish import interim_ledger
from preprocessing.selection import ABSENT, Selection
from preprocessing.video.chunks import (
    Chunk,
    Damage,
    delete_media,
    has_media,
    is_current,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from preprocessing.video.clock import clock_path
from preprocessing.video.probe import ProbedVideo
from preprocessing.video.sources import ProbeTask, SourcePlace, places, probe_video
from preprocessing.video.transcode import ChunkTask, make_chunk, stored_size
from shards.files import write_json
from shards.index import require_toolchain
from shards.stats import FailedItem
from shards.writer import ShardWriter

logger = logging.getLogger(__name__)

ProbeResults = dict[str, ProbedVideo | str]
"""video_uid → the probed video, or `reason: detail` where it cannot be used."""


def require_same_format(config: BuildConfig, toolchain: Mapping[str, str]) -> None:
    """Raise an error with both values where existing chunks or shards have a different toolchain or format.

    Raises `UsageError` for chunks and `ShardError` for shards.
    """
    require_toolchain(config.output, toolchain)
    path = _format_path(config)
    if path.exists():
        before = json.loads(path.read_bytes())
        changed = [name for name in {*before, *toolchain} if before.get(name) != toolchain.get(name)]
        if changed:
            values = ", ".join(f"{n}: {before.get(n)} before, {toolchain.get(n)} now" for n in sorted(changed))
            raise UsageError(
                f"{config.work_folder} holds chunks built with a different toolchain or configuration ({values}); "
                "use another work folder and output, or restore the earlier values"
            )


def write_format(config: BuildConfig, toolchain: Mapping[str, str]) -> None:
    """Record the toolchain and format of the chunks in the work folder, for `require_same_format`."""
    write_json(_format_path(config), dict(toolchain))


def chunk_records(config: BuildConfig, sources: ProbeResults) -> dict[str, list[Chunk] | str]:
    """Return, for each video, the records of its chunks, or `reason: detail` where it has none.

    Raises `TransientError` where the record of a chunk is missing.
    """
    records: dict[str, list[Chunk] | str] = {}
    for uid, source in sources.items():
        if isinstance(source, str):
            records[uid] = source
            continue
        count = _count(source, config)
        chunks = [read_sidecar(config.work_folder, uid, index) for index in range(count)]
        records[uid] = [chunk for chunk in chunks if chunk is not None]
        if len(records[uid]) != count:
            raise TransientError(f"{config.work_folder}: chunks of {uid} have disappeared; rerun the same command")
    return records


def finished_records(config: BuildConfig, sources: ProbeResults) -> dict[str, list[Chunk] | str]:
    """Return what `chunk_records` does, without the videos of which chunks are still to be made."""
    done: ProbeResults = {}
    for uid, source in sources.items():
        if isinstance(source, str):
            done[uid] = source
            continue
        chunks = [read_sidecar(config.work_folder, uid, index) for index in range(_count(source, config))]
        if all(chunk is not None and is_current(chunk, source) for chunk in chunks):
            done[uid] = source
    return chunk_records(config, done)


class BuildRun:
    """Runs the stages of one build on its cluster, with a progress bar for each; a context manager.

    An unexpected exception in the work on one video or shard fails that video or shard; its traceback goes to the log,
    which is also in `build.log` of the work folder.
    """

    def __init__(
        self,
        config: BuildConfig,
        annotations: Annotations,
        video_paths: Mapping[str, Path],
        *,
        excluded: frozenset[str],
        ffmpeg: str,
        toolchain: dict[str, str],
        console: Console,
    ) -> None:
        assert config.videos.root is not None
        self._config, self._annotations, self._excluded = config, annotations, excluded
        self._places = places(video_paths, config.videos.root)
        self._ffmpeg, self._toolchain = ffmpeg, toolchain
        columns = [annotations.videos[name].to_pylist() for name in ("video_uid", "is_stereo")]
        self._is_stereo = dict(zip(*columns, strict=True))
        columns = [annotations.videos[name].to_pylist() for name in ("video_uid", "duration")]
        self._durations = {uid: seconds for uid, seconds in zip(*columns, strict=True) if seconds and seconds > 0}
        self._console = console
        self._stages = StageProgress(console)
        self._unfinished: dict[str, ChunkTask] = {}  # name of a job → its task
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(log_file(self._config.work_folder / "build.log"))
        self._stack.callback(self._forget_unfinished)  # once the workers have ended
        scratch = str(self._config.work_folder / "dask")
        self._client = self._stack.enter_context(jobs.cluster(self._config.dask, scratch=scratch))
        workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        self._console.print(f"{workers} workers; dashboard {self._client.dashboard_link}")
        self._stack.enter_context(self._stages.shown())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def probe(self, selection: Selection) -> ProbeResults:
        """Return what each selected video is, or why it cannot be used.

        Raises `TooManyFailuresError` where more samples are lost by that than `max_failed_fraction` allows.
        """
        sources: ProbeResults = {
            uid: f"{ABSENT}: no file of this name in videos.root"
            for uid in sorted(selection.videos - self._places.keys())
        }
        work = [self._probe_job(uid) for uid in sorted(selection.videos & self._places.keys())]
        self._stages.begin("videos", len(work), "videos")
        for ended in jobs.run(self._client, work):
            sources[ended.job.task.video_uid] = self._probed(ended)
            self._stages.advance("videos", 1)
        sources = dict(sorted(sources.items()))
        lost = {uid for uid, source in sources.items() if isinstance(source, str)}
        items = sum(sum(uid in lost for uid in plan.items["video_uid"].to_pylist()) for plan in selection.plans)
        self._require_few(items, selection, sources)
        return sources

    def _probe_job(self, uid: str) -> jobs.DaskJob:
        place = self._places[uid]
        task = ProbeTask(
            video_uid=uid,
            path=place.path,
            root=place.root,
            neighbours=place.neighbours,
            frames_fps=self._config.videos.frames_fps or self._annotations.frame_rates.get(uid),
            stated_seconds=self._durations.get(uid),
            clock_file=clock_path(self._config.work_folder, uid),
        )
        return jobs.DaskJob(name=f"probe-{uid}", stage="probe", function=probe_video, task=task)

    def _probed(self, ended: jobs.JobOutcome) -> ProbedVideo | str:
        """Return the outcome of probing a video; an exception makes it a failed one."""
        if ended.error is None and isinstance(ended.value, ProbedVideo):
            try:  # what later steps compute from it
                _count(ended.value, self._config)
                stored_size(ended.value, is_stereo=True, short_side=self._config.chunk.short_side)
            except Exception:  # noqa: BLE001  the video is at fault, and the traceback is logged
                return self._unexpected(ended.job.name, traceback.format_exc())
        if ended.error is not None:
            return self._unexpected(ended.job.name, ended.error)
        value: ProbedVideo | str = ended.value
        return value

    def _unexpected(self, job: str, trace: str) -> str:
        """Log the traceback of an exception; return `reason: detail` for the ledger, without paths of this machine."""
        logger.error("%s: %s\n%s", job, UNEXPECTED, trace.rstrip())
        detail = trace.strip().splitlines()[-1]
        for folder, name in ((self._config.work_folder, "WORK"), (self._config.videos.root, "VIDEOS")):
            detail = detail.replace(str(folder), name)
        return f"{UNEXPECTED}: {detail[:300]}"

    def chunk_and_pack(self, selection: Selection, sources: ProbeResults, done: set[str]) -> None:
        """Make the missing chunks and the shards not in `done` (names), each shard as soon as its chunks exist.

        Raises `TooManyFailuresError` where too many samples cannot be packed, and `TransientError` for machine faults.
        """
        plans = [plan for plan in selection.plans if plan.name not in done]
        counts = {uid: s if isinstance(s, str) else _count(s, self._config) for uid, s in sources.items()}
        needed_by = {plan.name: _videos(plan) for plan in plans}
        needed_videos = set().union(*needed_by.values())
        chunking = [
            self._chunk_job(uid, source, index)
            for uid, source in sources.items()
            if isinstance(source, ProbedVideo)
            for index in range(_count(source, self._config))
            if self._must_make(uid, source, index, needed_videos)
        ]
        chunking.sort(key=lambda job: -job.size)  # a long job started last would run alone at the end
        chunk_names: dict[str, set[str]] = {}
        for job in chunking:
            chunk_names.setdefault(job.task.video_uid, set()).add(job.name)
        packing = []
        for plan in plans:
            write_plan(self._config.work_folder, plan)
            needs = frozenset().union(*(chunk_names.get(uid, set()) for uid in needed_by[plan.name]))
            packing.append(self._pack_job(plan, {uid: counts[uid] for uid in needed_by[plan.name]}, needs))
        users: dict[str, set[str]] = {}
        for plan in plans:
            for uid in needed_by[plan.name]:
                users.setdefault(uid, set()).add(plan.name)

        self._unfinished = {job.name: job.task for job in chunking}
        self._stages.begin("chunks", sum(job.size for job in chunking), "s of video")
        self._stages.begin("shards", sum(len(plan.items) for plan in plans), "samples")
        failed = 0
        for ended in jobs.run(self._client, [*chunking, *packing]):
            self._stages.advance(ended.job.stage, ended.job.size)
            if ended.job.stage == "chunks":
                if ended.error:
                    self._record_failed_chunk(ended.job, ended.error)
                del self._unfinished[ended.job.name]
                continue
            failed += self._record_failed_shard(ended.job, ended.error) if ended.error else self._failed(ended)
            self._require_few(failed, selection, sources)
            if not self._config.chunk.keep:
                self._delete_unneeded_chunks(ended.job.name, needed_by[ended.job.name], users, counts)

    def _chunk_job(self, uid: str, source: ProbedVideo, index: int) -> jobs.DaskJob:
        task = ChunkTask(
            video_uid=uid,
            source=source,
            index=index,
            is_stereo=bool(self._is_stereo.get(uid)),
            config=self._config.chunk,
            ffmpeg=self._ffmpeg,
            work=self._config.work_folder,
            toolchain=self._toolchain,
        )
        return jobs.DaskJob(
            name=f"chunk-{uid}-{index}",
            stage="chunks",
            function=partial(_make_chunk, self._places[uid]),
            task=task,
            size=task.end - task.start,
            runs_ffmpeg=True,
        )

    def _pack_job(self, plan: ShardPlan, videos: dict[str, int | str], needs: frozenset[str]) -> jobs.DaskJob:
        task = PackTask(
            root=self._config.output,
            work=self._config.work_folder,
            set_name=plan.set_name,
            split=plan.split,
            number=plan.number,
            videos=videos,
            chunk=self._config.chunk,
            end_tolerance=self._config.end_tolerance,
            toolchain=self._toolchain,
        )
        return jobs.DaskJob(
            name=plan.name, stage="shards", function=_pack_shard, task=task, size=len(plan.items), needs=needs
        )

    def _must_make(self, uid: str, source: ProbedVideo, index: int, needed_videos: set[str]) -> bool:
        """Return whether a chunk must be made: absent, outdated, failed and to be retried, or deleted but needed."""
        chunk = read_sidecar(self._config.work_folder, uid, index)
        if chunk is None or not is_current(chunk, source) or chunk.toolchain != self._toolchain:
            return True
        if chunk.damage and self._config.retry == "failed":
            return True
        return uid in needed_videos and not has_media(self._config.work_folder, chunk)

    def _record_failed_chunk(self, job: jobs.DaskJob, trace: str) -> None:
        """Record a chunk for which our own code raised an exception, so that the build can go on."""
        task: ChunkTask = job.task
        reason = self._unexpected(job.name, trace)
        width, height = stored_size(task.source, is_stereo=task.is_stereo, short_side=task.config.short_side)
        chunk = Chunk(
            video_uid=task.video_uid,
            index=task.index,
            start=task.start,
            end=task.end,
            frames=0,
            summary_frames=0,
            width=width,
            height=height,
            damage=(Damage(start=task.start, end=task.end, reason=reason),),
            bytes=0,
            cpu_seconds=0.0,
            source_size=task.source.size,
            source_mtime_ns=task.source.mtime_ns,
            toolchain=task.toolchain,
            stated_end=task.source.stated_duration,
            deinterlaced=False,
            tone_mapped="",
            notes=task.source.notes,
        )
        write_sidecar(task.work, chunk)

    def _delete_unneeded_chunks(
        self, shard: str, videos: set[str], users: dict[str, set[str]], counts: Mapping[str, int | str]
    ) -> None:
        """Delete the chunks that no other shard needs, now that `shard` is written."""
        for uid in videos:
            users[uid].discard(shard)
            count = counts[uid]
            if not users[uid] and isinstance(count, int):
                for index in range(count):
                    delete_media(self._config.work_folder, uid, index)

    def _failed(self, ended: jobs.JobOutcome) -> int:
        """Return the number of failed samples of a packed shard; log the exceptions that failed some of them."""
        packed: ShardOutcome = ended.value
        for trace in packed.errors:
            self._unexpected(ended.job.name, trace)
        return packed.failed

    def _record_failed_shard(self, job: jobs.DaskJob, trace: str) -> int:
        """Record all samples of a shard for which our own code raised an exception as failed; return their number."""
        task: PackTask = job.task
        reason, _, detail = self._unexpected(job.name, trace).partition(": ")
        keys = pq.read_table(plan_path(task.work, task.set_name, task.split, task.number), columns=["key"])["key"]
        failed = [FailedItem(key=key, reason=reason, detail=detail) for key in keys.to_pylist()]
        with ShardWriter(task.root, task.set_name, task.split, task.number, toolchain=task.toolchain) as writer:
            writer.finish(failed)
        return len(failed)

    def _forget_unfinished(self) -> None:
        """Remove records of damage by chunks of which nothing was heard: what ended the build may have caused it."""
        for task in self._unfinished.values():
            chunk = read_sidecar(task.work, task.video_uid, task.index)
            if chunk is not None and chunk.damage:
                sidecar_path(task.work, task.video_uid, task.index).unlink(missing_ok=True)

    def _require_few(self, failed: int, selection: Selection, sources: ProbeResults) -> None:
        """Raise `TooManyFailuresError` where too many of the planned samples failed; the ledger so far is written."""
        if failed > self._config.max_failed_fraction * selection.items:
            chunks = finished_records(self._config, sources)
            rows, spans = interim_ledger(self._config, self._annotations, selection, chunks, self._excluded)
            raise report.too_many_failures(
                self._config, rows, spans, sets=self._annotations.sets, failed=failed, tried=selection.items
            )


def _make_chunk(place: SourcePlace, task: ChunkTask) -> Chunk:
    """Make a chunk on a worker; raise `TransientError` where the machine fails: in writing, or by losing the source."""
    try:
        chunk = make_chunk(task)
    except OSError as error:
        place.require_reachable()
        if is_output_fault(error):
            raise TransientError(f"{task.work}: {error.strerror or error}") from error
        raise
    except Exception:
        place.require_reachable()
        raise
    if chunk.damage:
        try:
            place.require_reachable()
        except TransientError:
            sidecar_path(task.work, task.video_uid, task.index).unlink(missing_ok=True)
            raise
    return chunk


def _pack_shard(task: PackTask) -> ShardOutcome:
    """Pack a shard on a worker; raise `TransientError` where its folders have disappeared."""
    try:
        return pack_shard(task)
    except FileNotFoundError as error:
        for folder in (task.root, task.work):
            if not folder.is_dir():
                raise TransientError(f"{folder}: disappeared during the build") from error
        raise


def _videos(plan: ShardPlan) -> set[str]:
    return set(plan.items["video_uid"].unique().to_pylist())


def _count(source: ProbedVideo, config: BuildConfig) -> int:
    """Return the number of chunks of a source."""
    return -(-source.frames(config.chunk.fps) // (config.chunk.seconds * config.chunk.fps))


def _format_path(config: BuildConfig) -> Path:
    return config.work_folder / "format.json"
