"""Where a new model's weights come from: an ImageNet ViT of timm, a pretrained text encoder, another checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hiervl_train.torchvision_ops  # noqa: F401  before timm
from hiervl_train.models import released
from hiervl_train.models.config import InitConfig
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.released import CheckpointError
from hiervl_train.models.storage import LoadReport, load_into, read_safetensors
from hiervl_train.models.text import load_pretrained, missing
from hiervl_train.models.video import VideoTower

# In a timm ViT and of no use here: its classifier.
CLASSIFIER = ("head.", "fc_norm.", "pre_logits.")


def initialise(model: HierVL, config: InitConfig, init_from: Path | None = None) -> list[LoadReport]:
    """Fill a new model with the weights that the configuration names; return a report for each source.

    A checkpoint in `init_from` gives everything (the aggregator excepted where it has none), and then neither
    the image nor the text weights are looked for.
    """
    reports = []
    if init_from is not None:
        reports.append(load_into(model, init_from))
    else:
        if config.video is not None:
            reports.append(load_vit(model.video, config.video))
        if config.text is not None:
            reports.append(load_text(model.text.encoder, config.text))
    for report in reports:
        report.log()
    return reports


def vit_sizes(name: str) -> dict[str, int]:
    """Return patch_size, embed_dim, depth and num_heads of a timm ViT by its name, without making its weights."""
    with torch.device("meta"):
        vit = _create(name, pretrained=False)
    patch_height, patch_width = vit.patch_embed.patch_size
    if patch_height != patch_width:
        raise ValueError(f"vit = {name}: patches of {patch_height}×{patch_width} are not square")
    heads = vit.blocks[0].attn.num_heads
    return {"patch_size": patch_height, "embed_dim": vit.embed_dim, "depth": len(vit.blocks), "num_heads": heads}


def load_vit(tower: VideoTower, source: str) -> LoadReport:
    """Start the video tower from a timm ViT, by name or from a file of its weights.

    Time attention, its norm and the temporal positions keep their start as nothing. Positions are resampled to
    the tower's grid where the image sizes differ.
    """
    theirs = _read_vit(source)
    ours = tower.state_dict()
    kept = {name: tensor for name, tensor in theirs.items() if not name.startswith(CLASSIFIER)}
    strange = [f"{name} has no place in a plain ViT" for name in kept if name not in ours]
    fresh = [name for name in ours if name not in kept]
    strange += [f"missing {name}" for name in fresh if not _of_time(name)]
    resized = []
    if not strange and kept["pos_embed"].shape != ours["pos_embed"].shape:
        kept["pos_embed"] = _resample(kept["pos_embed"], tower.config.grid_hw)
        resized = [f"pos_embed to a grid of {tower.config.grid_hw} patches"]
    strange += [
        f"{name} has shape {tuple(tensor.shape)} instead of {tuple(ours[name].shape)}"
        for name, tensor in kept.items()
        if name in ours and tensor.shape != ours[name].shape
    ]
    if strange:
        raise CheckpointError.of(source, strange)
    tower.load_state_dict(kept, strict=False)  # `fresh` is reported
    ignored = tuple(name for name in theirs if name not in kept)
    return LoadReport(path=Path(source), ignored=ignored, fresh=tuple(fresh), resized=tuple(resized))


def load_text(encoder: nn.Module, source: str) -> LoadReport:
    """Start the text encoder from a pretrained one of the same architecture and size."""
    theirs, ours = load_pretrained(source).state_dict(), encoder.state_dict()
    wrong = [f"missing {name}" for name in ours if name not in theirs]
    wrong += [
        f"{name} has shape {tuple(theirs[name].shape)} instead of {tuple(ours[name].shape)}"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    if wrong:
        raise CheckpointError.of(source, wrong, hint="model.text describes another encoder")
    encoder.load_state_dict({name: theirs[name] for name in ours})
    return LoadReport(path=Path(source), ignored=tuple(name for name in theirs if name not in ours))


def _read_vit(source: str) -> dict[str, Tensor]:
    path = Path(source)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in {".pth", ".pt", ".bin"}:
        return released.state_dict(released.read(path), path)
    return dict(_create(source, pretrained=True).state_dict())


def _create(name: str, *, pretrained: bool) -> Any:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    # A tag after a dot names weights, which a bare architecture has none of.
    try:
        model = timm.create_model(name if pretrained else name.partition(".")[0], pretrained=pretrained)
    except OSError as error:
        raise missing("the weights of timm model", name, "init.video", error) from error
    except RuntimeError as error:
        raise ValueError(f"vit = {name}: timm cannot make it: {error}") from error
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{name} is a {type(model).__name__}, not a plain ViT of timm")
    return model


def _of_time(name: str) -> bool:
    return "timeattn." in name or "norm3." in name or name == "temporal_embed"


def _resample(positions_1SD: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(positions_1SD, list(grid_hw))
