"""Batches of uint8 frames, texts and tags from shards: worker processes, one order for any number of ranks, a cursor.

Needs torch. Shapes in names: B samples of this rank, T frames, K windows or narrations, H and W pixels, C red, green,
blue, V verb classes, O noun classes. With scene-aware negatives B is twice the rank's share: the clips, then partners.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from shards.cache import Prefetcher
from shards.config import LoaderConfig
from shards.order import EvalOrder, OrderError, TrainOrder, default_lanes
from shards.reading import DecodedSample, Failure, SampleReader, tags
from shards.schema import set_spec
from shards.sources import Source, open_source
from shards.worker_signals import outlive_sigterm

VERBS, NOUNS = 118, 582  # EgoClip's classes
_WORKER_FAULTS = ("DataLoader worker (pid", "DataLoader timed out")  # how torch says that a worker died or hangs
_CACHE_COUNTS = ("cache_hits", "cache_fills")
_CURSOR = ("epoch", "batch", "identity")


class LoaderError(RuntimeError):
    """A loader that cannot go on: a worker that died, a run of failures, a cursor of other data."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This rank's part of a global batch."""

    epoch: int
    number: int  # of the global batch, from 0
    keys: list[str]
    frames: Tensor  # clips: frames_BTHWC; long sets (summaries …): frames_BKTHWC; uint8 RGB
    texts: list[str]
    narrations: list[list[str]]  # summaries: K texts each; other sets: none
    verbs_BV: Tensor  # float32, 0 or 1
    nouns_BO: Tensor  # float32, 0 or 1
    is_scene_B: Tensor  # bool: the partner is of its clip's segment; all False without scene-aware negatives
    failures: list[tuple[Failure, ...]]  # of each sample, what was tried before it
    counts: dict[str, int] = field(default_factory=dict)  # what making it did with the cache: cache_hits, cache_fills

    @property
    def video(self) -> Tensor:
        """The frames with the colours before height and width, as the model takes them: (B, T, C, H, W), or with K."""
        return self.frames.movedim(-1, -3)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, from which a GPU copies without waiting."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: value for name, value in self.__dict__.items() if isinstance(value, Tensor)}

    def _map(self, function: Any) -> Batch:
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})


