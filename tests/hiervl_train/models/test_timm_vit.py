"""timm's ViTs are found by name."""

from __future__ import annotations

import pytest
import timm
import torch

from configs import loading
from hiervl_train.models import HierVL, ModelConfig
from hiervl_train.models.initialise import load_vit
from tests.hiervl_train.tiny import tiny_text


def test_a_timm_vit_by_name_gives_sizes_and_initial_weights(tmp_path):
    config = ModelConfig(vit="vit_tiny_patch16_224", img_size=(32, 48), text=tiny_text())
    assert (config.embed_dim, config.depth, config.num_heads, config.patch_size) == (192, 12, 3, 16)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    tower = HierVL(config).video
    report = load_vit(tower, str(tmp_path / "vit.pth"))
    assert torch.equal(tower.blocks[3].attn.qkv.weight, vit.blocks[3].attn.qkv.weight)
    assert report.ignored == ("head.weight", "head.bias")
    assert "temporal_embed" in report.fresh and "blocks.0.timeattn.qkv.weight" in report.fresh
    assert report.resized == ("pos_embed to a grid of (2, 3) patches",)
    assert ModelConfig.from_dict(loading.to_dict(config)) == config
    with pytest.raises(loading.ConfigError, match="num_heads = 4, but vit = vit_tiny_patch16_224 has 3"):
        ModelConfig.from_dict({"vit": "vit_tiny_patch16_224", "num_heads": 4})
