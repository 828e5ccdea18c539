"""The batches of each step type: which loaders they come from, and where each of these stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from hiervl_train.config import PretrainConfig
from hiervl_train.data import DataConfig, DeviceLoader
from hiervl_train.distributed import DistributedContext
from shards.loader import Batch, Loader


class DataError(ValueError):
    """A dataset that cannot be trained on as configured; the message says what is too small or missing."""

    exit_code: ClassVar[int] = 2


class StepLoaders:
    """Endless batches by step type. A step_type with several loaders gets their batches joined to one."""

    def __init__(self, loaders: Mapping[str, Mapping[str, DeviceLoader]]) -> None:
        """`loaders` is step type → name of a loader → the loader; names are those of the cursors."""
        self._loaders = {name: loader for named in loaders.values() for name, loader in named.items()}
        self._step_types = {step_type: list(named) for step_type, named in loaders.items()}
        self._batches: dict[str, Iterator[Batch]] = {}

    def next(self, step_type: str) -> Batch:
        """Return this rank's part of the next global batch of a step_type."""
        for name in self._step_types[step_type]:
            if name not in self._batches:
                self._batches[name] = self._loaders[name].endless()
        return join([next(self._batches[name]) for name in self._step_types[step_type]])

    def steps_per_epoch(self, step_type: str) -> int:
        """Return the global batches in an epoch of the step_type's first loader."""
        return len(self._loaders[self._step_types[step_type][0]])

    def cursors(self) -> dict[str, dict[str, int]]:
        """Return where each loader stands, by name."""
        return {name: loader.state_dict() for name, loader in self._loaders.items()}

    def load_cursors(self, cursors: Mapping[str, Mapping[str, int]]) -> None:
        """Go on where a checkpoint stood; raise `shards.loader.LoaderError` where it was of other data."""
        self._batches.clear()
        for name, loader in self._loaders.items():
            loader.load_state_dict(cursors[name])

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return by step_type what its loaders did since the last call, added up: samples, wait_seconds, failed/…"""
        found: dict[str, dict[str, float]] = {}
        for step_type, names in self._step_types.items():
            total = found.setdefault(step_type, {})
            for name in names:
                for key, value in self._loaders[name].metrics().items():
                    total[key] = total.get(key, 0.0) + value
        return found

    def close(self) -> None:
        """End all workers."""
        self._batches.clear()
        for loader in self._loaders.values():
            loader.close()


def open_loader(
    data: DataConfig,
    ranks: DistributedContext,
    set_name: str,
    *,
    global_batch: int,
    workers: int,
    seed: int,
    hint: str,
    **sample: Any,
) -> DeviceLoader:
    """Open the training loader of a set; raise `DataError` where it cannot fill a batch, with a `hint` at what to do.

    `sample` says what a sample holds: fields of `LoaderConfig`.
    """
    try:
        settings = data.loader(global_batch=global_batch, workers=workers, seed=seed, **sample)
    except ValueError as error:
        raise DataError(f"the loader of {set_name}: {error}") from error
    loader = Loader(data.root, set_name, data.split, settings, rank=ranks.rank, world=ranks.world)
    if not len(loader):
        raise DataError(
            f"{data.root}: {set_name}/{data.split} has fewer samples than one global batch of {global_batch}; {hint}"
        )
    return DeviceLoader(loader, ranks.device)


def pretraining_loaders(config: PretrainConfig, ranks: DistributedContext) -> StepLoaders:
    """Open the loaders that a configuration's kinds of steps need."""
    schedule, sample, data = config.schedule, config.sample, config.data
    loaders: dict[str, dict[str, DeviceLoader]] = {}

    def open_level(set_name: str, global_batch: int, workers: int, **fields: object) -> DeviceLoader:
        return open_loader(
            data,
            ranks,
            set_name,
            global_batch=global_batch,
            workers=workers,
            seed=config.run.seed,
            hint="lower schedule.clips or schedule.summaries, or build more shards",
            size=config.model.image_hw[0],
            frames=sample.frames,
            **fields,
        )

    if config.objective.child is not None:
        clips = schedule.clips - sample.summaries_as_clips
        loaders["child"] = {"clips": open_level("clips", clips, data.workers, scene_negatives=sample.scene_negatives)}
        if sample.summaries_as_clips:
            loaders["child"]["summaries_as_clips"] = open_level(
                "summaries",
                sample.summaries_as_clips,
                data.summary_workers,
                clip_seconds=sample.summary_clip_seconds,
            )
    if config.objective.parent is not None:
        loaders["parent"] = {
            "summaries": open_level(
                "summaries",
                schedule.summaries,
                data.summary_workers,
                windows=sample.windows,
                narrations=sample.narrations,
                window_seconds=sample.window_seconds,
            )
        }
    return StepLoaders(loaders)


def join(batches: Sequence[Batch]) -> Batch:
    """Return batches of one shape as one, one after another; epoch and number are the first's."""
    first, *others = batches
    if not others:
        return first
    joined: dict[str, Any] = {name: torch.cat([batch.tensors()[name] for batch in batches]) for name in first.tensors()}
    joined |= {name: [item for batch in batches for item in getattr(batch, name)] for name in _LISTS}
    return replace(first, **joined)


_LISTS = ("keys", "texts", "narrations", "failures")
