"""One rank and two train the same model: equal data, and losses that part only as rounding makes them part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiervl_train.models import HierVL
from hiervl_train.objectives import ObjectiveConfig, child_loss
from tests.hiervl_train.tiny import random_text, random_video, tags_of, tiny_config
from tests.hiervl_train.worlds import parted, train

pytestmark = pytest.mark.medium


def test_two_ranks_equal_one_in_float64(embedded: Path, tmp_path: Path) -> None:
    """On both step types, from the published start; 1e-12 was seen. A fault of a step would show as 1e-3."""
    one, two = (train(embedded, tmp_path / str(ranks), ranks=ranks, max_steps=30) for ranks in (1, 2))
    assert one.weights == two.weights
    assert one.batches == two.batches
    differences = parted(one, two)
    assert {name: len(steps) for name, steps in differences.items()} == {"child": 25, "parent": 5}
    assert max(value for steps in differences.values() for _, value in steps) < 1e-9


def test_the_published_start_of_time_attention_is_a_saddle_point() -> None:
    """The sum over channels of its output's gradient is zero, as what follows normalises the channels' mean away."""
    torch.manual_seed(0)
    model = HierVL(tiny_config()).to(torch.float64)
    child_loss(*model(random_video(8, 2, 3, 16, 16), *random_text(8, 6)), tags_of(8), ObjectiveConfig()).backward()
    largest = {name: float(p.grad.abs().max()) for name, p in model.named_parameters() if p.grad is not None}
    still = {name for name in largest if ".timeattn." in name and not name.endswith("proj.bias")}
    assert len(still) == 3 * model.config.depth
    assert max(largest[name] for name in still) < 1e-12
    assert largest["video.blocks.0.timeattn.proj.bias"] > 1e-6 and largest["video.blocks.0.attn.qkv.weight"] > 1e-6


@pytest.mark.slow
def test_away_from_the_saddle_they_stay_equal(embedded: Path, tmp_path: Path) -> None:
    """Over 100 steps; and what parts them from the published start also parts a run from its neighbour by rounding."""
    one, two = (train(embedded, tmp_path / str(n), ranks=n, start="random") for n in (1, 2))
    assert max(value for steps in parted(one, two).values() for _, value in steps) < 1e-7  # 1e-9 was seen
    first = train(embedded, tmp_path / "first", ranks=1)
    neighbour = train(embedded, tmp_path / "neighbour", ranks=1, perturbed=True)
    differences = [value for steps in parted(first, neighbour).values() for _, value in steps]
    assert max(differences) > 1e-4, "the published start no longer amplifies rounding: correct docs/training.md"


@pytest.mark.slow
def test_stochastic_depth_is_drawn_by_rank(embedded: Path, tmp_path: Path) -> None:
    """The only thing besides dropout that differs by rank: it parts parent steps from the first one on."""
    option = "model.aggregator={depth: 2, num_heads: 2, tokens: 4, drop_path: 0.5, position_std: 0.2}"
    one, two = (train(embedded, tmp_path / str(n), option, ranks=n, max_steps=6) for n in (1, 2))
    assert one.batches == two.batches and one.losses[:5] == pytest.approx(two.losses[:5], abs=1e-12)
    assert abs(one.losses[5] - two.losses[5]) > 1e-6
