"""What the loader can be told, typed and checked: where shards come from, and how they become batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shards.video.decode import DecoderName


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How shards are fetched where they are not local, and where they are kept. Local shards are read in place."""

    cache: Path | None = None  # a folder of this node, shared by all its ranks and workers; a tmpfs where memory allows
    cache_gib: float = 100.0  # what the cache may hold; more than the shards of a node's open blocks
    prefetch_batches: int = 200  # shards that this many coming batches need are fetched ahead
    attempts: int = 6  # for a file, before a passing fault counts as final
    first_wait_seconds: float = 0.5  # before the second attempt; doubles with each
    timeout_seconds: float = 60.0  # without a byte

    def __post_init__(self) -> None:
        for name in ("cache_gib", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0")
        if self.attempts < 1 or self.first_wait_seconds < 0 or self.prefetch_batches < 0:
            raise ValueError(
                f"attempts = {self.attempts} (at least 1), first_wait_seconds = {self.first_wait_seconds}, "
                f"prefetch_batches = {self.prefetch_batches} (at least 0)"
            )

    @property
    def cache_bytes(self) -> int:
        """The cache's budget in bytes."""
        return int(self.cache_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How samples become batches. What decides their content: everything but workers, prefetch, limits and source."""

    global_batch: int = 16  # samples of all ranks together
    seed: int = 0
    # How the split is divided: ranks must divide it, it must divide the batch; null: the batch's largest divisor ≤ 256.
    lanes: int | None = None
    block_mib: int = 1024  # of a lane's shards, within which its samples are shuffled
    frames: int = 4  # of a clip, and of each window of a summary
    size: int = 224  # pixels, height and width
    windows: int = 16  # of a summary
    narrations: int = 16  # of a summary
    window_seconds: float = 8.0  # of a summary's window at most
    # Of a long set: read a sample as one clip, of a length between these and anywhere inside it; null: K windows.
    clip_seconds: tuple[float, float] | None = None
    crop_scale: tuple[float, float] = (0.5, 1.0)  # share of the area that training's random crop keeps
    flip: float = 0.5  # probability, in training; 0 where narrations say left and right
    scene_negatives: bool = False  # with each clip a second one of the same minute of the same video
    decoder: DecoderName = "pyav"
    workers: int = 4  # processes of this rank; 0: in the training process
    prefetch: int = 4  # batches that each worker makes ahead
    worker_timeout_seconds: float = 1800.0  # for one batch, before a worker counts as stuck
    max_substitutes: int = 8  # tries to replace a sample that fails to decode
    max_consecutive_failures: int = 32  # failed samples one after another, before the run stops
    source: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        for name in ("global_batch", "block_mib", "frames", "size", "windows", "narrations", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("seed", "workers", "max_substitutes", "max_consecutive_failures"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 0")
        if self.lanes is not None and (self.lanes < 1 or self.global_batch % self.lanes):
            raise ValueError(f"lanes = {self.lanes}: must divide global_batch = {self.global_batch}")
        if self.clip_seconds is not None and not 0 < self.clip_seconds[0] <= self.clip_seconds[1]:
            raise ValueError(f"clip_seconds = {self.clip_seconds}: 0 < shortest ≤ longest is needed")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale = {self.crop_scale}: 0 < smallest ≤ largest ≤ 1 is needed")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip = {self.flip}: a probability is expected")
        if self.window_seconds <= 0 or self.worker_timeout_seconds <= 0:
            raise ValueError(
                f"window_seconds = {self.window_seconds}, worker_timeout_seconds = {self.worker_timeout_seconds}: "
                "both must be above 0"
            )
