"""Gathering with exact gradients, and exchanging small values between ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiervl_train.collectives import all_gather, all_true, broadcast_json, gather_json
from hiervl_train.distributed import DistributedContext
from tests.hiervl_train.ranks import WORLD

pytestmark = pytest.mark.medium


@pytest.mark.parametrize("world", [WORLD, WORLD // 2])
def test_a_gathered_row_gets_the_gradients_of_every_ranks_loss(rank_results: Path, world: int) -> None:
    for rank in range(world):
        weights = torch.arange(world * 6, dtype=torch.float64).view(world * 2, 3)
        expected = weights[rank * 2 : rank * 2 + 2] * sum(range(1, world + 1))
        torch.testing.assert_close(torch.load(rank_results / f"{world}-{rank}.pt")["gather"], expected)


def test_without_a_process_group_nothing_is_gathered() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert all_gather(x) is x
    assert broadcast_json({"a": 1}, None) == {"a": 1} and gather_json("x", DistributedContext()) == ["x"]
    assert all_true(True, None) and not all_true(False, None)


@pytest.mark.parametrize("world", [WORLD, WORLD // 2])
def test_small_values_are_gathered_in_the_order_of_ranks_and_summed(rank_results: Path, world: int) -> None:
    for rank in range(world):
        values = torch.load(rank_results / f"{world}-{rank}.pt")["values"]
        assert values["gathered"] == [{"rank": other, "text": "é" * other} for other in range(world)]
        assert values["summed"] == {"all": float(world), **{f"only {other}": 1.5 for other in range(world)}}
        assert values["broadcast"] == ["from 0", None]
        assert values["too long"] == "a rank gathers 9002 bytes of JSON: at most 8192 are supported"
