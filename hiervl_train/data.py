"""Brings a loader's batches to the device one step ahead, and says how long the training waited for data.

On a GPU: batches arrive in pinned memory and are copied on a stream of their own while the step before is computed.
On a CPU the same code runs without streams. Normalisation is `hiervl_train.models.pixels.normalise`, on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from shards.config import LoaderConfig, SourceConfig
from shards.loader import Batch, Loader
from shards.video.decode import DecoderName


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where batches come from and what makes them; what a sample holds is `sample`, how many `schedule`."""

    root: str = "data/embedded/shards"  # of the dataset: a path, or an http(s):// or s3:// URL
    split: str = "train"
    workers: int = 4  # processes of each rank that make clips
    summary_workers: int = 2  # and summaries
    prefetch: int = 4  # batches that each worker makes ahead
    decoder: DecoderName = "pyav"
    lanes: int | None = None  # how the split is divided: ranks must divide it; null: see `shards.config`
    block_mib: int = 1024  # of a lane's shards, within which samples are shuffled
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.5  # 0 where narrations say left and right
    max_consecutive_failures: int = 32  # samples that cannot be decoded one after another, before the run ends
    worker_timeout_seconds: float = 1800.0
    source: SourceConfig = field(default_factory=SourceConfig)

    def loader(self, *, global_batch: int, workers: int, seed: int, **sample: Any) -> LoaderConfig:
        """Return the configuration of one level's loader; `sample` are its fields of what a sample holds."""
        return LoaderConfig(
            global_batch=global_batch,
            workers=workers,
            seed=seed,
            lanes=self.lanes,
            block_mib=self.block_mib,
            crop_scale=self.crop_scale,
            flip=self.flip,
            decoder=self.decoder,
            prefetch=self.prefetch,
            worker_timeout_seconds=self.worker_timeout_seconds,
            max_consecutive_failures=self.max_consecutive_failures,
            source=self.source,
            **sample,
        )


class DeviceLoader:
    """Iterates over a loader's batches on `device`, epoch after epoch, as the loader itself does.

    `for batch in device_loader` runs to the end of the current epoch. `state_dict` is where the caller stands: the
    batch that is on its way does not count.
    """

    def __init__(self, loader: Loader, device: torch.device | str) -> None:
        self._loader = loader
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._state = loader.state_dict()

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        if self._loader.state_dict() != self._state:
            self._loader.load_state_dict(self._state)  # a loop was left with a batch on its way: it is made again
        batches = iter(self._loader)
        ready = self._start(next(batches, None))
        while ready is not None:
            batch, state = ready
            self._finish(batch)
            ready = self._start(next(batches, None))
            self._state = state
            yield batch

    def endless(self) -> Iterator[Batch]:
        """Yield batches for ever, epoch after epoch."""
        while True:
            yield from self

    def state_dict(self) -> dict[str, int]:
        """Return the cursor after the last batch that the caller was given."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a cursor; see `Loader.load_state_dict`."""
        self._loader.load_state_dict(state)
        self._state = self._loader.state_dict()

    def metrics(self) -> dict[str, float]:
        """Return what happened since the last call: `wait_seconds` for data, samples, failures by reason."""
        return self._loader.metrics()

    def close(self) -> None:
        """End the loader's workers."""
        self._loader.close()

    def _start(self, batch: Batch | None) -> tuple[Batch, dict[str, int]] | None:
        """Begin copying a batch; return it and the cursor behind it."""
        if batch is None:
            return None
        state = self._loader.state_dict()
        if self._stream is None:
            return batch.to(self._device), state
        with torch.cuda.stream(self._stream):
            return batch.to(self._device, non_blocking=True), state

    def _finish(self, batch: Batch) -> None:
        """Let the computation wait for the copy, and keep its memory until the computation is through with it."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in batch.tensors().values():
            tensor.record_stream(current)
