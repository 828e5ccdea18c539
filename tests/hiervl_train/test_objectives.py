"""N ranks of B samples have the loss and the parameter gradients of one rank of N·B, in real processes over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.hiervl_train import ranks

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def single() -> dict[str, ranks.Result]:
    """What one rank with the whole batch computes."""
    return ranks.run(0, 1)


@pytest.mark.parametrize("world", [ranks.WORLD, ranks.WORLD // 2])
@pytest.mark.parametrize("scenario", list(ranks.scenarios()))
def test_ranks_together_equal_one_rank_with_the_whole_batch(
    rank_results: Path, single: dict[str, ranks.Result], scenario: str, world: int
) -> None:
    expected_loss, expected = single[scenario]
    for rank in range(world):
        loss, gradients = torch.load(rank_results / f"{world}-{rank}.pt")[scenario]
        torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=1e-9)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n} {t}")


def test_cached_gradients_equal_those_of_the_plain_step(single: dict[str, ranks.Result]) -> None:
    for step_type in ("child", "parent", "margin"):
        for name, gradient in single[step_type][1].items():
            torch.testing.assert_close(single[f"cached {step_type}"][1][name], gradient, rtol=1e-9, atol=1e-9)


def test_only_parent_steps_give_the_aggregator_gradients(single: dict[str, ranks.Result]) -> None:
    assert not any(name.startswith("aggregator.") for name in single["child"][1])
    assert any(name.startswith("aggregator.") for name in single["parent"][1])
