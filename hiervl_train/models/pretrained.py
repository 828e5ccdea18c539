"""Reads image encoders to start a video tower from: timm's ViTs, CLIP and SigLIP of transformers and open_clip, files.

    vit_base_patch16_224.orig_in21k_ft_in1k            timm
    transformers:openai/clip-vit-base-patch16          a hub name or a local folder
    open_clip:ViT-B-16@laion2b_s34b_b88k               a model and its weights, a tag or a local file
    weights/vit.safetensors                            timm's names in a file

All come out with timm's names. CLIP and SigLIP normalise pixels in their own way; this is folded into the patch
embedding, so that a tower takes the pixels that all of our models take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiervl_train.models import released
from hiervl_train.models.errors import missing_pretrained
from hiervl_train.models.pixels import MEAN, STD
from hiervl_train.models.storage import read_safetensors

TRANSFORMERS, OPEN_CLIP = "transformers:", "open_clip:"
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Mean and deviation of the pixels that the weights expect, by style; ImageNet ViTs get ours, as published.
_PIXELS = {"clip": (_CLIP_MEAN, _CLIP_STD), "siglip": ((0.5,) * 3, (0.5,) * 3)}
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# A layer's part in transformers, and in open_clip → in timm.
_PARTS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """The weights of an image encoder by timm's names, and what the tower must be like; None where it is not known."""

    tensors: Mapping[str, Tensor]
    style: str | None = None  # `ModelConfig.style`
    activation: str | None = None  # `ModelConfig.activation`


def read_image_encoder(source: str) -> ImageEncoder:
    """Read an image encoder; raise `MissingPretrained`, `CheckpointError` or `ValueError` where it cannot be used."""
    path = Path(source)
    if source.startswith(TRANSFORMERS):
        return _with_pixels(_from_transformers(source.removeprefix(TRANSFORMERS)))
    if source.startswith(OPEN_CLIP):
        return _with_pixels(_from_open_clip(source.removeprefix(OPEN_CLIP)))
    if path.suffix == ".safetensors":
        return ImageEncoder(tensors=read_safetensors(path))
    if path.suffix in {".pth", ".pt", ".bin"}:
        return ImageEncoder(tensors=released.state_dict(released.read(path), path))
    from hiervl_train.models.timm_vit import create_vit  # imported late: timm takes seconds to import

    return _with_pixels(_of_timm(create_vit(source, pretrained=True)))


def _of_timm(vit: Any) -> ImageEncoder:
    style = "siglip" if vit.attn_pool is not None else "clip" if hasattr(vit.norm_pre, "weight") else "vit"
    return ImageEncoder(tensors=dict(vit.state_dict()), style=style, activation=_activation(vit.blocks[0].mlp.act))


def _activation(module: Any) -> str:
    name = type(module).__name__
    tanh = getattr(module, "approximate", "none") == "tanh" or name == "GELUTanh"
    return "gelu_tanh" if tanh else _ACTIVATIONS.get(name, "gelu")


def _from_transformers(name: str) -> ImageEncoder:
    from transformers import AutoConfig, CLIPVisionModel, SiglipVisionModel

    try:
        settings = AutoConfig.from_pretrained(name)
        kinds: dict[str, tuple[str, Any]] = {"clip": ("clip", CLIPVisionModel), "siglip": ("siglip", SiglipVisionModel)}
        kind = settings.model_type.removesuffix("_vision_model")
        if kind not in kinds:
            raise ValueError(f"init.video = {TRANSFORMERS}{name} is a {settings.model_type}, not a clip or siglip")
        style, model = kinds[kind][0], kinds[kind][1].from_pretrained(name)
    except OSError as error:
        raise missing_pretrained("the weights of image encoder", name, "init.video", error) from error
    state = {key.removeprefix("vision_model."): value for key, value in model.state_dict().items()}
    tensors = {
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        **_norms(state, {"pre_layrnorm": "norm_pre", "post_layernorm": "norm"}),
        **_blocks(state, "encoder.layers."),
    }
    if "embeddings.patch_embedding.bias" in state:
        tensors["patch_embed.proj.bias"] = state["embeddings.patch_embedding.bias"]
    if style == "clip":
        tensors["cls_token"] = state["embeddings.class_embedding"][None, None]
    else:
        tensors |= _siglip_head(state)
    return ImageEncoder(
        tensors=tensors, style=style, activation=_ACTIVATIONS.get(model.config.hidden_act, model.config.hidden_act)
    )


