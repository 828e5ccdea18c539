"""The order of samples, a pure function of the split's fingerprint, the seed and the epoch.

Training. The samples of all shards, in an order of shards that depends only on the fingerprint, are concatenated and
cut into L lanes of equal length (to within one sample), so a lane has a few whole shards and parts of two. In each
epoch a lane's shards are permuted and grouped into blocks of bounded bytes, and the samples are shuffled within each
block. Global batch n takes equally many samples from every lane, and each rank owns whole lanes. So the contents of a
global batch do not depend on the number of ranks or workers, and a rank reads only the shards of its lanes.

Withdrawn samples are removed afterwards, so the order of the others does not change. Lanes that are then longer than
their share pass their last samples on to the ends of shorter lanes: each sample still occurs once, in equal batches.

Evaluation. Samples are ordered by shard and row, without the withdrawn ones. The ranks split each global batch as
evenly as possible, including the last, shorter one, so no sample is dropped or repeated.

Shapes in names: S samples, L lanes. A sample is a pair (shard, row) of integers; shard is its position in the split.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

MAX_LANES = 256  # of `default_lanes`; more ranks than this need an explicit number of lanes


class OrderError(ValueError):
    """Incompatible sizes, such as ranks that do not divide the lanes; the message names both and valid values."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive rows of one shard that belong to one lane."""

    shard: int
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class TrainOrder:
    """The training order of one split, identical on every machine.

    order = TrainOrder(fingerprint=split.fingerprint, seed=0, samples=(5000, 5000), bytes=(2**28, 2**28),
                       lanes=64, global_batch=512, block_bytes=2**30, denied={})
    samples_S2 = order.batch(epoch=0, number=3, lanes=order.rank_lanes(rank=1, world=8))
    """

    fingerprint: str  # of the split
    seed: int
    samples: tuple[int, ...]  # of each shard
    bytes: tuple[int, ...]  # of each shard
    lanes: int
    global_batch: int
    block_bytes: int
    denied: dict[int, np.ndarray]  # shard → rows of withdrawn videos
    # (epoch, lane) → samples of the lane, which every batch needs again
    _cache: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.global_batch < 1 or self.global_batch % self.lanes:
            raise OrderError(f"global_batch = {self.global_batch} is not a multiple of lanes = {self.lanes}")
        if len(self.samples) != len(self.bytes) or self.block_bytes < 1:
            raise OrderError(
                f"{len(self.samples)} shards and {len(self.bytes)} sizes must be equally many, and "
                f"block_bytes = {self.block_bytes} must be positive"
            )

    @property
    def per_lane(self) -> int:
        """Samples of a global batch per lane."""
        return self.global_batch // self.lanes

    @cached_property
    def kept(self) -> int:
        """The number of samples that are not withdrawn."""
        return sum(self.samples) - sum(len(rows) for rows in self.denied.values())

    @property
    def batches(self) -> int:
        """Global batches per epoch; the remaining samples, fewer than one global batch, are dropped."""
        return self.kept // self.global_batch

    @cached_property
    def pieces(self) -> tuple[tuple[Piece, ...], ...]:
        """The shards and parts of shards of each lane, the same in every epoch."""
        total = sum(self.samples)
        cuts = [total * lane // self.lanes for lane in range(self.lanes + 1)]
        lanes: list[list[Piece]] = [[] for _ in range(self.lanes)]
        at, lane = 0, 0
        for shard in _permutation(len(self.samples), self.fingerprint, "deal").tolist():
            first, stop = 0, self.samples[shard]
            while first < stop:
                while cuts[lane + 1] <= at:
                    lane += 1
                taken = min(stop - first, cuts[lane + 1] - at)
                lanes[lane].append(Piece(shard=shard, first=first, stop=first + taken))
                first, at = first + taken, at + taken
        return tuple(tuple(pieces) for pieces in lanes)

    def lane(self, epoch: int, lane: int) -> np.ndarray:
        """Return the samples of a lane in an epoch, (S, 2) int32, in the order in which batches take them."""
        if (epoch, lane) not in self._cache:
            for past in [known for known in self._cache if known[0] < epoch - 1]:
                self._cache.pop(past, None)
            samples_S2 = self._balanced(epoch, lane) if self.denied else self._shuffled(epoch, lane)
            self._cache[epoch, lane] = samples_S2.astype(np.int32)
        return self._cache[epoch, lane]

    def batch(self, epoch: int, number: int, lanes: Sequence[int]) -> np.ndarray:
        """Return the samples of global batch `number` that come from `lanes`, (S, 2), lane after lane.

        Raises `OrderError` if the epoch has no such batch.
        """
        _require_batch(number, self.batches)
        part = slice(number * self.per_lane, (number + 1) * self.per_lane)
        return np.concatenate([self.lane(epoch, lane)[part] for lane in lanes])

    def rank_lanes(self, rank: int, world: int) -> range:
        """Return the lanes that a rank owns; raise `OrderError` if the number of ranks does not divide the lanes."""
        _require_rank(rank, world)
        if self.lanes % world:
            divisors = [str(n) for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise OrderError(f"{world} ranks do not divide {self.lanes} lanes; valid numbers: {', '.join(divisors)}")
        each = self.lanes // world
        return range(rank * each, (rank + 1) * each)

    def _shuffled(self, epoch: int, lane: int) -> np.ndarray:
        """Return the samples of a lane, including withdrawn ones."""
        pieces = self.pieces[lane]
        name = (self.fingerprint, self.seed, epoch, lane)
        order = _permutation(len(pieces), *name, "shards").tolist()
        blocks: list[list[Piece]] = []
        held = 0
        for piece in (pieces[i] for i in order):
            weight = self.bytes[piece.shard] * (piece.stop - piece.first) // max(1, self.samples[piece.shard])
            if not blocks or held + weight > self.block_bytes:
                blocks.append([])
                held = 0
            blocks[-1].append(piece)
            held += weight
        parts = []
        for number, block in enumerate(blocks):
            rows = np.concatenate([np.arange(piece.first, piece.stop) for piece in block])
            shards = np.repeat([piece.shard for piece in block], [piece.stop - piece.first for piece in block])
            shuffled = _permutation(len(rows), *name, "samples", number)
            parts.append(np.stack([shards, rows], axis=1)[shuffled])
        return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)

    def _balanced(self, epoch: int, lane: int) -> np.ndarray:
        """Return a lane without withdrawn samples, filled up at its end from the surplus of longer lanes."""
        counts_L, shares_L = self._kept_and_shares
        share = int(shares_L[lane])
        parts = [without(self._shuffled(epoch, lane), self.denied)[:share]]
        gives_L, needs_L = np.maximum(0, counts_L - shares_L), np.maximum(0, shares_L - counts_L)
        ends_L = np.cumsum(gives_L)
        start = int(needs_L[:lane].sum())
        stop = start + int(needs_L[lane])
        for donor in np.flatnonzero((ends_L > start) & (ends_L - gives_L < stop)).tolist():
            surplus = without(self._shuffled(epoch, donor), self.denied)[int(shares_L[donor]) :]
            before = int(ends_L[donor] - gives_L[donor])
            parts.append(surplus[max(0, start - before) : stop - before])
        return np.concatenate(parts)

    @cached_property
    def _kept_and_shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of samples, (L,), that each lane has without withdrawn ones, and that it should have."""
        counts = [
            sum(
                piece.stop - piece.first - _count_within(self.denied.get(piece.shard), piece.first, piece.stop)
                for piece in pieces
            )
            for pieces in self.pieces
        ]
        return np.array(counts), np.diff([self.kept * lane // self.lanes for lane in range(self.lanes + 1)])


@dataclass(frozen=True, kw_only=True)
class EvalOrder:
    """The evaluation order of one split: each sample once, on any number of ranks."""

    samples: tuple[int, ...]  # of each shard
    global_batch: int
    denied: dict[int, np.ndarray]  # shard → rows to leave out: withdrawn, or not requested

    @cached_property
    def sequence(self) -> np.ndarray:
        """All samples in order, (S, 2)."""
        shards = np.repeat(np.arange(len(self.samples)), self.samples)
        rows = [np.arange(count) for count in self.samples]
        return without(np.stack([shards, np.concatenate(rows) if rows else shards], axis=1), self.denied)

    @property
    def batches(self) -> int:
        """The number of global batches, of which the last may be shorter."""
        return -(-len(self.sequence) // self.global_batch)

    def batch(self, number: int, rank: int, world: int) -> np.ndarray:
        """Return a rank's part of global batch `number`, (S, 2).

        The ranks' parts differ by at most one sample and may be empty. Raises `OrderError` for an invalid number or
        rank.
        """
        _require_rank(rank, world)
        _require_batch(number, self.batches)
        part = self.sequence[number * self.global_batch : (number + 1) * self.global_batch]
        return part[len(part) * rank // world : len(part) * (rank + 1) // world]


@dataclass(frozen=True, kw_only=True)
class ShardOrder(EvalOrder):
    """The evaluation order in batches that end with their shard: a batch is the same whichever shards are read."""

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """The batches as half-open ranges of `sequence`."""
        shards_S = self.sequence[:, 0]
        edges = [0, *(np.flatnonzero(np.diff(shards_S)) + 1).tolist(), len(shards_S)]
        size = self.global_batch
        return [
            (first, min(first + size, stop))
            for start, stop in itertools.pairwise(edges)
            for first in range(start, stop, size)
        ]

    @property
    def batches(self) -> int:
        """The number of batches."""
        return len(self.ranges)

    def batch(self, number: int, rank: int, world: int) -> np.ndarray:
        """Return a rank's part of batch `number`, (S, 2); see `EvalOrder.batch`."""
        _require_rank(rank, world)
        _require_batch(number, self.batches)
        first, stop = self.ranges[number]
        part = self.sequence[first:stop]
        return part[len(part) * rank // world : len(part) * (rank + 1) // world]


def default_lanes(global_batch: int) -> int:
    """Return the largest divisor of the global batch up to `MAX_LANES`."""
    return max(n for n in range(1, min(global_batch, MAX_LANES) + 1) if global_batch % n == 0)


def without(samples_S2: np.ndarray, denied: dict[int, np.ndarray]) -> np.ndarray:
    """Return the samples whose rows are not denied, in order."""
    keep = np.ones(len(samples_S2), bool)
    for shard in np.intersect1d(samples_S2[:, 0], list(denied)).tolist():
        keep &= (samples_S2[:, 0] != shard) | ~np.isin(samples_S2[:, 1], denied[shard])
    return samples_S2[keep]


def _count_within(rows: np.ndarray | None, first: int, stop: int) -> int:
    return 0 if rows is None else int(((rows >= first) & (rows < stop)).sum())


def _permutation(count: int, *name: int | str) -> np.ndarray:
    """Return a permutation of 0 … count − 1 that depends only on `name`.

    It sorts the raw 64-bit words of Philox, since numpy guarantees that stream, but not that of `permutation`.
    """
    digest = hashlib.sha256(":".join(str(part) for part in name).encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return np.argsort(words, kind="stable")


def _require_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise OrderError(f"rank {rank} is out of range for {world} ranks")


def _require_batch(number: int, batches: int) -> None:
    if not 0 <= number < batches:
        raise OrderError(f"batch {number} is out of range for {batches} batches")
