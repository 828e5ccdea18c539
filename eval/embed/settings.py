"""How samples are read and encoded: everything that embedding needs besides the model and the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from hiervl_train.models.pixels import ChannelOrder
from hiervl_train.models.speed import SpeedConfig
from shards.config import LoaderConfig, ReadConfig

_MAX_SUBSTITUTES = 64  # the loader fills the place of an undecodable sample with its neighbour; evaluation ignores it


class EmbedError(RuntimeError):
    """Embedding cannot go on because of storage, a loader worker, another rank or a setting the model does not fit."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class EmbedSettings(ReadConfig):
    """How samples become embeddings.

    `frames`, `windows`, `window_seconds`, `channel_order`, `micro_batch`, `speed` and `decoder` affect the embeddings
    and so are part of the cache key.
    """

    frames: PositiveInt = 4  # per clip and per window
    windows: PositiveInt = 16  # per long sample
    window_seconds: PositiveFloat = 8.0  # greatest length of a window, s
    channel_order: ChannelOrder = "rgb"
    micro_batch: PositiveInt = 32  # clips per forward pass
    speed: SpeedConfig = field(default_factory=lambda: SpeedConfig(bf16=False, compile=False))
    workers: NonNegativeInt = 0  # decoding processes per rank; 0: in the calling process
    features: str | None = None  # read this feature set of the dataset instead of video: its name, or its folder
    part_samples: PositiveInt = 4096  # samples per part of the cache, written while embedding goes on

    def samples_per_batch(self, *, is_long: bool) -> int:
        """Return the samples of one batch; a long sample counts as many clips as it has windows."""
        return max(1, self.micro_batch // self.windows) if is_long else self.micro_batch

    def loader_config(self, *, is_long: bool, size: int) -> LoaderConfig:
        """Return the loader's configuration for frames of `size` × `size` pixels."""
        return LoaderConfig(
            **self.reading(),
            global_batch=self.samples_per_batch(is_long=is_long),
            frames=self.frames,
            windows=self.windows,
            window_seconds=self.window_seconds,
            narrations=1,
            size=size,
            max_substitutes=_MAX_SUBSTITUTES,
        )
