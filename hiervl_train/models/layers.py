"""The layers that the transformers are built from: MLP, attention, stochastic depth, divided space-time attention.

In divided attention each patch attends, in time, to its own position in all frames and, in space, to its own frame.
Both include the CLS token, which attends to every token (Frozen in Time, section 3.1; HierVL, section 3.2).

Shapes in names: B batch, T frames, N patches of a frame, S = 1 + T·N tokens with CLS first, P = T·N patches,
D width, H heads, E width of a head, G groups of patches that attend to each other, L patches of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Fused kernels work in tiles of 64 queries and 64 keys: several patch positions share a tile, see `packing`.
TILE = 64


class Mlp(nn.Module):
    """Two linear layers around an exact GELU, applied to every token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return (B, S, D)."""
        out_BSD: Tensor = self.fc2(F.gelu(self.fc1(x_BSD)))
        return out_BSD


class SelfAttention(nn.Module):
    """Multi-head attention of every token to every token."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return (B, S, D)."""
        q_BSHE, k_BSHE, v_BSHE = self.qkv(x_BSD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        out_BSD: Tensor = self.proj(attend(q_BSHE, k_BSHE, v_BSHE).flatten(2))
        return out_BSD


class DropPath(nn.Module):
    """Stochastic depth: in training, a sample's branch is dropped with probability `rate`, otherwise scaled up.

    The rate is a buffer rather than a number, so that blocks of different rates share one compiled graph.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return (B, S, D), in training with some samples zeroed and the others scaled by 1 / (1 − rate)."""
        if not self.training:
            return x_BSD
        kept = torch.rand((x_BSD.shape[0], 1, 1), device=x_BSD.device) < self.keep
        return x_BSD * (kept / self.keep).to(x_BSD.dtype)

    def extra_repr(self) -> str:
        """Return what `repr` shows of the rate."""
        return f"rate={self.rate:.3f}"


def attend(q_BSHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return scaled dot-product attention of tensors with the heads after the tokens, as linear layers give them."""
    out_BHSE = F.scaled_dot_product_attention(
        q_BSHE.transpose(1, 2), k_BSHE.transpose(1, 2), v_BSHE.transpose(1, 2), attn_mask=mask
    )
    return out_BHSE.transpose(1, 2)


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as timm's ViT does: truncated normal of deviation 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def packing(frames: int, patches: int) -> int:
    """Return how many patch positions are packed into one attention problem of time attention.

    A position has only `frames` queries, which would leave a tile of the fused kernels nearly empty. Packing 14
    positions of 4 frames fills one tile, at 1/14 of the tiles, and a mask keeps them apart. The result is the same.
    """
    fitting = max(1, (TILE - 1) // frames)
    return max(count for count in range(1, min(fitting, patches) + 1) if patches % count == 0)


def packing_mask(frames: int, packed: int, device: torch.device) -> Tensor | None:
    """Return which keys (CLS, then frame by frame the packed positions) each query may attend to; None for all."""
    if packed == 1:
        return None
    position_L = torch.arange(frames * packed, device=device) % packed
    same_LL = position_L[:, None] == position_L[None, :]
    return F.pad(same_LL, (1, 0), value=True)


class DividedAttention(nn.Module):
    """Attention of patches to their group and CLS, and of CLS to every token; subclasses define the groups."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def group(self, x_BPHE: Tensor, frames: int) -> Tensor:
        """Return the patches as (G, L, H, E), G a multiple of B."""
        raise NotImplementedError

    def ungroup(self, x_GLHE: Tensor, batch: int, frames: int) -> Tensor:
        """Undo `group`: return (B, P, H, E)."""
        raise NotImplementedError

    def forward(self, x_BSD: Tensor, frames: int, mask_LK: Tensor | None = None) -> Tensor:
        """Return (B, S, D); `mask_LK` says which keys (CLS first) queries of a group may attend to, None for all."""
        batch = x_BSD.shape[0]
        q_BSHE, k_BSHE, v_BSHE = self.qkv(x_BSD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        cls_B1HE = attend(q_BSHE[:, :1], k_BSHE, v_BSHE)
        patches_GLHE = attend(
            self.group(q_BSHE[:, 1:], frames),
            self._with_cls(k_BSHE, frames),
            self._with_cls(v_BSHE, frames),
            mask_LK,
        )
        out_BSHE = torch.cat([cls_B1HE, self.ungroup(patches_GLHE, batch, frames)], dim=1)
        out_BSD: Tensor = self.proj(out_BSHE.flatten(2))
        return out_BSD

    def forward_cls(self, x_BSD: Tensor) -> Tensor:
        """Return only the CLS token's row of `forward`, (B, 1, D), without computing the other queries."""
        width = x_BSD.shape[-1]
        weight_q, weight_kv = self.qkv.weight.split([width, 2 * width])
        bias_q, bias_kv = self.qkv.bias.split([width, 2 * width])
        q_B1HE = F.linear(x_BSD[:, :1], weight_q, bias_q).unflatten(-1, (self.heads, -1))
        k_BSHE, v_BSHE = F.linear(x_BSD, weight_kv, bias_kv).unflatten(-1, (2, self.heads, -1)).unbind(2)
        out_B1D: Tensor = self.proj(attend(q_B1HE, k_BSHE, v_BSHE).flatten(2))
        return out_B1D

    def _with_cls(self, x_BSHE: Tensor, frames: int) -> Tensor:
        grouped_GLHE = self.group(x_BSHE[:, 1:], frames)
        groups = grouped_GLHE.shape[0] // x_BSHE.shape[0]
        cls_G1HE = x_BSHE[:, :1, None].expand(-1, -1, groups, -1, -1).flatten(0, 2).unsqueeze(1)
        return torch.cat([cls_G1HE, grouped_GLHE], dim=1)


class SpaceAttention(DividedAttention):
    """A group is a frame."""

    def group(self, x_BPHE: Tensor, frames: int) -> Tensor:
        """Return the patches of each frame, (B·T, N, H, E)."""
        x_BTNHE: Tensor = x_BPHE.unflatten(1, (frames, -1))
        return x_BTNHE.flatten(0, 1)

    def ungroup(self, x_GLHE: Tensor, batch: int, frames: int) -> Tensor:
        """Undo `group`: return (B, P, H, E)."""
        x_BTNHE: Tensor = x_GLHE.unflatten(0, (batch, frames))
        return x_BTNHE.flatten(1, 2)


class TimeAttention(DividedAttention):
    """A group is a patch position in all frames, or several positions that `packing_mask` keeps apart."""

    def group(self, x_BPHE: Tensor, frames: int) -> Tensor:
        """Return groups of `packing` positions with all their frames, (B·N / packed, T·packed, H, E)."""
        packed = packing(frames, x_BPHE.shape[1] // frames)
        by_frame: Tensor = x_BPHE.unflatten(1, (frames, -1, packed))
        return by_frame.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def ungroup(self, x_GLHE: Tensor, batch: int, frames: int) -> Tensor:
        """Undo `group`: return (B, P, H, E)."""
        packed = x_GLHE.shape[1] // frames
        by_group: Tensor = x_GLHE.unflatten(0, (batch, -1)).unflatten(2, (frames, packed))
        return by_group.transpose(1, 2).flatten(1, 3)

    def initialise_as_zero(self) -> None:
        """Set the published initial weights: queries, keys and values are zero, and so is the output."""
        nn.init.zeros_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.ones_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
