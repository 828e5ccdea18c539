"""The layers that the transformers are built from: MLP, attention, stochastic depth, divided space-time attention.

In divided attention each patch attends, in time, to its own position in all frames and, in space, to its own frame.
Both include the CLS token, which attends to every token (Frozen in Time, section 3.1; HierVL, section 3.2).

Shapes in names: B batch, T frames, N patches of a frame, S = 1 + T·N tokens with CLS first, P = T·N patches,
D width, H heads, E width of a head, G groups of patches that attend to each other, L patches of a group, K = 1 + L
keys of a group, M = G·K keys of all groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Fused kernels work in tiles of 64 queries and 64 keys: several patch positions share a tile, see `packing`.
TILE = 64


class Mlp(nn.Module):
    """Two linear layers around an activation, by default an exact GELU, applied to every token."""

    def __init__(self, width: int, hidden: int, *, activation: str = "gelu") -> None:
        """`activation` is one of `ModelConfig.activation`."""
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return (B, S, D)."""
        hidden: Tensor = self.fc1(x_BSD)
        if self.activation == "quick_gelu":
            hidden = hidden * torch.sigmoid(1.702 * hidden)
        else:
            hidden = F.gelu(hidden, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        out_BSD: Tensor = self.fc2(hidden)
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

    def forward_first(self, x_BSD: Tensor) -> Tensor:
        """Return the first token's row of `forward`, (B, 1, D), without computing the other queries."""
        width = x_BSD.shape[-1]
        weight_q, weight_kv = self.qkv.weight.split([width, 2 * width])
        bias_q, bias_kv = (None, None) if self.qkv.bias is None else self.qkv.bias.split([width, 2 * width])
        q_B1HE = F.linear(x_BSD[:, :1], weight_q, bias_q).unflatten(-1, (self.heads, -1))
        k_BSHE, v_BSHE = F.linear(x_BSD, weight_kv, bias_kv).unflatten(-1, (2, self.heads, -1)).unbind(2)
        out_B1D: Tensor = self.proj(attend(q_B1HE, k_BSHE, v_BSHE).flatten(2))
        return out_B1D


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


class GroupMasks(NamedTuple):
    """Which keys may be attended to; None for all of them."""

    patches_LK: Tensor | None  # by the patches of a group: the keys are CLS, then the group's patches
    cls_1M: Tensor | None  # by CLS: the keys are those of all groups, each of which has its copy of CLS


class BlockMasks(NamedTuple):
    """The masks of a block's two attentions."""

    time: GroupMasks
    space: GroupMasks


def block_masks(frames: int, patches: int, device: torch.device) -> BlockMasks:
    """Return the masks for videos of `frames` frames of `patches` patches each."""
    packed = packing(frames, patches)
    return BlockMasks(
        time=GroupMasks(packing_mask(frames, packed, device), cls_mask(patches // packed, 1 + frames * packed, device)),
        space=GroupMasks(None, cls_mask(frames, 1 + patches, device)),
    )


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


def cls_mask(groups: int, keys: int, device: torch.device) -> Tensor | None:
    """Return which of the keys of all groups CLS attends to: every patch, and itself once, in the first group."""
    if groups == 1:
        return None
    key_M = torch.arange(groups * keys, device=device)
    return ((key_M % keys != 0) | (key_M == 0))[None]


class DividedAttention(nn.Module):
    """Attention of patches to their group and CLS, and of CLS to every token; subclasses define the groups.

    CLS is kept apart from the patches and joins each group before the linear layer, whose output then already has the
    keys and values of every group as the kernels take them: neither is ever copied. CLS passes the linear layer once a
    group instead of once, 0.5 % of a block's operations at the published size.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def group(self, x_BPD: Tensor, frames: int) -> Tensor:
        """Return the patches by group, (B, G, L, D)."""
        raise NotImplementedError

    def ungroup(self, x_BGLD: Tensor, frames: int) -> Tensor:
        """Undo `group` by a view with the patches in their order, in one dimension or several: (B, …, D)."""
        raise NotImplementedError

    def forward(self, cls_B1D: Tensor, patches_BPD: Tensor, frames: int, masks: GroupMasks) -> tuple[Tensor, Tensor]:
        """Return the attention of CLS (B, 1, D) and of the patches, as `ungroup` has them."""
        batch = cls_B1D.shape[0]
        patches_BGLD = self.group(for_products(patches_BPD), frames)
        cls_BG1D = for_products(cls_B1D)[:, None].expand(-1, patches_BGLD.shape[1], -1, -1)
        joined_BGKD = torch.cat([cls_BG1D, patches_BGLD], dim=2)
        q_BGKHE, k_BGKHE, v_BGKHE = self.qkv(joined_BGKD).unflatten(-1, (3, self.heads, -1)).unbind(3)
        own = attend(q_BGKHE[:, :, 1:].flatten(0, 1), k_BGKHE.flatten(0, 1), v_BGKHE.flatten(0, 1), masks.patches_LK)
        cls_B1HE = attend(q_BGKHE[:, 0, :1], k_BGKHE.flatten(1, 2), v_BGKHE.flatten(1, 2), masks.cls_1M)
        out_BGLD = self.proj(own.flatten(2)).unflatten(0, (batch, -1))
        return self.proj(cls_B1HE.flatten(2)), self.ungroup(out_BGLD, frames)

    def forward_cls(self, cls_B1D: Tensor, patches_BPD: Tensor) -> Tensor:
        """Return only the attention of CLS, (B, 1, D), without computing the other queries."""
        width = cls_B1D.shape[-1]
        weight_q, weight_kv = self.qkv.weight.split([width, 2 * width])
        bias_q, bias_kv = self.qkv.bias.split([width, 2 * width])
        q_B1HE = F.linear(cls_B1D, weight_q, bias_q).unflatten(-1, (self.heads, -1))
        tokens_BSD = torch.cat([for_products(cls_B1D), for_products(patches_BPD)], dim=1)
        k_BSHE, v_BSHE = F.linear(tokens_BSD, weight_kv, bias_kv).unflatten(-1, (2, self.heads, -1)).unbind(2)
        out_B1D: Tensor = self.proj(attend(q_B1HE, k_BSHE, v_BSHE).flatten(2))
        return out_B1D


class SpaceAttention(DividedAttention):
    """A group is a frame."""

    def group(self, x_BPD: Tensor, frames: int) -> Tensor:
        """Return a view of the patches by frame, (B, T, N, D)."""
        x_BTND: Tensor = x_BPD.unflatten(1, (frames, -1))
        return x_BTND

    def ungroup(self, x_BGLD: Tensor, frames: int) -> Tensor:
        """Return the patches by frame, as they are."""
        return x_BGLD


class TimeAttention(DividedAttention):
    """A group is a patch position in all frames, or several positions that `packing_mask` keeps apart."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.pairwise = False  # see `SpeedConfig.pairwise_time`

    def forward(self, cls_B1D: Tensor, patches_BPD: Tensor, frames: int, masks: GroupMasks) -> tuple[Tensor, Tensor]:
        """See `DividedAttention.forward`."""
        if self.pairwise:
            return self._forward_pairwise(cls_B1D, patches_BPD, frames)
        return super().forward(cls_B1D, patches_BPD, frames, masks)

    def group(self, x_BPD: Tensor, frames: int) -> Tensor:
        """Return groups of `packing` positions with all their frames, (B, N / packed, T·packed, D)."""
        packed = packing(frames, x_BPD.shape[1] // frames)
        by_frame: Tensor = x_BPD.unflatten(1, (frames, -1, packed))
        return by_frame.transpose(1, 2).flatten(2, 3)

    def ungroup(self, x_BGLD: Tensor, frames: int) -> Tensor:
        """Return a view of the patches by frame, group, and position in the group: (B, T, G, packed, D)."""
        by_frame: Tensor = x_BGLD.unflatten(2, (frames, -1))
        return by_frame.transpose(1, 2)

    def _forward_pairwise(self, cls_B1D: Tensor, patches_BPD: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, with each pair of frames written out instead of an attention kernel.

        No mask, no groups, no copy of CLS: T (T + 1) products of vectors, which a compiler fuses.
        """
        q_B1HE, k_B1HE, v_B1HE = self.qkv(cls_B1D).unflatten(-1, (3, self.heads, -1)).unbind(2)
        by_frame = self.qkv(patches_BPD).unflatten(1, (frames, -1)).unflatten(-1, (3, self.heads, -1))
        q_BTNHE, k_BTNHE, v_BTNHE = by_frame.unbind(3)
        scale = q_B1HE.shape[-1] ** -0.5
        products = [_dot(q_BTNHE, k_BTNHE[:, frame, None]) for frame in range(frames)]
        products.append(_dot(q_BTNHE, k_B1HE[:, None]))
        *weights, cls_weight = (torch.stack(products, dim=-1) * scale).softmax(dim=-1)[..., None].unbind(dim=-2)
        out_BTNHE = cls_weight * v_B1HE[:, None]
        for frame, weight in enumerate(weights):
            out_BTNHE = out_BTNHE + weight * v_BTNHE[:, frame, None]

        keys = _dot(q_B1HE, k_BTNHE.flatten(1, 2)), _dot(q_B1HE, k_B1HE)
        weight_BPH, weight_B1H = (torch.cat(keys, dim=1) * scale).softmax(dim=1).split([patches_BPD.shape[1], 1], dim=1)
        values_BPHE = weight_BPH[..., None] * v_BTNHE.flatten(1, 2)
        cls_B1HE = values_BPHE.sum(dim=1, keepdim=True) + weight_B1H[..., None] * v_B1HE
        dtype = v_B1HE.dtype
        out_BTND = self.proj(out_BTNHE.to(dtype).flatten(3))
        return self.proj(cls_B1HE.to(dtype).flatten(2)), out_BTND

    def initialise_as_zero(self) -> None:
        """Set the published initial weights: queries, keys and values are zero, and so is the output."""
        nn.init.zeros_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.ones_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)


def for_products(x: Tensor) -> Tensor:
    """Return a tensor in the type of autocast's matrix products, so that what is copied on the way there is small."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the products of vectors in the last dimension, summed in float32 or higher."""
    product = a * b
    return product.sum(dim=-1, dtype=torch.promote_types(product.dtype, torch.float32))
