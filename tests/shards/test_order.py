"""The order is the same for every world size, uses each sample once, mixes well, and is stable under withdrawals."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order import EvalOrder, OrderError, TrainOrder, default_lanes


@st.composite
def orders(draw: st.DrawFn, *, with_denied: bool = True) -> TrainOrder:
    """Random shard sizes, lanes, batch sizes, block sizes, seeds and withdrawals."""
    samples = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    denied = {}
    if with_denied:
        for shard, rows in draw(
            st.dictionaries(st.integers(0, len(samples) - 1), st.sets(st.integers(0, 39)), max_size=3)
        ).items():
            inside = sorted(row for row in rows if row < samples[shard])
            if inside:
                denied[shard] = np.array(inside)
    return TrainOrder(
        fingerprint=draw(st.text("abcdef", min_size=1, max_size=4)),
        seed=draw(st.integers(0, 5)),
        samples=tuple(samples),
        bytes=tuple(draw(st.integers(1, 1000)) for _ in samples),
        lanes=lanes,
        global_batch=lanes * draw(st.integers(1, 4)),
        block_bytes=draw(st.integers(1, 3000)),
        denied=denied,
    )


def everything(order: TrainOrder | EvalOrder) -> set[tuple[int, int]]:
    gone = {(shard, int(row)) for shard, rows in order.denied.items() for row in rows}
    return {(shard, row) for shard, count in enumerate(order.samples) for row in range(count)} - gone


def as_tuples(samples_S2: np.ndarray) -> list[tuple[int, int]]:
    return [(int(shard), int(row)) for shard, row in samples_S2]


@given(orders(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_an_epoch_has_each_sample_once_except_for_a_tail_smaller_than_a_batch(order: TrainOrder, epoch: int) -> None:
    lanes = range(order.lanes)
    taken = [s for n in range(order.batches) for s in as_tuples(order.batch(epoch, n, lanes))]
    assert len(taken) == len(set(taken)) == order.batches * order.global_batch
    assert set(taken) <= everything(order)
    assert len(everything(order)) - len(taken) < order.global_batch
    whole = [s for lane in lanes for s in as_tuples(order.lane(epoch, lane))]
    assert sorted(whole) == sorted(everything(order))


@given(orders(), st.integers(0, 3), st.data())
@settings(max_examples=100, deadline=None)
def test_a_global_batch_is_the_same_for_every_world_size(order: TrainOrder, epoch: int, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([n for n in range(1, order.lanes + 1) if order.lanes % n == 0]))
    for number in range(order.batches):
        parts = [order.batch(epoch, number, order.rank_lanes(rank, world)) for rank in range(world)]
        assert {len(part) for part in parts} == {order.global_batch // world}
        assert (np.concatenate(parts) == order.batch(epoch, number, range(order.lanes))).all()


@given(orders(with_denied=False), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_rank_reads_only_the_shards_of_its_lanes(order: TrainOrder, epoch: int) -> None:
    for lane in range(order.lanes):
        own = {(piece.shard, row) for piece in order.pieces[lane] for row in range(piece.first, piece.stop)}
        assert set(as_tuples(order.lane(epoch, lane))) == own
    assert sum(len(pieces) for pieces in order.pieces) <= len(order.samples) + order.lanes - 1


@given(orders(with_denied=True), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_withdrawals_do_not_change_the_order_of_the_other_samples(order: TrainOrder, epoch: int) -> None:
    full = TrainOrder(**{**vars_of(order), "denied": {}})
    for lane in range(order.lanes):
        expected = [s for s in as_tuples(full.lane(epoch, lane)) if s in everything(order)]
        found = as_tuples(order.lane(epoch, lane))
        common = min(len(expected), len(found))
        assert found[:common] == expected[:common]  # samples moved between lanes are at the end
        assert common >= order.kept // order.lanes or common == len(expected)


@given(orders(with_denied=False))
@settings(max_examples=30, deadline=None)
def test_blocks_are_bounded_and_consecutive(order: TrainOrder) -> None:
    for lane in range(order.lanes):
        shards = [shard for shard, _ in as_tuples(order.lane(0, lane))]
        weights = {
            p.shard: order.bytes[p.shard] * (p.stop - p.first) // order.samples[p.shard] for p in order.pieces[lane]
        }
        open_spans = {s: (shards.index(s), len(shards) - shards[::-1].index(s)) for s in weights}
        for at in range(len(shards)):
            needed = [s for s, (first, stop) in open_spans.items() if first <= at < stop]
            assert sum(weights[s] for s in needed) <= max(order.block_bytes, max(weights.values()))


def test_epochs_and_seeds_shuffle_differently_within_the_same_lanes() -> None:
    order = make(samples=(100,) * 8, lanes=4, global_batch=8)
    other_seed = make(samples=(100,) * 8, lanes=4, global_batch=8, seed=1)
    assert as_tuples(order.lane(0, 1)) != as_tuples(order.lane(1, 1))
    assert as_tuples(order.lane(0, 1)) != as_tuples(other_seed.lane(0, 1))
    assert sorted(as_tuples(order.lane(0, 1))) == sorted(as_tuples(order.lane(1, 1)))
    assert order.pieces == other_seed.pieces


def test_the_order_does_not_change_between_versions() -> None:
    order = make(samples=(5, 7, 4), lanes=2, global_batch=4, block_bytes=50)
    assert as_tuples(order.batch(3, 1, range(2))) == GOLDEN


def test_batches_mix_videos_almost_like_a_full_shuffle() -> None:
    # 64 shards of 512 samples; 8 consecutive rows are from one video, since segments are packed together.
    order = make(samples=(512,) * 64, lanes=32, global_batch=64, block_bytes=2**40)
    batches = [order.batch(0, n, range(32)) for n in range(order.batches)]
    videos = [set(zip(b[:, 0].tolist(), (b[:, 1] // 8).tolist(), strict=True)) for b in batches]
    shared = sum(64 - len(found) for found in videos) / (64 * len(videos))
    shuffled = np.random.default_rng(0).permutation(512 * 64).reshape(-1, 64)
    full = sum(64 - len(set((row // 8).tolist())) for row in shuffled) / shuffled.size
    assert shared < 2.5 * full + 0.002, (shared, full)


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 20), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_evaluation_has_each_sample_once_on_any_number_of_ranks(
    samples: list[int], global_batch: int, world: int
) -> None:
    order = EvalOrder(
        samples=tuple(samples),
        global_batch=global_batch,
        denied={0: np.array([0])} if samples and samples[0] else {},
    )
    taken = [s for n in range(order.batches) for rank in range(world) for s in as_tuples(order.batch(n, rank, world))]
    assert taken == sorted(everything(order))
    for n in range(order.batches):
        counts = [len(order.batch(n, rank, world)) for rank in range(world)]
        assert max(counts) - min(counts) <= 1


def test_incompatible_sizes_are_refused_with_valid_ones() -> None:
    with pytest.raises(OrderError, match="global_batch = 10 is not a multiple of lanes = 4"):
        make(samples=(9,), lanes=4, global_batch=10)
    with pytest.raises(OrderError, match="3 ranks do not divide 4 lanes; valid numbers: 1, 2, 4"):
        make(samples=(9,), lanes=4, global_batch=8).rank_lanes(0, 3)
    with pytest.raises(OrderError, match="rank 4 is out of range for 4 ranks"):
        make(samples=(9,), lanes=4, global_batch=8).rank_lanes(4, 4)
    with pytest.raises(OrderError, match="batch 1 is out of range for 1 batches"):
        make(samples=(9,), lanes=4, global_batch=8).batch(0, 1, range(4))


def test_default_lanes_divide_the_batch() -> None:
    assert [default_lanes(n) for n in (1, 16, 48, 512, 1024, 514)] == [1, 16, 48, 256, 256, 2]


def test_importing_all_but_the_loader_needs_neither_torch_nor_other_packages_of_the_project() -> None:
    code = (
        "import sys, shards.order, shards.sampling, shards.cache, shards.sources, shards.verify.run;"
        "bad = [m for m in ('torch', 'dask', 'preprocessing', 'hiervl_train', 'configs', 'eval') if m in sys.modules];"
        "sys.exit(', '.join(bad) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def make(**changes: object) -> TrainOrder:
    fields = {"fingerprint": "f", "seed": 0, "block_bytes": 10**9, "denied": {}, "bytes": None, **changes}
    fields["bytes"] = fields["bytes"] or tuple(10 * n for n in fields["samples"])
    return TrainOrder(**fields)


def vars_of(order: TrainOrder) -> dict[str, object]:
    return {name: getattr(order, name) for name in TrainOrder.__dataclass_fields__ if not name.startswith("_")}


GOLDEN = [(1, 1), (1, 5), (2, 1), (0, 0)]
