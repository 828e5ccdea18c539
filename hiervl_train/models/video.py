"""The video tower: a ViT over the patches of all frames, with divided space-time attention.

Shapes in names: B batch, T frames, C colours, H and W pixels, N patches of a frame, P = T·N patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiervl_train.models.config import ModelConfig
from hiervl_train.models.layers import (
    BlockMasks,
    Mlp,
    SpaceAttention,
    TimeAttention,
    block_masks,
    for_products,
    init_linear,
)

EPS = 1e-6  # of every LayerNorm of the tower, as in the ViT that it is initialised from


class SpaceTimeBlock(nn.Module):
    """Time attention, then space attention on its sum with the input, then an MLP.

    The residual is `x + s`, not `x + t + s`: time enters the stream only through space (Frozen in Time).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = SpaceAttention(width, heads)
        self.timeattn = TimeAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, 4 * width)
        self.norm3 = nn.LayerNorm(width, eps=EPS)

    def forward(
        self, cls_B1D: Tensor, patches_BPD: Tensor, frames: int, masks: BlockMasks, cls_only: bool
    ) -> tuple[Tensor, Tensor]:
        """Return CLS (B, 1, D) and the patches (B, P, D); with `cls_only` the patches come back as they are."""
        time_cls, time_patches = self.timeattn(self.norm3(cls_B1D), self.norm3(patches_BPD), frames, masks.time)
        timed_cls = self.norm1(cls_B1D + time_cls)
        timed_patches = self.norm1(_add(patches_BPD, time_patches))
        if cls_only:
            cls_B1D = cls_B1D + self.attn.forward_cls(timed_cls, timed_patches)
            return cls_B1D + self.mlp(self.norm2(cls_B1D)), patches_BPD
        space_cls, space_patches = self.attn(timed_cls, timed_patches, frames, masks.space)
        cls_B1D, patches_BPD = cls_B1D + space_cls, _add(patches_BPD, space_patches)
        cls_B1D = cls_B1D + self.mlp(self.norm2(cls_B1D))
        return cls_B1D, patches_BPD + self.mlp(self.norm2(patches_BPD))


def _add(patches_BPD: Tensor, attended: Tensor) -> Tensor:
    """Return patches with what `DividedAttention` gives for them, a view of any strides, (B, P, D)."""
    total: Tensor = patches_BPD.unflatten(1, attended.shape[1:-1]) + attended
    return total.flatten(1, -2)


class PatchEmbed(nn.Module):
    """Splits frames into patches and projects each one."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, video_BTCHW: Tensor) -> Tensor:
        """Return the patch embeddings of all frames, (B, T·N, D), frame by frame."""
        batch, frames = video_BTCHW.shape[:2]
        grid: Tensor = self.proj(video_BTCHW.flatten(0, 1))
        patches_BTND: Tensor = grid.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))
        return patches_BTND.flatten(1, 2)


class VideoTower(nn.Module):
    """Video → its CLS token. A new tower has a new ViT's weights, and time attention whose output is zero."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.bf16_residual = False
        width = config.embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.patches, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.patch_embed = PatchEmbed(config.patch_size, width)
        self.blocks = nn.ModuleList(SpaceTimeBlock(width, config.num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, TimeAttention):
                module.initialise_as_zero()

    def forward(self, video_BTCHW: Tensor) -> Tensor:
        """Return the normalised CLS token, (B, D), for T from 1 to the number of temporal slots.

        Raises TypeError on integer frames and ValueError on any other shape.
        """
        require_video(self.config, video_BTCHW)
        frames = video_BTCHW.shape[1]
        cls_B1D, patches_BPD = self._embed(video_BTCHW)
        if self.bf16_residual:
            cls_B1D, patches_BPD = for_products(cls_B1D), for_products(patches_BPD)
        masks = block_masks(frames, self.config.patches, cls_B1D.device)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            arguments = (cls_B1D, patches_BPD, frames, masks, index == last)
            if self.checkpoint_activations and torch.is_grad_enabled():
                cls_B1D, patches_BPD = checkpoint(block, *arguments, use_reentrant=False)
            else:
                cls_B1D, patches_BPD = block(*arguments)
        out_BD: Tensor = self.norm(cls_B1D[:, 0])
        return out_BD

    def _embed(self, video_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return CLS (B, 1, D) and the patches (B, P, D) with their positions."""
        batch, frames = video_BTCHW.shape[:2]
        patches_BPD = self.patch_embed(video_BTCHW)
        # Position 0 is the CLS token's; a patch adds its position in the frame and its frame's position.
        space_N = self.pos_embed[:, None, 1:]
        time_T = self.temporal_embed[:, :frames, None]
        cls_B1D = (self.cls_token + self.pos_embed[:, :1]).repeat(batch, 1, 1)  # laid out as blocks give it: one graph
        # Under autocast the patches are bfloat16 and the positions float32: the residual stream is float32.
        return cls_B1D, patches_BPD + (space_N + time_T).flatten(1, 2)


def require_video(config: ModelConfig, video_BTCHW: Tensor) -> None:
    """Raise TypeError on integer frames, and ValueError on frames of another size or number than the model has."""
    if not video_BTCHW.is_floating_point():
        raise TypeError(f"video is {video_BTCHW.dtype}: pass it through hiervl_train.models.pixels.normalise first")
    height, width = config.image_hw
    if video_BTCHW.ndim != 5 or tuple(video_BTCHW.shape[2:]) != (3, height, width):
        raise ValueError(
            f"video is {tuple(video_BTCHW.shape)}, expected (batch, frames, 3, {height}, {width}) for "
            f"img_size = {config.img_size}"
        )
    frames = video_BTCHW.shape[1]
    if not 1 <= frames <= config.num_frames:
        raise ValueError(
            f"video has {frames} frames and the model num_frames = {config.num_frames} temporal slots; "
            "load the checkpoint with a configuration of more slots (new ones start at zero)"
        )
