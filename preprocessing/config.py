"""Typed configuration of a build of shards, filled from `configs/preprocess/*.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.demo.config import DemoConfig
from preprocessing.own.config import CaptionsConfig
from preprocessing.slurm.walltime import parse_walltime


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """Where the source videos are and how many of them to use."""

    root: Path | None = None  # folder of <video_uid>.<any container's extension>, or of folders <video_uid> of JPEGs
    pattern: str = "*"  # glob below root that finds them, as */rgb_frames/*
    # Frame rate of folders of JPEGs, frames per second; null: as the annotations number frames.
    frames_fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    limit: PositiveInt | None = None  # take the first N videos of a seeded shuffle; null: all
    allow_missing: bool = False  # record absent videos without counting them against max_failed_fraction

    def __post_init__(self) -> None:
        if not self.pattern or self.pattern.startswith("/") or ".." in Path(self.pattern).parts:
            raise ValueError(f"videos.pattern = {self.pattern!r}: a pattern below videos.root, as */rgb_frames/*")


FRAME_CHOICE = "2"  # version of the rule that chooses a source frame for each stored one: by the source's clock


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """How a source video becomes chunks. Every key but `keep` and the limits affects their bytes."""

    seconds: PositiveInt = 600  # length of a chunk, s
    short_side: Annotated[int, Field(ge=1, multiple_of=2)] = 256  # pixels, even; a smaller source is not enlarged
    fps: PositiveInt = 30  # frames per second
    # Seconds between key frames (0.5334: 16 frames at 30 fps). Clips are cut at key frames: the slack around a clip.
    gop_seconds: PositiveFloat = 0.5334
    # Non-reference frames between anchor frames, which a reader of few frames skips.
    b_frames: Annotated[int, Field(ge=0, le=16)] = 7
    crf: Annotated[int, Field(ge=0, le=51)] = 23  # x264's constant rate factor: lower is better and larger
    summary_fps: PositiveInt = 2  # frames per second of the low-rate rendition; must divide fps
    summary_gop_seconds: float = 4.0  # seconds between key frames of the low-rate rendition
    hdr: Literal["tonemap", "as_is"] = "tonemap"  # HDR sources (PQ, HLG): map them to SDR, or store their values
    max_gap_seconds: float = 0.5  # seconds without a new frame after which a source counts as frozen there
    keep: bool = True  # false: delete a chunk once every shard that needs it is written
    timeout_seconds: PositiveInt = 7200  # seconds after which ffmpeg is stopped and its chunk counts as failed
    memory_gib: PositiveInt = 8  # GiB of address space for one ffmpeg

    def __post_init__(self) -> None:
        if self.fps % self.summary_fps:
            raise ValueError(f"chunk.fps = {self.fps}: must be a multiple of chunk.summary_fps = {self.summary_fps}")
        if self.gop_seconds > self.seconds:
            raise ValueError(f"chunk.gop_seconds = {self.gop_seconds}: must be at most chunk.seconds = {self.seconds}")

    @property
    def gop(self) -> int:
        """Frames from one key frame to the next."""
        return max(1, round(self.gop_seconds * self.fps))

    @property
    def summary_gop(self) -> int:
        """Frames from one key frame to the next in the low-rate rendition."""
        return max(1, round(self.summary_gop_seconds * self.summary_fps))

    @property
    def summary_step(self) -> int:
        """The number of full-rate frames per frame of the low-rate rendition."""
        return self.fps // self.summary_fps

    def format(self) -> dict[str, str]:
        """Return the values that determine the bytes of chunks; shards with different values are not mixed."""
        names = ("seconds", "short_side", "fps", "gop_seconds", "b_frames", "crf", "summary_fps", "summary_gop_seconds")
        values = {f"chunk.{name}": str(getattr(self, name)) for name in (*names, "hdr")}
        return {**values, "chunk.frames": FRAME_CHOICE}


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How samples are assigned to shards."""

    max_samples: PositiveInt = 4096  # samples per shard
    max_bytes: PositiveInt = (
        256 * 2**20
    )  # bytes per shard at the nominal rate, so that annotations alone decide the plan
    nominal_kbps: PositiveInt = 300  # assumed bit rate of clips, kbit/s, for `max_bytes` and --dry-run
    nominal_summary_kbps: PositiveInt = 60  # assumed bit rate of the low-rate rendition, kbit/s
    nominal_seconds: Annotated[float, Field(ge=1)] = 30.0  # assumed length of a video that is taken whole, s
    seed: int = 0  # of the order of samples


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Resources of one SLURM job of Dask workers (`dask.cluster: slurm`)."""

    queue: str | None = None  # partition
    account: str | None = None  # account that is charged
    cores: int = 16  # cores per job
    memory: str = "64GB"  # memory per job
    # Time limit of a job, in any of SLURM's forms; workers finish their tasks and leave 15 minutes earlier.
    walltime: str = "12:00:00"
    jobs: int = 4  # jobs kept running until the build is done; one that ends early is submitted again
    interface: str | None = None  # network interface between workers and scheduler, as ib0; null: the host's address
    extra_directives: tuple[str, ...] = ()  # further #SBATCH lines
    prologue: tuple[str, ...] = ()  # shell lines before the worker starts, as `source .venv/bin/activate`

    def __post_init__(self) -> None:
        parse_walltime(self.walltime)


@dataclass(frozen=True, kw_only=True)
class DaskConfig:
    """Where the work runs."""

    cluster: str = "local"  # local, slurm, or the address of a running scheduler (tcp://host:port)
    workers: PositiveInt | None = None  # local processes; null: one per core
    dashboard: str = ":0"  # address of the dashboard; port 0: any free port
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        if self.cluster not in ("local", "slurm") and "://" not in self.cluster:
            raise ValueError(f"dask.cluster = {self.cluster!r}: local, slurm or an address such as tcp://host:8786")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """One build of one dataset."""

    output: Path = Path("data/embedded/shards")  # folder of the dataset
    work: Path | None = None  # folder of chunks and plans, on scratch; null: `work` next to `output`
    # Executable; null: the one on PATH where it can do all that a build needs, else imageio-ffmpeg's.
    ffmpeg: Path | None = None
    licence: str = "The source videos' licence applies; state it here (`licence`)."  # written into the dataset's card
    videos: VideosConfig = field(default_factory=VideosConfig)
    annotations: AnnotationsConfig = field(default_factory=AnnotationsConfig)
    captions: CaptionsConfig | None = None  # own videos: how they and `annotations.captions` are read
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    dask: DaskConfig = field(default_factory=DaskConfig)
    demo: DemoConfig | None = None  # render the embedded dataset first and build from it
    demo_root: Path = Path("data/embedded/source")  # where the embedded dataset's videos are rendered
    demo_benchmarks: bool = False  # also make the benchmarks over its videos, each in its published format
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05  # failed samples above which the exit code is 3
    end_tolerance: float = 0.5  # seconds by which a clip may end after its video, and is then cut at the video's end
    retry: Literal["none", "failed"] = "none"  # failed: try recorded failures again

    def __post_init__(self) -> None:
        if self.captions is not None:
            self.annotations.require_own_only()

    @property
    def own(self) -> CaptionsConfig | None:
        """How own videos are read; None where the build is of a dataset with a format of its own."""
        if self.captions is None and self.annotations.captions is not None:
            return CaptionsConfig()
        return self.captions

    @property
    def work_folder(self) -> Path:
        """The folder of chunks, their sidecars and the plan."""
        return self.work if self.work is not None else self.output.parent / "work"
