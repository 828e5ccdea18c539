"""The computed operations equal torch's counts, and for the published sizes the usual figures."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hiervl_train.models import AggregatorConfig, HierVL, ModelConfig, TextConfig, flops
from tests.hiervl_train.tiny import tiny_config


def counted(config: ModelConfig, frames: int, tokens: int, *, backward: bool = False) -> int:
    """Return what torch counts for one clip with its text, on tensors without data."""
    with torch.device("meta"):
        model = HierVL(config).eval()
        video = torch.empty(1, frames, 3, *config.image_hw)
        ids, mask = torch.zeros(1, tokens, dtype=torch.long), torch.ones(1, tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            out = model(video, ids, mask)
            if backward:
                (out[0].sum() + out[1].sum()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("changes", "frames", "tokens"),
    [
        ({}, 4, 8),
        ({"img_size": (32, 48), "depth": 3}, 3, 5),
        ({"img_size": 56}, 1, 1),
        ({"depth": 1, "embed_dim": 32, "num_heads": 4}, 2, 16),
    ],
)
def test_executed_operations_equal_torchs_count(changes, frames, tokens):
    config = tiny_config(**changes)
    ours = flops.clip(config, frames=frames, text_tokens=tokens, executed=True)
    assert ours.forward == counted(config, frames, tokens)


def test_executed_operations_of_the_published_size():
    ours = flops.clip(ModelConfig(), frames=4, text_tokens=32, executed=True)
    assert ours.forward == counted(ModelConfig(), 4, 32)
    # Backward there is no product for the pixels' gradient, and scores are computed once more or not: near 2×.
    assert ours.train == pytest.approx(counted(ModelConfig(), 4, 32, backward=True), rel=0.01)


def test_operations_of_a_clip_and_a_summary_of_the_published_size():
    clip = flops.clip(ModelConfig(), frames=4, text_tokens=32)
    assert clip.forward / 1e9 == pytest.approx(187, abs=0.5)
    assert clip.train / 1e9 == pytest.approx(562, abs=0.5)
    assert clip.text / clip.forward == pytest.approx(0.015, abs=0.001)
    assert flops.summary_train(ModelConfig()) / 1e12 == pytest.approx(9.0, abs=0.05)


@pytest.mark.parametrize("tokens", [1, 6])
def test_operations_of_the_aggregator_equal_torchs_count(tokens):
    config = tiny_config()
    with torch.device("meta"):
        model = HierVL(config).eval()
        with FlopCounterMode(display=False) as counter:
            model.aggregate(torch.empty(1, tokens, config.projection_dim))
    assert flops.aggregator(config, tokens=tokens) == counter.get_total_flops()
    assert flops.aggregator(tiny_config(aggregator=None), tokens=tokens) == 0
    assert flops.aggregator(tiny_config(aggregator=AggregatorConfig(kind="average")), tokens=tokens) == 0


def test_an_unknown_text_encoder_is_an_error():
    settings = {"model_type": "bert"}
    with pytest.raises(ValueError, match="DistilBERT text encoders only"):
        flops.clip(tiny_config(text=TextConfig(settings=settings)))