def _from_open_clip(name: str) -> ImageEncoder:
    try:
        import open_clip  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(
            f"init.video = {OPEN_CLIP}{name}: the package open_clip is not installed; run `pip install open_clip_torch`"
        ) from None
    architecture, _, weights = name.partition("@")
    try:
        visual = open_clip.create_model(architecture, pretrained=weights or None).visual
    except (OSError, RuntimeError) as error:
        raise missing_pretrained("the weights of open_clip model", name, "init.video", error) from error
    if hasattr(visual, "trunk"):
        return _of_timm(visual.trunk)
    state = dict(visual.state_dict())
    tensors = {
        "patch_embed.proj.weight": state["conv1.weight"],
        "cls_token": state["class_embedding"][None, None],
        "pos_embed": state["positional_embedding"][None],
        **_norms(state, {"ln_pre": "norm_pre", "ln_post": "norm"}),
        **_blocks(state, "transformer.resblocks."),
    }
    act = visual.transformer.resblocks[0].mlp.gelu
    return ImageEncoder(tensors=tensors, style="clip", activation=_activation(act))


def _norms(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    kinds = ("weight", "bias")
    return {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"]
        for theirs, ours in names.items()
        for kind in kinds
        if f"{theirs}.{kind}" in state
    }


def _blocks(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the transformer blocks; queries, keys and values become one matrix."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            continue
        number, _, rest = name.removeprefix(prefix).partition(".")
        part, _, kind = rest.rpartition(".")
        block = f"blocks.{number}."
        if part in _PARTS:
            found[f"{block}{_PARTS[part]}.{kind}"] = tensor
        elif part == "self_attn.q_proj":
            three = [state[f"{prefix}{number}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{block}attn.qkv.{kind}"] = torch.cat(three)
        elif part == "attn" and kind.startswith("in_proj_"):
            found[f"{block}attn.qkv.{kind.removeprefix('in_proj_')}"] = tensor
    return found


def _siglip_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {"attn_pool.latent": state["head.probe"]}
    for kind in ("weight", "bias"):
        joined = state[f"head.attention.in_proj_{kind}"]
        width = len(joined) // 3
        found[f"attn_pool.q.{kind}"], found[f"attn_pool.kv.{kind}"] = joined.split([width, 2 * width])
        found[f"attn_pool.proj.{kind}"] = state[f"head.attention.out_proj.{kind}"]
        found[f"attn_pool.norm.{kind}"] = state[f"head.layernorm.{kind}"]
        for layer in ("fc1", "fc2"):
            found[f"attn_pool.mlp.{layer}.{kind}"] = state[f"head.mlp.{layer}.{kind}"]
    return found


def _with_pixels(encoder: ImageEncoder) -> ImageEncoder:
    """Return an encoder whose patch embedding takes pixels that are normalised as ours are."""
    if encoder.style not in _PIXELS:
        return encoder
    mean, std = (torch.tensor(values) for values in _PIXELS[encoder.style])
    ours_mean, ours_std = torch.tensor(MEAN), torch.tensor(STD)
    weight = encoder.tensors["patch_embed.proj.weight"].float()
    bias = encoder.tensors.get("patch_embed.proj.bias", torch.zeros(len(weight)))
    # Theirs of a pixel are (ours · our_std + our_mean − mean) / std.
    shift = (weight * ((ours_mean - mean) / std)[:, None, None]).sum(dim=(1, 2, 3))
    folded = {
        "patch_embed.proj.weight": weight * (ours_std / std)[:, None, None],
        "patch_embed.proj.bias": bias + shift,
    }
    return ImageEncoder(tensors=dict(encoder.tensors) | folded, style=encoder.style, activation=encoder.activation)
