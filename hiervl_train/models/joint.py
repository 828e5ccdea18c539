"""The joint video tower: a plain ViT over the patches of all frames together, with positions in space and time (AVION).

Every token attends to every other by one unmasked attention, for which all fused kernels are made. In training a share
of the patches can be left out. The details of the ViT are those of the weights it starts from: ImageNet, CLIP, SigLIP.

Shapes in names: B batch, T frames, C colours, H and W pixels, N patches of a frame, P = T·N patches, S tokens (CLS, if
there is one, and the patches), D width, E width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiervl_train.models.config import ModelConfig
from hiervl_train.models.layers import Mlp, SelfAttention, attend, for_products, init_linear
from hiervl_train.models.video import PatchEmbed, require_video

EPS = {"vit": 1e-6, "clip": 1e-5, "siglip": 1e-6}  # of every LayerNorm, by `ModelConfig.style`


class JointBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, eps = config.embed_dim, EPS[config.style]
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SelfAttention(width, config.num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, 4 * width, activation=config.activation)

    def forward(self, x_BSD: Tensor, cls_only: bool) -> Tensor:
        """Return the block's output (B, S, D), or with `cls_only` only the CLS token's, (B, 1, D)."""
        normed_BSD = self.norm1(x_BSD)
        attended = self.attn.forward_first(normed_BSD) if cls_only else self.attn(normed_BSD)
        x_BSD = x_BSD[:, : attended.shape[1]] + attended
        out_BSD: Tensor = x_BSD + self.mlp(self.norm2(x_BSD))
        return out_BSD


class AttentionPool(nn.Module):
    """SigLIP's pooling: a learned query attends to all tokens, and an MLP follows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.heads = config.num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPS[config.style])
        self.mlp = Mlp(width, 4 * width, activation=config.activation)
        nn.init.trunc_normal_(self.latent, std=0.02)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return (B, D)."""
        q_B1HE = self.q(self.latent).unflatten(-1, (self.heads, -1)).expand(x_BSD.shape[0], -1, -1, -1)
        k_BSHE, v_BSHE = self.kv(x_BSD).unflatten(-1, (2, self.heads, -1)).unbind(2)
        pooled_B1D = self.proj(attend(q_B1HE, k_BSHE, v_BSHE).flatten(2))
        out_B1D: Tensor = pooled_B1D + self.mlp(self.norm(pooled_B1D))
        return out_B1D[:, 0]


class JointTower(nn.Module):
    """Video → one embedding: the CLS token, or with style `siglip` the pooled tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.bf16_residual = False
        width, eps = config.embed_dim, EPS[config.style]
        has_cls = config.style != "siglip"
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if has_cls else None
        self.pos_embed = nn.Parameter(torch.empty(1, int(has_cls) + config.patches, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.patch_embed = PatchEmbed(config.patch_size, width)
        self.norm_pre = nn.LayerNorm(width, eps=eps) if config.style == "clip" else nn.Identity()
        self.blocks = nn.ModuleList(JointBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.attn_pool = None if has_cls else AttentionPool(config)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_linear)

    def forward(self, video_BTCHW: Tensor) -> Tensor:
        """Return (B, D), for T from 1 to the number of temporal slots.

        Raises TypeError on integer frames and ValueError on any other shape.
        """
        require_video(self.config, video_BTCHW)
        x_BSD = self._embed(video_BTCHW)
        if self.bf16_residual:
            x_BSD = for_products(x_BSD)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            cls_only = index == last and self.attn_pool is None
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_BSD = checkpoint(block, x_BSD, cls_only, use_reentrant=False)
            else:
                x_BSD = block(x_BSD, cls_only)
        if self.attn_pool is not None:
            pooled_BD: Tensor = self.attn_pool(self.norm(x_BSD))
            return pooled_BD
        out_BD: Tensor = self.norm(x_BSD[:, 0])
        return out_BD

    def _embed(self, video_BTCHW: Tensor) -> Tensor:
        batch, frames = video_BTCHW.shape[:2]
        has_cls = self.cls_token is not None
        space_N = self.pos_embed[:, None, int(has_cls) :]
        time_T = self.temporal_embed[:, :frames, None]
        x_BSD = self._drop(self.patch_embed(video_BTCHW) + (space_N + time_T).flatten(1, 2))
        if self.cls_token is not None:
            cls_B1D = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
            x_BSD = torch.cat([cls_B1D, x_BSD], dim=1)
        out_BSD: Tensor = self.norm_pre(x_BSD)
        return out_BSD

    def _drop(self, patches_BPD: Tensor) -> Tensor:
        """Return, in training, a random share of each clip's patches (FLIP), all of them otherwise."""
        if not self.training or not self.config.patch_dropout:
            return patches_BPD
        batch, count, width = patches_BPD.shape
        kept = self.config.kept_patches(count)
        chosen_BP = torch.rand(batch, count, device=patches_BPD.device).topk(kept, dim=1).indices
        return patches_BPD.gather(1, chosen_BP[..., None].expand(-1, -1, width))
