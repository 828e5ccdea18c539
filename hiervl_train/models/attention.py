"""Divided space-time attention: in time a patch sees its own position over the frames, in space its own frame.

Both see the CLS token too, and the CLS token sees every token (Frozen in Time, section 3.1; HierVL, section 3.2).

Shapes in names: B batch, T frames, N patches of a frame, S = 1 + T·N tokens with CLS first, P = T·N patches,
D width, H heads, E width of a head, G groups of patches that attend among themselves, L patches of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiervl_train.models.blocks import attend

# Fused kernels work in tiles of 64 queries and 64 keys: a few patch positions share a tile, see `packing`.
TILE = 64


def packing(frames: int, patches: int) -> int:
    """Return how many patch positions are put into one attention problem of time attention.

    A position has only `frames` queries, which would leave a tile of the fused kernels nearly empty: 14 positions
    of 4 frames fill one instead, at 1/14 of the tiles, and a mask keeps them apart. The result is the same.
    """
    fitting = max(1, (TILE - 1) // frames)
    return max(count for count in range(1, min(fitting, patches) + 1) if patches % count == 0)


def packing_mask(frames: int, packed: int, device: torch.device) -> Tensor | None:
    """Return which keys (CLS, then frame by frame the packed positions) each query may see; None where all."""
    if packed == 1:
        return None
    position_L = torch.arange(frames * packed, device=device) % packed
    same_LL = position_L[:, None] == position_L[None, :]
    return F.pad(same_LL, (1, 0), value=True)


class DividedAttention(nn.Module):
    """Attention of patches to their group and CLS, of CLS to everything; subclasses say what a group is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def group(self, x_BPHE: Tensor, frames: int) -> Tensor:
        """Return the patches as (G, L, H, E), G a multiple of B."""
        raise NotImplementedError

    def ungroup(self, x_GLHE: Tensor, batch: int, frames: int) -> Tensor:
        """Return what `group` made back as (B, P, H, E)."""
        raise NotImplementedError

    def forward(self, x_BSD: Tensor, frames: int, mask_LK: Tensor | None = None) -> Tensor:
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
        return self.proj(out_BSHE.flatten(2))

    def forward_cls(self, x_BSD: Tensor) -> Tensor:
        """Return only the CLS token's row of `forward`, (B, 1, D), computing no query but its own."""
        width = x_BSD.shape[-1]
        weight_q, weight_kv = self.qkv.weight.split([width, 2 * width])
        bias_q, bias_kv = self.qkv.bias.split([width, 2 * width])
        q_B1HE = F.linear(x_BSD[:, :1], weight_q, bias_q).unflatten(-1, (self.heads, -1))
        k_BSHE, v_BSHE = F.linear(x_BSD, weight_kv, bias_kv).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.proj(attend(q_B1HE, k_BSHE, v_BSHE).flatten(2))

    def _with_cls(self, x_BSHE: Tensor, frames: int) -> Tensor:
        grouped_GLHE = self.group(x_BSHE[:, 1:], frames)
        groups = grouped_GLHE.shape[0] // x_BSHE.shape[0]
        cls_G1HE = x_BSHE[:, :1, None].expand(-1, -1, groups, -1, -1).flatten(0, 2).unsqueeze(1)
        return torch.cat([cls_G1HE, grouped_GLHE], dim=1)


class SpaceAttention(DividedAttention):
    """A group is a frame."""

    def group(self, x_BPHE: Tensor, frames: int) -> Tensor:
        return x_BPHE.unflatten(1, (frames, -1)).flatten(0, 1)

    def ungroup(self, x_GLHE: Tensor, batch: int, frames: int) -> Tensor:
        return x_GLHE.unflatten(0, (batch, frames)).flatten(1, 2)


class TimeAttention(DividedAttention):
    """A group is a patch position over the frames, or several that `packing_mask` keeps apart."""

    def group(self, x_BPHE: Tensor, frames: int) -> Tensor:
        packed = packing(frames, x_BPHE.shape[1] // frames)
        return x_BPHE.unflatten(1, (frames, -1, packed)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def ungroup(self, x_GLHE: Tensor, batch: int, frames: int) -> Tensor:
        packed = x_GLHE.shape[1] // frames
        return x_GLHE.unflatten(0, (batch, -1)).unflatten(2, (frames, packed)).transpose(1, 2).flatten(1, 3)

    def start_as_nothing(self) -> None:
        """Set the published start: no query, key or value, so that the output is zero whatever comes in."""
        nn.init.zeros_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.ones_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
