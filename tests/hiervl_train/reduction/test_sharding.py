"""How parameters are divided over ranks; whole runs with divided moments are in `test_trainer`."""

from __future__ import annotations

import random

import pytest

from hiervl_train.reduction.sharding import owners


@pytest.mark.parametrize("world", [1, 2, 8])
def test_parameters_are_divided_evenly_by_bytes(world: int) -> None:
    rng = random.Random(world)
    sizes = [rng.randint(1, 10_000) for _ in range(300)]
    chosen = owners(sizes, world)
    totals = [sum(size for size, owner in zip(sizes, chosen, strict=True) if owner == rank) for rank in range(world)]
    assert sum(totals) == sum(sizes) and max(totals) - min(totals) <= max(sizes)
    assert owners(sizes, world) == chosen


def test_there_may_be_more_ranks_than_parameters() -> None:
    assert sorted(owners([5, 5], 4)) == [0, 1]