class Loader:
    """Iterates over the batches of one rank, epoch after epoch, from where its cursor stands.

    `for batch in loader` runs to the end of the current epoch; the next such loop is the next epoch. `state_dict` is
    where the caller stands: after the last batch that it was given, whatever workers have made ahead.
    """

    def __init__(
        self,
        root: str | Path | Source,
        set_name: str,
        split: str,
        config: LoaderConfig,
        *,
        is_training: bool = True,
        rank: int = 0,
        world: int = 1,
        keys: Collection[str] | None = None,
    ) -> None:
        """Open a split of the dataset at `root`, a path or URL; raise `ShardError`, `SourceError` or `OrderError`.

        Evaluation may ask for a few samples only, by their `keys`; they come in the order of the shards.
        """
        if keys is not None and is_training:
            raise OrderError("keys: training takes all samples of a split")
        source = open_source(root, config.source) if isinstance(root, (str, Path)) else root
        entry = source.dataset.split(set_name, split)
        reader = SampleReader(source, entry, config, is_training=is_training)
        self.order = _make_order(reader, entry, config) if is_training else _eval_order(reader, entry, config, keys)
        self._made = _Batches(reader, self.order, config, rank=rank, world=world, set_name=set_name)
        self._config, self._source, self._split = config, source, entry
        self._identity = _identity(entry.fingerprint, set_name, split, config, self.order)
        self._epoch = self._batch = 0
        self._iterator: Iterator[Batch] | None = None
        self._prefetcher: Prefetcher | None = None
        self._failed_run: deque[Failure] = deque(maxlen=config.max_consecutive_failures + 1)
        self._counts: Counter[str] = Counter()
        self._waited = 0.0

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in an epoch: the same on every rank."""
        return self.order.batches

    def __len__(self) -> int:
        return self.order.batches

    def state_dict(self) -> dict[str, int]:
        """Return the cursor: the epoch, the next batch in it, and what the order is made from as a number."""
        return {"epoch": self._epoch, "batch": self._batch, "identity": self._identity}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a cursor, in constant time; raise `LoaderError` where it was taken of another order.

        The world size and the number of workers may differ from those it was taken with.
        """
        if sorted(state) != sorted(_CURSOR) or any(type(value) is not int for value in state.values()):
            raise LoaderError(f"{dict(state)}: a cursor has the whole numbers {', '.join(_CURSOR)}")
        if state["identity"] != self._identity:
            raise LoaderError(
                "the cursor was taken of another order: set, split, fingerprint, seed, global_batch, lanes and "
                "block_mib must be the same"
            )
        if state["epoch"] < 0 or state["batch"] < 0:
            raise LoaderError(f"{dict(state)}: a cursor counts from 0")
        self.close()
        self._epoch, self._batch = state["epoch"], state["batch"]

    def metrics(self) -> dict[str, float]:
        """Return what happened since the last call: samples, seconds waited, failures by reason, what the cache did."""
        found = {"samples": float(self._counts.pop("samples", 0)), "wait_seconds": self._waited}
        for name, count in sorted(self._counts.items()):
            found[name if name in _CACHE_COUNTS else f"failed/{name}"] = float(count)
        self._counts.clear()
        self._waited = 0.0
        return found

    def __iter__(self) -> Iterator[Batch]:
        if self._batch >= self.order.batches:
            self._batch, self._epoch = 0, self._epoch + 1
            if isinstance(self.order, EvalOrder):
                self.close()
        while self._batch < self.order.batches:
            self._prefetch()
            began = time.perf_counter()
            batch = self._next()
            self._waited += time.perf_counter() - began
            self._watch(batch)
            self._batch = batch.number + 1
            yield batch

    def close(self) -> None:
        """End the workers and the prefetching; iterating starts them again."""
        if self._prefetcher is not None:
            self._prefetcher.stop()
            self._prefetcher = None
        shutdown = getattr(self._iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        self._iterator = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            self.close()
            if str(error).startswith(_WORKER_FAULTS):
                raise LoaderError(f"a worker died or got stuck: {error}") from error
            raise
        assert (batch.epoch, batch.number) == (self._epoch, self._batch)
        return batch

    def _start(self) -> Iterator[Batch]:
        config = self._config
        epochs = None if isinstance(self.order, TrainOrder) else self._epoch + 1
        numbers = _Numbers(self._epoch, self._batch, self.order.batches, stop_epoch=epochs)
        workers: dict[str, Any] = {}
        if config.workers:
            # Forked: a worker that imports torch anew would delay the first batch by seconds.
            workers = {
                "num_workers": config.workers,
                "prefetch_factor": config.prefetch,
                "timeout": config.worker_timeout_seconds,
                "multiprocessing_context": "fork",
                "worker_init_fn": outlive_sigterm,
            }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # how many is the user's choice
            return iter(
                DataLoader(
                    self._made,
                    sampler=numbers,
                    batch_size=None,
                    pin_memory=torch.cuda.is_available(),
                    # Its own: a number drawn from the process's generator would change the dropout that follows.
                    generator=torch.Generator(),
                    **workers,
                )
            )

    def _prefetch(self) -> None:
        """Tell the prefetcher which shards come next, once every few batches."""
        ahead = self._config.source.prefetch_batches
        if not ahead or not hasattr(self._source, "cache"):
            return
        if self._iterator is None:
            self._iterator = self._start()  # forks before the thread is there
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(lambda shard: self._source.prefetch(self._split.shards[shard]))
        elif self._batch % max(1, ahead // 4):
            return
        self._prefetcher.want(self._made.upcoming(self._epoch, self._batch, ahead))

    def _watch(self, batch: Batch) -> None:
        """Count failures by reason, and stop where too many came one after another."""
        self._counts["samples"] += len(batch.keys)
        self._counts.update(batch.counts)
        for tried in batch.failures:
            if not tried:
                self._failed_run.clear()
            for failure in tried:
                self._counts[failure.reason] += 1
            if tried:
                self._failed_run.append(tried[0])
            if len(self._failed_run) > self._config.max_consecutive_failures:
                named = "; ".join(f"{failure.key}: {failure.detail}" for failure in self._failed_run)
                self.close()
                raise LoaderError(
                    f"more than max_consecutive_failures = {self._config.max_consecutive_failures} "
                    f"samples failed in a row: {named}"
                )


class _Batches(Dataset[Batch]):
    """Makes the batch of any (epoch, number): what workers are given."""

    def __init__(
        self,
        reader: SampleReader,
        order: TrainOrder | EvalOrder,
        config: LoaderConfig,
        *,
        rank: int,
        world: int,
        set_name: str,
    ) -> None:
        self._reader, self._order, self._config = reader, order, config
        self._rank, self._world, self._set_name = rank, world, set_name
        self._counted: dict[str, int] = {}
        self._lanes = order.rank_lanes(rank, world) if isinstance(order, TrainOrder) else range(0)

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, number = place
        samples = self._samples(epoch, number).tolist()
        items = [self._reader.item(epoch, shard, row) for shard, row in samples]
        is_scene = [False] * len(items)
        if self._config.scene_negatives and isinstance(self._order, TrainOrder):
            partners = [self._reader.partner(epoch, shard, row) for shard, row in samples]
            items += [
                self._reader.item(epoch, shard, row) for (shard, _), (row, _) in zip(samples, partners, strict=True)
            ]
            is_scene = [is_same for _, is_same in partners] * 2
        return self._collate(epoch, number, items, is_scene)

    def upcoming(self, epoch: int, number: int, ahead: int) -> list[int]:
        """Return the shards that this rank's next batches need, by first use."""
        shards: dict[int, None] = {}
        for _ in range(ahead):
            if number >= self._order.batches:
                if isinstance(self._order, EvalOrder) or not self._order.batches:
                    break
                epoch, number = epoch + 1, 0
            shards |= dict.fromkeys(self._samples(epoch, number)[:, 0].tolist())
            number += 1
        return list(shards)

    def _samples(self, epoch: int, number: int) -> np.ndarray:
        if isinstance(self._order, EvalOrder):
            return self._order.batch(number, self._rank, self._world)
        return self._order.batch(epoch, number, self._lanes)

    def _collate(self, epoch: int, number: int, items: list[DecodedSample], is_scene: list[bool]) -> Batch:
        config = self._config
        has_windows = set_spec(self._set_name).is_long and config.clip_seconds is None
        windows = (config.windows,) if has_windows else ()
        frames = _empty_frames((len(items), *windows, config.frames, config.size, config.size, 3))
        pixels = frames.numpy()
        verbs_BV, nouns_BO = torch.zeros(len(items), VERBS), torch.zeros(len(items), NOUNS)
        for index, item in enumerate(items):
            pixels[index] = item.frames
            verbs, nouns = tags(item.record)
            verbs_BV[index, verbs] = 1
            nouns_BO[index, nouns] = 1
        return Batch(
            epoch=epoch,
            number=number,
            keys=[item.key for item in items],
            frames=frames,
            texts=[item.record.text for item in items],
            narrations=[list(item.narrations) for item in items],
            verbs_BV=verbs_BV,
            nouns_BO=nouns_BO,
            is_scene_B=torch.tensor(is_scene, dtype=torch.bool),
            failures=[item.failures for item in items],
            counts=self._cache_counts(),
        )

    def _cache_counts(self) -> dict[str, int]:
        """Return what this process did with the cache since it was last asked; nothing where shards are local."""
        cache = self._reader.cache
        if cache is None:
            return {}
        now = {"cache_hits": cache.counts.hits, "cache_fills": cache.counts.fills}
        since = {name: count - self._counted.get(name, 0) for name, count in now.items()}
        self._counted = now
        return since


class _Numbers(Sampler[tuple[int, int]]):
    """(epoch, batch) from a cursor on, without end in training."""

    def __init__(self, epoch: int, batch: int, batches: int, *, stop_epoch: int | None) -> None:
        self._epoch, self._batch, self._batches, self._stop = epoch, batch, batches, stop_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, batch = self._epoch, self._batch
        while self._batches and (self._stop is None or epoch < self._stop):
            for number in range(batch, self._batches):
                yield epoch, number
            epoch, batch = epoch + 1, 0


def _empty_frames(shape: tuple[int, ...]) -> Tensor:
    """Return memory for frames; in a worker that which the training process shares, so that nothing is copied."""
    if get_worker_info() is None or 0 in shape:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))  # as torch's own collate does
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _make_order(reader: SampleReader, split: Any, config: LoaderConfig) -> TrainOrder:
    return TrainOrder(
        fingerprint=split.fingerprint,
        seed=config.seed,
        samples=tuple(shard.samples for shard in split.shards),
        bytes=tuple(shard.bytes for shard in split.shards),
        lanes=config.lanes or default_lanes(config.global_batch),
        global_batch=config.global_batch,
        block_bytes=config.block_mib * 2**20,
        denied=reader.denied_rows(),
    )


def _eval_order(reader: SampleReader, split: Any, config: LoaderConfig, keys: Collection[str] | None) -> EvalOrder:
    samples = tuple(shard.samples for shard in split.shards)
    left_out = reader.denied_rows() if keys is None else reader.rows_except(keys)
    return EvalOrder(samples=samples, global_batch=config.global_batch, denied=left_out)


def _identity(fingerprint: str, set_name: str, split: str, config: LoaderConfig, order: TrainOrder | EvalOrder) -> int:
    """Return a number that is the same for two loaders of one order; a longer denylist may shift it, not forbid it."""
    lanes = order.lanes if isinstance(order, TrainOrder) else 0
    parts = (fingerprint, set_name, split, config.seed, config.global_batch, lanes, config.block_mib)
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")
