"""The aggregator: turns the embeddings of a summary's clips, or of its narrations, into one embedding.

Shapes in names: B batch, K embeddings to aggregate, D their width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiervl_train.models.config import AggregatorConfig
from hiervl_train.models.layers import DropPath, Mlp, SelfAttention, init_linear

EPS = 1e-5  # of every LayerNorm of the aggregator: torch's default, unlike the video tower's


class AggregatorBlock(nn.Module):
    """A pre-norm transformer block; its query, key and value projections have no bias."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = SelfAttention(width, heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BKD: Tensor) -> Tensor:
        """Return (B, K, D)."""
        x_BKD = x_BKD + self.drop_path(self.attn(self.norm1(x_BKD)))
        out_BKD: Tensor = x_BKD + self.drop_path(self.mlp(self.norm2(x_BKD)))
        return out_BKD


class SelfAttentionAggregator(nn.Module):
    """HierVL-SA: a transformer over ordered, unnormalised projections; its CLS token is the result."""

    def __init__(self, width: int, config: AggregatorConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.tokens, width))
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(AggregatorBlock(width, config.num_heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=EPS)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=config.position_std)
        self.apply(init_linear)

    def forward(self, x_BKD: Tensor) -> Tensor:
        """Return (B, D) of 1 to `tokens` embeddings; raise ValueError on any other number."""
        count, slots = x_BKD.shape[1], self.pos_embed.shape[1]
        if not 1 <= count <= slots:
            raise ValueError(f"cannot aggregate {count} embeddings: aggregator.tokens = {slots} position slots")
        # The CLS token takes no position.
        cls_B1D = self.cls_token.expand(x_BKD.shape[0], -1, -1)
        x_BKD = torch.cat([cls_B1D, x_BKD + self.pos_embed[:, :count]], dim=1)
        for block in self.blocks:
            x_BKD = block(x_BKD)
        out_BD: Tensor = self.norm(x_BKD[:, 0])
        return out_BD


class AverageAggregator(nn.Module):
    """HierVL-Avg: the mean of any number of unnormalised projections."""

    def forward(self, x_BKD: Tensor) -> Tensor:
        """Return the mean over K, (B, D)."""
        return x_BKD.mean(dim=1)


def build_aggregator(width: int, config: AggregatorConfig | None) -> nn.Module | None:
    """Return the configured aggregator, or None."""
    if config is None:
        return None
    if config.kind == "average":
        return AverageAggregator()
    return SelfAttentionAggregator(width, config)
