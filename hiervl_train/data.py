"""Batches for the training loop: the data configuration, loaders that copy to the device ahead, loaders by step type.

On a GPU, batches arrive in pinned memory and are copied on a separate stream while the previous step is computed. On a
CPU the same code runs without streams. Frames are normalised on the device, by `hiervl_train.models.pixels.normalise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveInt

from hiervl_train.distributed import DistributedContext
from shards.config import LoaderConfig, Probability, ReadConfig
from shards.loader import Batch, Loader

_LISTS = ("keys", "texts", "narrations", "failures")  # fields of a batch with one entry per sample


class DataError(ValueError):
    """A dataset cannot be trained on as configured; the message says what is too small or missing."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class DataConfig(ReadConfig):
    """Which split is trained on, and how it is read; `sample` is what a sample holds, `schedule` the batch sizes."""

    root: str = "data/embedded/shards"  # dataset: a folder, or an http(s):// or s3:// URL
    split: str = "train"  # split of each set that is read
    # Train on a feature set of `root` instead of video: its name, or its folder (with a slash). The towers are frozen.
    features: str | None = None
    summary_workers: NonNegativeInt = 2  # decoding processes per rank for summaries, besides `workers` for clips
    # Parts that the split is divided into, which the number of ranks must divide; null: the largest divisor of the
    # batch that is at most 256.
    lanes: PositiveInt | None = None
    block_mib: PositiveInt = 1024  # MiB of a lane's shards within which samples are shuffled
    crop_scale: tuple[float, float] = (0.5, 1.0)  # least and greatest share of the area that the random crop keeps
    flip: Probability = 0.5  # probability of a horizontal flip; 0 where narrations say left and right

    def loader(self, *, global_batch: int, workers: int, seed: int, **sample: Any) -> LoaderConfig:
        """Return the configuration of a loader; `sample` are the fields of `LoaderConfig` that define a sample."""
        return LoaderConfig(
            **self.reading() | {"workers": workers},
            global_batch=global_batch,
            seed=seed,
            lanes=self.lanes,
            block_mib=self.block_mib,
            crop_scale=self.crop_scale,
            flip=self.flip,
            features=self.features,
            **sample,
        )


class DeviceLoader:
    """Iterates over a loader's batches on `device`, epoch after epoch, as the loader itself does.

    `for batch in device_loader` runs to the end of the current epoch. `state_dict` refers to the batches that the
    caller was given: the batch that is being copied does not count.
    """

    def __init__(self, loader: Loader, device: torch.device | str) -> None:
        self._loader = loader
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._state = loader.state_dict()
        self.mark: Callable[[str], None] = lambda _: None  # called as waiting for data or copying it begins

    def __len__(self) -> int:
        """Return the batches per epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        if self._loader.state_dict() != self._state:
            self._loader.load_state_dict(self._state)  # a loop was left while a batch was being copied: repeat it
        batches = iter(self._loader)
        ready = self._start(next(batches, None))
        while ready is not None:
            batch, state = ready
            self.mark("copy")
            self._finish(batch)
            self.mark("data")
            following = next(batches, None)
            self.mark("copy")
            ready = self._start(following)
            self._state = state
            yield batch

    def endless(self) -> Iterator[Batch]:
        """Yield batches epoch after epoch, without end."""
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
        """Return the counts since the last call: `wait_seconds` for data, samples, failures by reason."""
        return self._loader.metrics()

    def close(self) -> None:
        """Stop the loader's workers."""
        self._loader.close()

    def _start(self, batch: Batch | None) -> tuple[Batch, dict[str, int]] | None:
        """Start copying a batch; return it and the cursor after it."""
        if batch is None:
            return None
        state = self._loader.state_dict()
        if self._stream is None:
            return batch.to(self._device), state
        with torch.cuda.stream(self._stream):
            return batch.to(self._device, non_blocking=True), state

    def _finish(self, batch: Batch) -> None:
        """Make the computation wait for the copy, and keep the copy's memory until the computation has used it."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in batch.tensors().values():
            tensor.record_stream(current)


class StepLoaders:
    """Endless batches by step type. Where a step type has several loaders, their batches are concatenated."""

    def __init__(self, loaders: Mapping[str, Mapping[str, DeviceLoader]]) -> None:
        """`loaders` is step type → name → loader; cursors are stored under these names."""
        self._loaders = {name: loader for named in loaders.values() for name, loader in named.items()}
        self._names = {step_type: list(named) for step_type, named in loaders.items()}
        self._batches: dict[str, Iterator[Batch]] = {}

    def next(self, step_type: str) -> Batch:
        """Return this rank's part of the next global batch of a step type."""
        for name in self._names[step_type]:
            if name not in self._batches:
                self._batches[name] = self._loaders[name].endless()
        return concatenate([next(self._batches[name]) for name in self._names[step_type]])

    def watch(self, mark: Callable[[str], None]) -> None:
        """Have `mark` called with `data` or `copy` as these phases begin while a batch is fetched."""
        for loader in self._loaders.values():
            loader.mark = mark

    def steps_per_epoch(self, step_type: str) -> int:
        """Return the global batches in an epoch of the step type's first loader."""
        return len(self._loaders[self._names[step_type][0]])

    def cursors(self) -> dict[str, dict[str, int]]:
        """Return each loader's cursor, by name."""
        return {name: loader.state_dict() for name, loader in self._loaders.items()}

    def load_cursors(self, cursors: Mapping[str, Mapping[str, int]]) -> None:
        """Go to the cursors of a checkpoint; raise `shards.loader.LoaderError` where they are of other data."""
        self._batches.clear()
        for name, loader in self._loaders.items():
            loader.load_state_dict(cursors[name])

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return, by step type, the summed counts of its loaders since the last call: samples, wait_seconds, …"""
        counts: dict[str, dict[str, float]] = {}
        for step_type, names in self._names.items():
            total = counts.setdefault(step_type, {})
            for name in names:
                for key, value in self._loaders[name].metrics().items():
                    total[key] = total.get(key, 0.0) + value
        return counts

    def close(self) -> None:
        """Stop all workers."""
        self._batches.clear()
        for loader in self._loaders.values():
            loader.close()


def open_loader(
    data: DataConfig,
    context: DistributedContext,
    set_name: str,
    *,
    global_batch: int,
    workers: int,
    seed: int,
    hint: str,
    **sample: Any,
) -> DeviceLoader:
    """Open the training loader of a set; `sample` are the fields of `LoaderConfig` that define a sample.

    Raises `DataError`, ending with `hint`, where the set has fewer samples than a global batch.
    """
    try:
        settings = data.loader(global_batch=global_batch, workers=workers, seed=seed, **sample)
    except ValueError as error:
        raise DataError(f"the loader of {set_name}: {error}") from error
    loader = Loader(data.root, set_name, data.split, settings, rank=context.rank, world=context.world)
    if not len(loader):
        raise DataError(
            f"{data.root}: {set_name}/{data.split} has fewer samples than one global batch of {global_batch}; {hint}"
        )
    return DeviceLoader(loader, context.device)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Return batches of the same sample shape as one; epoch and number are the first one's."""
    first, *others = batches
    if not others:
        return first
    tensors = {name: torch.cat([batch.tensors()[name] for batch in batches]) for name in first.tensors()}
    joined: dict[str, Any] = {name: [item for batch in batches for item in getattr(batch, name)] for name in _LISTS}
    return replace(first.with_tensors(tensors), **joined)
