"""Everything that a build of shards can be told, typed and checked; `configs/preprocess/*.yaml` fill it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.demo.config import DemoConfig


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """Where the source videos are and how many of them to take."""

    root: Path | None = None  # holds <video_uid>.<any container's extension>, or folders <video_uid> of numbered JPEGs
    pattern: str = "*"  # where below root they lie, as */rgb_frames/*
    frames_fps: float | None = None  # pictures a second of such folders; null: as the annotations number frames
    limit: int | None = None  # the first N videos by a seeded shuffle: a small subset to try
    allow_missing: bool = False  # absent videos are recorded, but do not count against max_failed_fraction

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"videos.limit = {self.limit}: at least 1, or null for all")
        if self.frames_fps is not None and not 0 < self.frames_fps <= 1000:
            raise ValueError(f"videos.frames_fps = {self.frames_fps}: above 0 and at most 1000, or null")
        if not self.pattern or self.pattern.startswith("/") or ".." in Path(self.pattern).parts:
            raise ValueError(f"videos.pattern = {self.pattern!r}: a pattern below videos.root, as */rgb_frames/*")


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """How a source video becomes chunks. Everything here but `keep` and the limits decides bytes."""

    seconds: int = 600
    short_side: int = 256  # pixels; a smaller source is not enlarged
    fps: int = 30
    gop_seconds: float = 0.5334  # 16 frames at 30 fps: clips are cut at key frames, so this is the slack around them
    b_frames: int = 7  # non-reference frames between anchors: a reader of few frames skips most of them
    crf: int = 23
    summary_fps: int = 2
    summary_gop_seconds: float = 4.0
    max_gap_seconds: float = 0.5  # a source that shows no new frame for longer is frozen there
    keep: bool = True  # false: a chunk is deleted once every shard that needs it is written
    timeout_seconds: int = 7200  # an ffmpeg that runs longer is ended and its chunk failed
    memory_gib: int = 8  # address space that one ffmpeg may take

    def __post_init__(self) -> None:
        for name in ("seconds", "short_side", "fps", "summary_fps", "timeout_seconds", "memory_gib"):
            if getattr(self, name) < 1:
                raise ValueError(f"chunk.{name} = {getattr(self, name)}: must be at least 1")
        if self.short_side % 2:
            raise ValueError(f"chunk.short_side = {self.short_side}: must be even, as 4:2:0 video is")
        if self.fps % self.summary_fps:
            raise ValueError(f"chunk.fps = {self.fps}: must be a multiple of chunk.summary_fps = {self.summary_fps}")
        if not 0 < self.gop_seconds <= self.seconds:
            raise ValueError(f"chunk.gop_seconds = {self.gop_seconds}: must be above 0 and at most chunk.seconds")
        if not 0 <= self.b_frames <= 16 or not 0 <= self.crf <= 51:
            raise ValueError(f"chunk.b_frames = {self.b_frames} (0 to 16), chunk.crf = {self.crf} (0 to 51)")

    @property
    def gop(self) -> int:
        """Frames from key frame to key frame."""
        return max(1, round(self.gop_seconds * self.fps))

    @property
    def summary_gop(self) -> int:
        """Frames from key frame to key frame of the low-rate rendition."""
        return max(1, round(self.summary_gop_seconds * self.summary_fps))

    @property
    def summary_step(self) -> int:
        """How many chunk frames one frame of the low-rate rendition stands for."""
        return self.fps // self.summary_fps

    def format(self) -> dict[str, str]:
        """Return what decides the bytes of chunks, for the record beside each shard: mixing values is refused."""
        names = ("seconds", "short_side", "fps", "gop_seconds", "b_frames", "crf", "summary_fps", "summary_gop_seconds")
        return {f"chunk.{name}": str(getattr(self, name)) for name in names}


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How samples are dealt to shards."""

    max_samples: int = 4096
    max_bytes: int = 256 * 2**20  # by nominal rate, so that the plan depends on annotations alone
    nominal_kbps: int = 300  # of clips; the figure for the byte bound and for --dry-run
    nominal_summary_kbps: int = 60
    nominal_seconds: float = 30.0  # of a video that is taken whole, however long it is
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_samples", "max_bytes", "nominal_kbps", "nominal_summary_kbps", "nominal_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"shard.{name} = {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What one SLURM job of Dask workers asks for (`dask.cluster: slurm`)."""

    queue: str | None = None
    account: str | None = None
    cores: int = 16
    memory: str = "64GB"
    walltime: str = "12:00:00"
    jobs: int = 4  # kept running until the build is done: one that ends early is submitted anew
    interface: str | None = None  # by which workers and scheduler find each other, as ib0; null: the host's own address
    extra_directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()  # lines before the worker starts, as `source .venv/bin/activate`


@dataclass(frozen=True, kw_only=True)
class DaskConfig:
    """Where the work runs: `local`, `slurm`, or the address of a running scheduler (tcp://host:port)."""

    cluster: str = "local"
    workers: int | None = None  # local processes; null: one a core
    dashboard: str = ":0"  # address of the dashboard; port 0 takes any free one
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        if self.cluster not in ("local", "slurm") and "://" not in self.cluster:
            raise ValueError(f"dask.cluster = {self.cluster!r}: local, slurm or an address such as tcp://host:8786")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"dask.workers = {self.workers}: at least 1, or null for one a core")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """One build of one dataset."""

    output: Path = Path("data/embedded/shards")
    work: Path | None = None  # chunks and plans, on scratch; null: `work` beside `output`
    ffmpeg: Path | None = None  # null: the one on PATH, else imageio-ffmpeg's
    licence: str = "The source videos' licence applies; state it here (`licence`)."
    videos: VideosConfig = field(default_factory=VideosConfig)
    annotations: AnnotationsConfig = field(default_factory=AnnotationsConfig)
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    dask: DaskConfig = field(default_factory=DaskConfig)
    demo: DemoConfig | None = None  # render the embedded dataset first and build from that
    demo_root: Path = Path("data/embedded/source")
    demo_benchmarks: bool = False  # also make the benchmarks over its videos, each in its published format
    max_failed_fraction: float = 0.05
    end_tolerance: float = 0.5  # s; a clip that ends later than the video by at most this ends with the video
    retry: Literal["none", "failed"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.max_failed_fraction <= 1:
            raise ValueError(f"max_failed_fraction = {self.max_failed_fraction}: a share between 0 and 1")

    @property
    def work_folder(self) -> Path:
        """Where chunks, their sidecars and the plan lie."""
        return self.work if self.work is not None else self.output.parent / "work"
