"""The aggregators equal their formulas."""

from __future__ import annotations

import pytest
import torch

from hiervl_train.models import AggregatorConfig, HierVL
from tests.hiervl_train import reference
from tests.hiervl_train.tiny import parameters, random_video, tiny_config, tiny_model


@pytest.mark.parametrize("count", [1, 3, 6])
def test_aggregator_equals_the_slow_reference(count):
    aggregator = tiny_model().aggregator
    x = random_video(3, count, 8)
    expected = reference.aggregator(x, parameters(aggregator), heads=2, depth=2)
    torch.testing.assert_close(aggregator(x), expected, rtol=1e-9, atol=1e-9)


def test_aggregator_depends_on_order_and_limits_the_number():
    model = tiny_model()
    x = random_video(2, 4, 8)
    assert not torch.allclose(model.aggregate(x), model.aggregate(x.flip(1)))
    with pytest.raises(ValueError, match=r"7 embeddings.*aggregator\.tokens = 6"):
        model.aggregate(random_video(2, 7, 8))


def test_average_is_the_mean_of_any_number_and_none_is_an_error():
    x = random_video(2, 9, 8)
    average = tiny_model(tiny_config(aggregator=AggregatorConfig(kind="average")))
    torch.testing.assert_close(average.aggregate(x), x.mean(1))
    with pytest.raises(ValueError, match="no aggregator"):
        tiny_model(tiny_config(aggregator=None)).aggregate(x)


def test_initial_positions_of_the_aggregator_have_the_configured_scale():
    for std in (0.0, 0.02, 0.5):
        config = tiny_config(projection_dim=256, aggregator=AggregatorConfig(depth=1, tokens=16, position_std=std))
        positions = HierVL(config).aggregator.pos_embed
        assert float(positions.detach().std()) == pytest.approx(std, rel=0.1, abs=1e-9)
