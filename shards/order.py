"""The order of an epoch, a pure function of (fingerprint, seed, epoch): lanes to train on, a sequence to evaluate.

Training. The shards of a split, in an order that hangs on the fingerprint alone, are one long row of samples; the row
is cut into L lanes of equal length (to one sample), so a lane is a few whole shards and parts of two. In each epoch a
lane's shards are permuted, joined to blocks of bounded bytes, and the samples shuffled within each block. Global batch
n takes the same number from every lane, and a rank owns whole lanes: what is in a batch does not hang on how many ranks
or workers there are, and a rank reads only its lanes' shards.

Withdrawn samples are left out after all this, so the others keep their order. Lanes that are then longer than their
share give their last samples to the ends of those that are shorter: still every sample once, and equal batches.

Evaluation. The samples by shard and row, withdrawn ones left out; the ranks split each global batch among them as
evenly as it goes, the last and shorter one too, so none is dropped and none is doubled.

Numpy only. Shapes in names: S samples; a sample is a pair (shard, row) of int64, shard being its place in the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

MAX_LANES = 256  # what `default_lanes` goes up to: more ranks than that need more lanes by configuration


class OrderError(ValueError):
    """Sizes that cannot be reconciled: the message says which, and which would be right."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive rows of one shard that belong to one lane."""

    shard: int
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class TrainOrder:
    """The training order of one split; `lane` and `batch` give its samples, the same on every machine."""

    fingerprint: str  # of the split
    seed: int
    samples: tuple[int, ...]  # of each shard
    bytes: tuple[int, ...]  # of each shard
    lanes: int
    global_batch: int
    block_bytes: int
    denied: dict[int, np.ndarray]  # shard → rows that were withdrawn
    # (epoch, lane) → its samples: asked for again with every batch
    _remembered: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.global_batch < 1 or self.global_batch % self.lanes:
            raise OrderError(f"global_batch = {self.global_batch} is no multiple of lanes = {self.lanes}")
        if len(self.samples) != len(self.bytes) or self.block_bytes < 1:
            raise OrderError(f"{len(self.samples)} shards, {len(self.bytes)} sizes; block_bytes = {self.block_bytes}")

    @property
    def per_lane(self) -> int:
        """Samples that a batch takes from each lane."""
        return self.global_batch // self.lanes

    @cached_property
    def kept(self) -> int:
        """Samples that are not withdrawn."""
        return sum(self.samples) - sum(len(rows) for rows in self.denied.values())

    @property
    def batches(self) -> int:
        """Global batches in an epoch; what is left over is fewer samples than one."""
        return self.kept // self.global_batch

    @cached_property
    def pieces(self) -> tuple[tuple[Piece, ...], ...]:
        """Each lane's shards and parts of shards, the same in every epoch."""
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
        """Return a lane's samples (S, 2) in an epoch, in the order in which batches take them."""
        if (epoch, lane) not in self._remembered:
            for past in [known for known in self._remembered if known[0] < epoch - 1]:
                self._remembered.pop(past, None)
            samples_S2 = self._balanced(epoch, lane) if self.denied else self._shuffled(epoch, lane)
            self._remembered[epoch, lane] = samples_S2.astype(np.int32)
        return self._remembered[epoch, lane]

    def batch(self, epoch: int, number: int, lanes: Sequence[int]) -> np.ndarray:
        """Return what global batch `number` takes from `lanes`, (S, 2), lane after lane."""
        if not 0 <= number < self.batches:
            raise OrderError(f"batch {number} of {self.batches}")
        part = slice(number * self.per_lane, (number + 1) * self.per_lane)
        return np.concatenate([self.lane(epoch, lane)[part] for lane in lanes])

    def rank_lanes(self, rank: int, world: int) -> range:
        """Return the lanes that a rank owns; raise `OrderError` where the ranks do not divide the lanes."""
        _require_rank(rank, world)
        if self.lanes % world:
            divisors = [str(n) for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise OrderError(f"{world} ranks do not divide {self.lanes} lanes; possible: {', '.join(divisors)}")
        each = self.lanes // world
        return range(rank * each, (rank + 1) * each)

    def _shuffled(self, epoch: int, lane: int) -> np.ndarray:
        """Return a lane's samples as if none were withdrawn."""
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
        """Return a lane without the withdrawn samples, and at its end what it gets of the longer lanes' surplus."""
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
        """Return (L,) how many samples each lane has that are not withdrawn, and (L,) how many it ought to have."""
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
    """The order in which a split is evaluated: every sample once, on any number of ranks."""

    samples: tuple[int, ...]  # of each shard
    global_batch: int
    denied: dict[int, np.ndarray]  # shard → rows that were withdrawn

    @cached_property
    def sequence(self) -> np.ndarray:
        """All samples (S, 2)."""
        shards = np.repeat(np.arange(len(self.samples)), self.samples)
        rows = [np.arange(count) for count in self.samples]
        return without(np.stack([shards, np.concatenate(rows) if rows else shards], axis=1), self.denied)

    @property
    def batches(self) -> int:
        """Global batches; the last may be shorter."""
        return -(-len(self.sequence) // self.global_batch)

    def batch(self, number: int, rank: int, world: int) -> np.ndarray:
        """Return a rank's part of global batch `number`, (S, 2): parts differ by one sample at most, or are empty."""
        _require_rank(rank, world)
        if not 0 <= number < self.batches:
            raise OrderError(f"batch {number} of {self.batches}")
        part = self.sequence[number * self.global_batch : (number + 1) * self.global_batch]
        return part[len(part) * rank // world : len(part) * (rank + 1) // world]


def default_lanes(global_batch: int) -> int:
    """Return the largest divisor of the global batch that is not above `MAX_LANES`."""
    return max(n for n in range(1, min(global_batch, MAX_LANES) + 1) if global_batch % n == 0)


def without(samples_S2: np.ndarray, denied: dict[int, np.ndarray]) -> np.ndarray:
    """Return the samples that are not withdrawn, in their order."""
    keep = np.ones(len(samples_S2), bool)
    for shard in np.intersect1d(samples_S2[:, 0], list(denied)).tolist():
        keep &= (samples_S2[:, 0] != shard) | ~np.isin(samples_S2[:, 1], denied[shard])
    return samples_S2[keep]


def _count_within(rows: np.ndarray | None, first: int, stop: int) -> int:
    return 0 if rows is None else int(((rows >= first) & (rows < stop)).sum())


def _permutation(count: int, *name: int | str) -> np.ndarray:
    """Return a permutation of 0 … count − 1 that follows from a name alone.

    It sorts the raw 64-bit words of Philox, a stream that numpy promises not to change (of `permutation` it does not).
    """
    digest = hashlib.sha256(":".join(str(part) for part in name).encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return np.argsort(words, kind="stable")


def _require_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise OrderError(f"rank {rank} of {world}")
