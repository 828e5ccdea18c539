"""Typed configuration of the loader: where shards come from, and how their samples become batches."""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from shards.decode import DecoderName

Probability = Annotated[float, Field(ge=0, le=1)]


def require_bounds(config: Any) -> None:
    """Raise `ValueError` where a field of a dataclass does not fit its type and bounds.

    pydantic checks what it parses; this checks what is constructed in code. Call it in `__post_init__`.
    """
    cls: type = type(config)
    for name, adapter in _adapters(cls).items():
        value = getattr(config, name)
        try:
            adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise ValueError(f"{name} = {value!r}: {error.errors()[0]['msg']}") from None


@functools.cache
def _adapters(cls: type) -> dict[str, pydantic.TypeAdapter[Any]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {each.name: pydantic.TypeAdapter(hints[each.name]) for each in dataclasses.fields(cls)}


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How remote shards are fetched and cached. Local shards are read in place."""

    cache: Path | None = None  # folder on this node, shared by its ranks and workers; a tmpfs if memory allows
    cache_gib: PositiveFloat = 100.0  # GiB that the cache may hold; more than the shards of a node's open blocks
    prefetch_batches: NonNegativeInt = 200  # shards that this many coming batches need are fetched ahead
    attempts: PositiveInt = 6  # per file, before a transient error counts as final
    first_wait_seconds: NonNegativeFloat = 0.5  # seconds before the second attempt; doubles with each
    timeout_seconds: PositiveFloat = 60.0  # seconds without a byte before an attempt fails
    # KiB/s: an attempt also fails after timeout_seconds plus the time that the bytes received take at this rate.
    min_kib_per_second: PositiveFloat = 100.0
    # Probability that a read from the cache hashes the whole shard. Checksums cover what is read in any case, and a
    # sample that cannot be decoded has its shard hashed. At 0.0001, about 0.2 ms a sample with shards of 1 GiB.
    cache_check_rate: Probability = 0.0001

    def __post_init__(self) -> None:
        require_bounds(self)

    @property
    def cache_bytes(self) -> int:
        """The cache's budget in bytes."""
        return int(self.cache_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How samples are read from shards: the keys that training, evaluation and feature extraction share."""

    decoder: DecoderName = "pyav"  # library that decodes the clips
    workers: NonNegativeInt = 4  # decoding processes per rank; 0: in the calling process
    prefetch: PositiveInt = 4  # batches that each worker prepares ahead
    worker_timeout_seconds: PositiveFloat = 1800.0  # seconds for one batch before a worker counts as stuck
    max_consecutive_failures: NonNegativeInt | None = 32  # undecodable samples in a row before the run stops; null: any
    source: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        require_bounds(self)

    def reading(self) -> dict[str, Any]:
        """Return the shared fields by name, to construct another configuration that has them."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(ReadConfig)}


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(ReadConfig):
    """How samples become batches: everything besides the shards themselves that a batch depends on."""

    global_batch: PositiveInt = 16  # samples per batch, all ranks together
    seed: NonNegativeInt = 0  # of order, augmentation and choice of frames
    # Parts that the split is divided into: ranks must divide it, it must divide the batch; null: the batch's largest
    # divisor ≤ 256.
    lanes: PositiveInt | None = None
    block_mib: PositiveInt = 1024  # MiB of a lane's shards within which samples are shuffled
    frames: PositiveInt = 4  # per clip, and per window of a long sample
    size: PositiveInt = 224  # height and width of a frame, pixels
    windows: PositiveInt = 16  # per long sample
    narrations: PositiveInt = 16  # per summary
    window_seconds: PositiveFloat = 8.0  # greatest length of a window, s
    # Of a long set: read a sample as one clip of a length between these (s), anywhere inside it; null: as windows.
    clip_seconds: tuple[float, float] | None = None
    crop_scale: tuple[float, float] = (0.5, 1.0)  # least and greatest share of the area that a training crop keeps
    flip: Probability = 0.5  # probability of a horizontal flip in training; 0 where narrations say left and right
    scene_negatives: bool = False  # with each clip a second one of the same minute of the same video
    # Read a feature set instead of video: its name, or its folder (with a slash).
    features: str | None = None
    max_substitutes: NonNegativeInt = 8  # attempts to replace a sample that cannot be decoded

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lanes is not None and self.global_batch % self.lanes:
            raise ValueError(f"lanes = {self.lanes}: must divide global_batch = {self.global_batch}")
        if self.clip_seconds is not None and not 0 < self.clip_seconds[0] <= self.clip_seconds[1]:
            raise ValueError(f"clip_seconds = {self.clip_seconds}: must satisfy 0 < shortest ≤ longest")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale = {self.crop_scale}: must satisfy 0 < smallest ≤ largest ≤ 1")
