"""The stages of a build that run on a cluster: probe the videos, transcode them into chunks, pack the shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from preprocessing import jobs
from preprocessing.annotations import Annotations
from preprocessing.config import BuildConfig
from preprocessing.errors import TooManyFailuresError, TransientError, UsageError, is_output_fault
from preprocessing.pack import PackTask, ShardOutcome, pack_shard
from preprocessing.plan import ShardPlan, write_plan
from preprocessing.progress import StageProgress
from preprocessing.selection import ABSENT, Selection
from preprocessing.video.chunks import Chunk, Damage, delete_media, has_media, is_current, read_sidecar, write_sidecar
from preprocessing.video.probe import ProbedVideo
from preprocessing.video.sources import ProbeTask, probe_video
from preprocessing.video.transcode import ChunkTask, make_chunk, stored_size
from shards.files import write_json
from shards.index import require_toolchain

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


class BuildRun:
    """Runs the stages of one build on its cluster, with a progress bar for each; a context manager."""

    def __init__(
        self,
        config: BuildConfig,
        annotations: Annotations,
        video_paths: Mapping[str, Path],
        *,
        ffmpeg: str,
        toolchain: dict[str, str],
        console: Console,
    ) -> None:
        self._config, self._video_paths = config, video_paths
        self._ffmpeg, self._toolchain = ffmpeg, toolchain
        columns = [annotations.videos[name].to_pylist() for name in ("video_uid", "is_stereo")]
        self._is_stereo = dict(zip(*columns, strict=True))
        self._frame_rates = annotations.frame_rates
        self._console = console
        self._stages = StageProgress(console)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
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
        assert self._config.videos.root is not None
        sources: ProbeResults = {
            uid: f"{ABSENT}: no file of this name in videos.root"
            for uid in sorted(selection.videos - self._video_paths.keys())
        }
        work = [
            jobs.DaskJob(
                name=f"probe-{uid}",
                stage="probe",
                function=probe_video,
                task=ProbeTask(
                    video_uid=uid,
                    path=self._video_paths[uid],
                    root=self._config.videos.root,
                    frames_fps=self._config.videos.frames_fps or self._frame_rates.get(uid),
                ),
            )
            for uid in sorted(selection.videos & self._video_paths.keys())
        ]
        self._stages.begin("videos", len(work), "videos")
        for ended in jobs.run(self._client, work):
            sources[ended.job.task.video_uid] = _value(ended)
            self._stages.advance("videos", 1)
        lost = {uid for uid, source in sources.items() if isinstance(source, str)}
        items = sum(sum(uid in lost for uid in plan.items["video_uid"].to_pylist()) for plan in selection.plans)
        self._require_few(items, selection.items, f"{len(lost)} of {len(sources)} videos are missing or unreadable")
        return dict(sorted(sources.items()))

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

        self._stages.begin("chunks", sum(job.size for job in chunking), "s of video")
        self._stages.begin("shards", sum(len(plan.items) for plan in plans), "samples")
        failed = 0
        for ended in jobs.run(self._client, [*chunking, *packing]):
            self._stages.advance(ended.job.stage, ended.job.size)
            if ended.job.stage == "chunks":
                if ended.error:
                    self._record_failed_chunk(ended)
                continue
            packed: ShardOutcome = _value(ended)
            failed += packed.failed
            self._require_few(failed, selection.items, f"{failed} samples could not be packed")
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
            function=_make_chunk,
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
            name=plan.name, stage="shards", function=pack_shard, task=task, size=len(plan.items), needs=needs
        )

    def _must_make(self, uid: str, source: ProbedVideo, index: int, needed_videos: set[str]) -> bool:
        """Return whether a chunk must be made: absent, outdated, failed and to be retried, or deleted but needed."""
        chunk = read_sidecar(self._config.work_folder, uid, index)
        if chunk is None or not is_current(chunk, source) or chunk.toolchain != self._toolchain:
            return True
        if chunk.damage and self._config.retry == "failed":
            return True
        return uid in needed_videos and not has_media(self._config.work_folder, chunk)

    def _record_failed_chunk(self, ended: jobs.JobOutcome) -> None:
        """Record a chunk for which our own code raised an exception, so that the build can go on."""
        task: ChunkTask = ended.job.task
        assert ended.error is not None
        reason = f"unexpected error: {ended.error.strip().splitlines()[-1]}"
        self._console.print(f"{ended.job.name}: {ended.error}", markup=False)
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

    def _require_few(self, failed: int, items: int, what: str) -> None:
        if failed > self._config.max_failed_fraction * items:
            raise TooManyFailuresError(
                f"{what}: {failed} of {items} samples are lost, more than max_failed_fraction = "
                f"{self._config.max_failed_fraction} allows. Finished work is kept. If that many failures are "
                "expected, raise max_failed_fraction (or set videos.allow_missing=true for missing videos) and rerun"
            )


def _make_chunk(task: ChunkTask) -> Chunk:
    """Make a chunk on a worker; raise `TransientError` where writing fails because of the machine."""
    try:
        return make_chunk(task)
    except OSError as error:
        if is_output_fault(error):
            raise TransientError(f"{task.work}: {error.strerror or error}") from error
        raise


def _value(ended: jobs.JobOutcome) -> Any:
    """Return the value of a job; raise `RuntimeError` with the worker's traceback where it has none."""
    if ended.error:
        raise RuntimeError(f"{ended.job.name} raised an unexpected exception:\n{ended.error}")
    return ended.value


def _videos(plan: ShardPlan) -> set[str]:
    return set(plan.items["video_uid"].unique().to_pylist())


def _count(source: ProbedVideo, config: BuildConfig) -> int:
    """Return the number of chunks of a source."""
    return -(-source.frames(config.chunk.fps) // (config.chunk.seconds * config.chunk.fps))


def _format_path(config: BuildConfig) -> Path:
    return config.work_folder / "format.json"
