"""Small models and random inputs for the model's tests, and where the shared reference files are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hiervl_train.models import AggregatorConfig, HierVL, ModelConfig, TextConfig
from hiervl_train.models.layers import TimeAttention
from hiervl_train.objectives import Tags

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN = SHARED / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference files of ../shared/golden are not here")


def tiny_config(**changes: object) -> ModelConfig:
    """Return a model configuration of a few thousand weights and no dropout."""
    sizes: dict = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_frames": 4,
        "text": tiny_text(),
        "projection_dim": 8,
        "aggregator": AggregatorConfig(depth=2, num_heads=2, tokens=6, drop_path=0.0),
    }
    return ModelConfig(**(sizes | changes))


def tiny_text(dropout: float = 0.0) -> TextConfig:
    """Return a text encoder of one head and two layers."""
    return TextConfig(
        vocab_size=40,
        max_position_embeddings=16,
        n_layers=2,
        n_heads=2,
        dim=16,
        hidden_dim=32,
        dropout=dropout,
        attention_dropout=dropout,
    )


def tiny_model(config: ModelConfig | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> HierVL:
    """Return a model whose every part does something, time attention and temporal positions included."""
    torch.manual_seed(seed)
    model = HierVL(config or tiny_config())
    for module in model.modules():
        if isinstance(module, TimeAttention):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name or "embed" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif parameter.ndim > 1:
            parameter.data *= 3
    return model.to(dtype)


def random_video(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random normalised frames."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_text(batch: int, length: int, *, vocab: int = 40, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Return random token ids and a mask of random lengths, at least 1, one of them the longest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = length
    return ids, (torch.arange(length) < lengths[:, None]).long()


def random_tags(batch: int, *, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Return multi-hot verbs and nouns, some rows without any, so few classes that some are shared."""
    generator = torch.Generator().manual_seed(seed)
    verbs = (torch.rand(batch, 6, generator=generator) < 0.3).long()
    nouns = (torch.rand(batch, 9, generator=generator) < 0.3).long()
    return verbs, nouns


def tags_of(count: int) -> Tags:
    """Return `random_tags` as the objectives take them."""
    verbs, nouns = random_tags(count)
    return Tags(verbs_BV=verbs, nouns_BO=nouns)


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters())
