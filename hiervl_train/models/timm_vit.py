"""Looks up timm's plain ViTs by name: their sizes and their weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from hiervl_train.models.errors import missing_pretrained


def vit_sizes(name: str) -> dict[str, int]:
    """Return patch_size, embed_dim, depth and num_heads of a timm ViT by its name, without allocating weights."""
    with torch.device("meta"):
        vit = create_vit(name, pretrained=False)
    patch_height, patch_width = vit.patch_embed.patch_size
    if patch_height != patch_width:
        raise ValueError(f"vit = {name}: patches of {patch_height}×{patch_width} are not square")
    first: Any = vit.blocks[0]
    return {
        "patch_size": patch_height,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": first.attn.num_heads,
    }


def create_vit(name: str, *, pretrained: bool) -> VisionTransformer:
    """Return a plain ViT of timm by name.

    Raises `ValueError` for an unknown or different architecture, `MissingPretrained` where its weights are neither
    cached nor downloadable.
    """
    # The tag after a dot names weights; an architecture without weights has none.
    try:
        model = timm.create_model(name if pretrained else name.partition(".")[0], pretrained=pretrained)
    except OSError as error:
        raise missing_pretrained("the weights of timm model", name, "init.video", error) from error
    except RuntimeError as error:
        raise ValueError(f"vit = {name}: timm cannot create it: {error}") from error
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{name} is a {type(model).__name__}, not a plain ViT of timm")
    return model
