"""The parts that both transformers of HierVL are built of: the MLP, plain attention and stochastic depth.

Shapes in names: B batch, S tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """Two linear layers around an exact GELU, applied to every token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BSD)))


class SelfAttention(nn.Module):
    """Multi-head attention of every token to every token."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        q_BSHE, k_BSHE, v_BSHE = self.qkv(x_BSD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(attend(q_BSHE, k_BSHE, v_BSHE).flatten(2))


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is left out with probability `rate`, else scaled up.

    The rate is a buffer rather than a number, so that blocks of different rates share one compiled graph.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        if not self.training:
            return x_BSD
        kept = torch.rand((x_BSD.shape[0], 1, 1), device=x_BSD.device) < self.keep
        return x_BSD * (kept / self.keep).to(x_BSD.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def attend(q_BSHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return scaled dot-product attention with the heads behind the tokens, as the linear layers leave them."""
    out_BHSE = F.scaled_dot_product_attention(
        q_BSHE.transpose(1, 2), k_BSHE.transpose(1, 2), v_BSHE.transpose(1, 2), attn_mask=mask
    )
    return out_BHSE.transpose(1, 2)


def init_linear(module: nn.Module) -> None:
    """Give a linear layer the initial weights of a timm ViT: truncated normal of 0.02, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
