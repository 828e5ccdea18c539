"""Averaging during the backward pass gives the same gradients, bit for bit, as averaging after it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hiervl_train.reduction.reducer import GradientReducer
from tests.hiervl_train.ranks import WORLD
from tests.hiervl_train.reduction.rank_steps import BUCKET, MICRO_BATCHES, STEPS

pytestmark = pytest.mark.medium
WORLDS = (WORLD, WORLD // 2)


@cache
def found(folder: Path, world: int, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{world}-{rank}.pt")["reduction"]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", MICRO_BATCHES)
def test_averaging_during_and_after_the_backward_pass_is_bit_equal(rank_results: Path, world: int, kind: str) -> None:
    for rank in range(world):
        results = found(rank_results, world, rank)
        for during, after in zip(results[f"{kind} overlapped"], results[f"{kind} after"], strict=True):
            assert during.keys() == after.keys()
            assert all(torch.equal(during[name], after[name]) for name in during)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", MICRO_BATCHES)
def test_the_means_are_those_of_averaging_in_the_parameters_order(rank_results: Path, world: int, kind: str) -> None:
    """Bit for bit on two ranks; on more, the order of additions depends on the place in the bucket."""
    results = found(rank_results, world)
    for ours, before in zip(results[f"{kind} overlapped"], results[f"{kind} today"], strict=True):
        assert ours.keys() == before.keys()
        for name in ours:
            if world == 2:
                assert torch.equal(ours[name], before[name])
            else:
                tolerance = 5e-7 * float(before[name].abs().max())
                torch.testing.assert_close(ours[name], before[name], rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("kind", MICRO_BATCHES)
def test_all_ranks_have_the_same_gradients(rank_results: Path, kind: str) -> None:
    first = found(rank_results, WORLD)[f"{kind} overlapped"]
    for rank in range(1, WORLD):
        for a, b in zip(first, found(rank_results, WORLD, rank)[f"{kind} overlapped"], strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", MICRO_BATCHES)
def test_most_buckets_are_launched_while_gradients_are_still_computed(rank_results: Path, kind: str) -> None:
    launches = found(rank_results, 2)
    per_step = len(launches[f"{kind} after launches"]) // len(STEPS)
    assert per_step > 4 and not any(launches[f"{kind} after launches"])
    during = launches[f"{kind} overlapped launches"]
    assert len(during) == len(launches[f"{kind} after launches"])
    planned = [step for step in range(len(STEPS)) if step >= 2]
    assert sum(during) >= 0.8 * len(planned) * per_step


def test_bfloat16_sums_are_close(rank_results: Path) -> None:
    results = found(rank_results, WORLD)
    for ours, exact in zip(results["plain bf16"], results["plain overlapped"], strict=True):
        for name, gradient in exact.items():
            error = (ours[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
            assert float(error) < 3e-2, name
    assert any(not torch.equal(results["plain bf16"][0][n], g) for n, g in results["plain overlapped"][0].items())


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_may_complete_gradients_in_different_orders(rank_results: Path, world: int) -> None:
    for step in found(rank_results, world)["other order"]:
        for name, mean in step["means"].items():
            torch.testing.assert_close(step["gradients"][name].double(), mean, rtol=1e-5, atol=1e-5)


def test_what_would_average_wrongly_is_an_error_by_name(rank_results: Path) -> None:
    errors = found(rank_results, 2)["errors"]
    assert "got a gradient after its last backward pass of this child step" in errors["added to"]
    assert errors["added to"].startswith(("0.weight", "0.bias"))
    assert "4 parameters have a gradient in only some child steps" in errors["other parameters"]
    assert "0.weight" in errors["other parameters"]


def test_a_single_rank_registers_nothing() -> None:
    layer = torch.nn.Linear(2, 2)
    reducer = GradientReducer(dict(layer.named_parameters()), bucket_bytes=BUCKET)
    reducer.begin("child")
    with reducer.last_backward():
        layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad
    reducer.finish()
    assert layer.weight.grad is before and not layer.weight._post_accumulate_grad_hooks
