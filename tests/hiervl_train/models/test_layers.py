"""Packing of time attention, and stochastic depth."""

from __future__ import annotations

import pytest
import torch

from hiervl_train.models import AggregatorConfig, HierVL
from hiervl_train.models.layers import TILE, packing, packing_mask
from tests.hiervl_train.tiny import tiny_config


def test_packing_fills_a_tile_with_a_divisor_of_the_patches():
    assert packing(4, 196) == 14
    assert packing(16, 196) == 2
    assert packing(1, 196) == 49
    assert packing(4, 197) == 1  # a prime number of patches: nothing to pack
    assert packing(100, 196) == 1  # more frames than a tile has keys
    for frames in range(1, 20):
        for patches in (1, 4, 49, 196, 256):
            packed = packing(frames, patches)
            assert patches % packed == 0
            assert packed == 1 or packed * frames + 1 <= TILE


def test_the_packing_mask_separates_positions():
    mask = packing_mask(2, 3, torch.device("cpu"))
    assert packing_mask(2, 1, torch.device("cpu")) is None
    assert mask.tolist()[1] == [True, False, True, False, False, True, False]  # CLS, and position 1 of both frames


def test_drop_path_rises_to_its_rate_and_keeps_the_mean():
    config = tiny_config(aggregator=AggregatorConfig(depth=3, num_heads=2, tokens=6, drop_path=0.4))
    blocks = HierVL(config).aggregator.blocks
    assert [round(block.drop_path.rate, 6) for block in blocks] == [0.0, 0.2, 0.4]
    drop = blocks[2].drop_path
    dropped = drop.train()(torch.ones(20000, 1, 1))
    assert sorted({round(value, 4) for value in dropped.flatten().tolist()}) == [0.0, round(1 / 0.6, 4)]
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(4, 1, 1)), torch.ones(4, 1, 1))
