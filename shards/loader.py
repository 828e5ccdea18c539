"""Loads batches of uint8 frames, texts and tags from shards, in an order that is the same for any number of ranks.

Shapes in names: B samples of this rank, T frames, K windows or narrations, H and W pixels, C red, green, blue, V verb
classes, O noun classes. With scene-aware negatives B is twice the rank's share: the clips, then their partners.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from shards.cache import Prefetcher
from shards.config import LoaderConfig
from shards.dataset import Split
from shards.features.reading import FeatureReader
from shards.order import EvalOrder, OrderError, ShardOrder, TrainOrder, default_lanes
from shards.reading import DecodedSample, Failure, SampleReader, multi_hot, tags
from shards.schema import NOUNS as NOUNS
from shards.schema import VERBS as VERBS
from shards.schema import set_spec
from shards.sources import Source, open_source
from shards.worker_signals import outlive_sigterm, sigterm_held

_WORKER_FAULTS = ("DataLoader worker (pid", "DataLoader timed out")  # torch's messages for dead and stuck workers
_CACHE_COUNTS = ("cache_hits", "cache_fills")
_STATE = ("epoch", "batch", "identity")


class LoaderError(RuntimeError):
    """A dead or stuck worker, too many consecutive undecodable samples, or resume state that does not fit."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This rank's part of a global batch."""

    epoch: int
    number: int  # of the global batch, from 0
    keys: list[str]
    frames: Tensor  # clips: frames_BTHWC; long sets such as summaries: frames_BKTHWC; uint8 RGB
    texts: list[str]
    narrations: list[list[str]]  # summaries: K texts each; other sets: empty
    verbs_BV: Tensor  # float32 multi-hot
    nouns_BO: Tensor  # float32 multi-hot
    is_scene_B: Tensor  # bool: the partner is from its clip's segment; all False without scene-aware negatives
    failures: list[tuple[Failure, ...]]  # per sample: the undecodable samples that it substitutes
    # Of a loader that reads features: array → (B, R, …), R rows of each sample; the frames are then empty.
    features: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # cache_hits and cache_fills since the worker's last batch

    @property
    def video(self) -> Tensor:
        """A view of the frames in the model's layout: (B, T, C, H, W), for long sets (B, K, T, C, H, W)."""
        return self.frames.movedim(-1, -3)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on a device; see `torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by field name, features as `features.<array>`."""
        own = {name: value for name, value in self.__dict__.items() if isinstance(value, Tensor)}
        return own | {f"features.{name}": value for name, value in self.features.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Batch:
        """Return the batch with other tensors, by the names of `tensors`."""
        own: dict[str, Any] = {name: value for name, value in tensors.items() if "." not in name}
        features = {name.partition(".")[2]: value for name, value in tensors.items() if "." in name}
        return replace(self, **own, features=features)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return self.with_tensors({name: function(tensor) for name, tensor in self.tensors().items()})


class Loader:
    """Iterates over the batches of one rank, starting at the current position.

    `for batch in loader` runs to the end of the current epoch, and the next such loop runs through the next epoch.
    `state_dict` is the position after the last batch that the caller received, however far ahead the workers are.

        loader = Loader("ROOT", "clips", "train", LoaderConfig(global_batch=512), rank=0, world=8)
        for batch in loader:
            batch.video  # (64, 4, 3, 224, 224) uint8
            state = loader.state_dict()
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
        by_shard: bool = False,
    ) -> None:
        """Open a split of the dataset at `root`, a path, URL or opened source.

        Training shuffles and augments; evaluation (`is_training=False`) yields each sample once, and `keys` restricts
        it to some samples, which still come in the order of the shards; `by_shard` ends batches with their shards.
        Raises `ShardError` or `SourceError` for a dataset that cannot be read, and `OrderError` if the batch, the lanes
        and the number of ranks do not fit.
        """
        if keys is not None and is_training:
            raise OrderError("keys: training always uses all samples of a split")
        source = open_source(root, config.source) if isinstance(root, (str, Path)) else root
        entry = source.dataset.split(set_name, split)
        reader = SampleReader(source, entry, config, is_training=is_training)
        self.order = _train_order(reader, entry, config) if is_training else _eval_order(reader, entry, config, keys)
        if by_shard and isinstance(self.order, EvalOrder):
            self.order = ShardOrder(**vars(self.order))
        features = None if config.features is None else FeatureReader.open(source, entry, config)
        self._batches = _Batches(reader, self.order, config, features, rank=rank, world=world, set_name=set_name)
        self._config, self._source, self._split = config, source, entry
        self._identity = _identity(entry.fingerprint, set_name, split, config, self.order)
        self._epoch = self._batch = 0
        self._iterator: Iterator[Batch] | None = None
        self._prefetcher: Prefetcher | None = None
        limit = config.max_consecutive_failures
        self._recent_failures: deque[Failure] = deque(maxlen=0 if limit is None else limit + 1)
        self._counts: Counter[str] = Counter()
        self._waited = 0.0

    def __len__(self) -> int:
        """Return the number of global batches per epoch, the same on every rank."""
        return self.order.batches

    def state_dict(self) -> dict[str, int]:
        """Return the resume state: the epoch, the number of its next batch, and a number that identifies the order."""
        return {"epoch": self._epoch, "batch": self._batch, "identity": self._identity}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume at a saved position, in constant time; raise `LoaderError` if it belongs to another order.

        The numbers of ranks and workers may differ from those when it was saved.
        """
        if sorted(state) != sorted(_STATE) or any(type(value) is not int for value in state.values()):
            raise LoaderError(f"{dict(state)}: resume state has the integers {', '.join(_STATE)}")
        if state["identity"] != self._identity:
            raise LoaderError(
                "the resume state is from a different dataset, seed or batch size: set, split, fingerprint, seed, "
                "global_batch, lanes and block_mib must be equal"
            )
        if state["epoch"] < 0 or state["batch"] < 0:
            raise LoaderError(f"{dict(state)}: epoch and batch must not be negative")
        self.close()
        self._epoch, self._batch = state["epoch"], state["batch"]

    def metrics(self) -> dict[str, float]:
        """Return counts since the last call.

        `samples`; `wait_seconds`, the time spent waiting for batches; `failed/<reason>` for each kind of failure; and
        `cache_hits` and `cache_fills` for remote datasets.
        """
        values = {"samples": float(self._counts.pop("samples", 0)), "wait_seconds": self._waited}
        for name, count in sorted(self._counts.items()):
            values[name if name in _CACHE_COUNTS else f"failed/{name}"] = float(count)
        self._counts.clear()
        self._waited = 0.0
        return values

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
        """Stop workers and prefetching; iterating starts them again."""
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
                raise LoaderError(f"a worker died or hangs: {error}") from error
            raise
        assert (batch.epoch, batch.number) == (self._epoch, self._batch)
        return batch

    def _start(self) -> Iterator[Batch]:
        config = self._config
        epochs = None if isinstance(self.order, TrainOrder) else self._epoch + 1
        numbers = _BatchNumbers(self._epoch, self._batch, self.order.batches, stop_epoch=epochs)
        workers: dict[str, Any] = {}
        if config.workers:
            # Forked, since importing torch again in each worker would delay the first batch by seconds.
            workers = {
                "num_workers": config.workers,
                "prefetch_factor": config.prefetch,
                "timeout": config.worker_timeout_seconds,
                "multiprocessing_context": "fork",
                "worker_init_fn": partial(outlive_sigterm, parent=os.getpid()),
            }
        with warnings.catch_warnings(), sigterm_held():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # the user chose their number
            return iter(
                DataLoader(
                    self._batches,
                    sampler=numbers,
                    batch_size=None,
                    pin_memory=torch.cuda.is_available(),
                    # Its own, since drawing from the global generator would change the dropout that follows.
                    generator=torch.Generator(),
                    **workers,
                )
            )

    def _prefetch(self) -> None:
        """Pass the shards of the coming batches to the prefetcher, once every few batches."""
        ahead = self._config.source.prefetch_batches
        if not ahead or not hasattr(self._source, "cache"):
            return
        if self._iterator is None:
            self._iterator = self._start()  # fork the workers before starting a thread
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(lambda shard: self._source.prefetch(self._split.shards[shard]))
        elif self._batch % max(1, ahead // 4):
            return
        self._prefetcher.want(self._batches.upcoming(self._epoch, self._batch, ahead))

    def _watch(self, batch: Batch) -> None:
        """Count failures by reason; raise `LoaderError` if too many samples failed one after another."""
        self._counts["samples"] += len(batch.keys)
        self._counts.update(batch.counts)
        for tried in batch.failures:
            if not tried:
                self._recent_failures.clear()
            for failure in tried:
                self._counts[failure.reason] += 1
            if tried:
                self._recent_failures.append(tried[0])
            limit = self._config.max_consecutive_failures
            if limit is not None and len(self._recent_failures) > limit:
                named = "; ".join(f"{failure.key}: {failure.detail}" for failure in self._recent_failures)
                self.close()
                raise LoaderError(f"more than max_consecutive_failures = {limit} samples failed in a row: {named}")


class _Batches(Dataset[Batch]):
    """Maps (epoch, batch number) to the batch; the dataset that torch's workers read."""

    def __init__(
        self,
        reader: SampleReader,
        order: TrainOrder | EvalOrder,
        config: LoaderConfig,
        features: FeatureReader | None,
        *,
        rank: int,
        world: int,
        set_name: str,
    ) -> None:
        self._reader, self._order, self._config, self._features = reader, order, config, features
        self._rank, self._world, self._set_name = rank, world, set_name
        self._counted: dict[str, int] = {}
        self._lanes = order.rank_lanes(rank, world) if isinstance(order, TrainOrder) else range(0)

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        epoch, number = position
        if self._features is not None:
            return self._of_features(self._features, epoch, number)
        rows = self._samples(epoch, number).tolist()
        samples = [self._reader.read(epoch, shard, row) for shard, row in rows]
        is_scene = [False] * len(samples)
        if self._config.scene_negatives and isinstance(self._order, TrainOrder):
            partners = [self._reader.partner(epoch, shard, row) for shard, row in rows]
            samples += [
                self._reader.read(epoch, shard, row) for (shard, _), (row, _) in zip(rows, partners, strict=True)
            ]
            is_scene = [is_same for _, is_same in partners] * 2
        return self._collate(epoch, number, samples, is_scene)

    def _of_features(self, reader: FeatureReader, epoch: int, number: int) -> Batch:
        """Return a batch of features, of the samples that the batch of video of this number has."""
        samples_B2 = self._samples(epoch, number)
        is_scene_B = np.zeros(len(samples_B2), bool)
        if self._config.scene_negatives and isinstance(self._order, TrainOrder):
            partners = [self._reader.partner(epoch, shard, row) for shard, row in samples_B2.tolist()]
            partners_B2 = np.stack([samples_B2[:, 0], [row for row, _ in partners]], axis=1)
            samples_B2 = np.concatenate([samples_B2, partners_B2])
            is_scene_B = np.tile([is_same for _, is_same in partners], 2)
        found = reader.read(epoch, samples_B2, is_training=isinstance(self._order, TrainOrder))
        verbs_BV, nouns_BO = map(torch.from_numpy, multi_hot(found.tags))
        return Batch(
            epoch=epoch,
            number=number,
            keys=found.keys,
            frames=torch.empty(len(found.keys), 0, dtype=torch.uint8),
            texts=found.texts,
            narrations=[[]] * len(found.keys),
            verbs_BV=verbs_BV,
            nouns_BO=nouns_BO,
            is_scene_B=torch.from_numpy(is_scene_B),
            failures=[() if one is None else (one,) for one in found.unavailable],
            features={name: torch.from_numpy(values) for name, values in found.arrays.items()},
        )

    def upcoming(self, epoch: int, number: int, ahead: int) -> list[int]:
        """Return the shards that this rank's next `ahead` batches need, in order of first use."""
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

    def _collate(self, epoch: int, number: int, samples: list[DecodedSample], is_scene: list[bool]) -> Batch:
        config = self._config
        has_windows = set_spec(self._set_name).is_long and config.clip_seconds is None
        windows = (config.windows,) if has_windows else ()
        frames = _empty_frames((len(samples), *windows, config.frames, config.size, config.size, 3))
        pixels = frames.numpy()
        verbs_BV, nouns_BO = map(torch.from_numpy, multi_hot([tags(sample.record) for sample in samples]))
        for index, sample in enumerate(samples):
            pixels[index] = sample.frames
        return Batch(
            epoch=epoch,
            number=number,
            keys=[sample.key for sample in samples],
            frames=frames,
            texts=[sample.record.text for sample in samples],
            narrations=[list(sample.narrations) for sample in samples],
            verbs_BV=verbs_BV,
            nouns_BO=nouns_BO,
            is_scene_B=torch.tensor(is_scene, dtype=torch.bool),
            failures=[sample.failures for sample in samples],
            counts=self._cache_counts(),
        )

    def _cache_counts(self) -> dict[str, int]:
        """Return this process's cache events since the last call; empty for local shards."""
        cache = self._reader.cache
        if cache is None:
            return {}
        now = {"cache_hits": cache.counts.hits, "cache_fills": cache.counts.fills}
        since = {name: count - self._counted.get(name, 0) for name, count in now.items()}
        self._counted = now
        return since


class _BatchNumbers(Sampler[tuple[int, int]]):
    """Yields (epoch, batch number) from a position on, endlessly unless `stop_epoch` is given."""

    def __init__(self, epoch: int, batch: int, batches: int, *, stop_epoch: int | None) -> None:
        self._epoch, self._batch, self._batches, self._stop = epoch, batch, batches, stop_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, batch = self._epoch, self._batch
        while self._batches and (self._stop is None or epoch < self._stop):
            for number in range(batch, self._batches):
                yield epoch, number
            epoch, batch = epoch + 1, 0


def _empty_frames(shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised tensor for frames, in a worker in shared memory, so that sending it copies nothing."""
    if get_worker_info() is None or 0 in shape:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as torch's own collate does
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _train_order(reader: SampleReader, split: Split, config: LoaderConfig) -> TrainOrder:
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


def _eval_order(reader: SampleReader, split: Split, config: LoaderConfig, keys: Collection[str] | None) -> EvalOrder:
    samples = tuple(shard.samples for shard in split.shards)
    excluded = reader.denied_rows() if keys is None else reader.rows_except(keys)
    return EvalOrder(samples=samples, global_batch=config.global_batch, denied=excluded)


def _identity(fingerprint: str, set_name: str, split: str, config: LoaderConfig, order: TrainOrder | EvalOrder) -> int:
    """Return a number that identifies the order; the denylist is not part of it, so a run can resume after it grows."""
    lanes = order.lanes if isinstance(order, TrainOrder) else 0
    parts = (fingerprint, set_name, split, config.seed, config.global_batch, lanes, config.block_mib)
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")
