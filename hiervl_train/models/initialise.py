"""Initialises a new model: from an ImageNet ViT of timm and a pretrained text encoder, or from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from hiervl_train.models.config import InitConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.joint import JointTower
from hiervl_train.models.pretrained import read_image_encoder
from hiervl_train.models.storage import LoadReport, read_weights
from hiervl_train.models.text import load_pretrained
from hiervl_train.models.video import VideoTower

# Prefixes of a timm ViT's classifier, which the tower does not have.
CLASSIFIER = ("head.", "fc_norm.", "pre_logits.")


def initialise(model: HierVL, config: InitConfig, init_from: Path | None = None) -> list[LoadReport]:
    """Load the configured weights into a new model; return a report for each source.

    A checkpoint in `init_from` replaces all other sources; the aggregator keeps its initial weights where the
    checkpoint has none. Raises `CheckpointError` and `MissingPretrained`.
    """
    reports = []
    if init_from is None and config.gain != 1:
        _enlarge(model, config)
    if init_from is not None:
        reports.append(model.load_weights(read_weights(init_from), may_be_fresh="aggregator."))
    else:
        if config.video is not None:
            reports.append(load_vit(model.video, config.video))
        if config.text is not None:
            reports.append(load_text(model.text.encoder, config.text))
    for report in reports:
        report.log()
    return reports


def _enlarge(model: HierVL, config: InitConfig) -> None:
    """Multiply by `gain` the matrices that no pretrained weights replace; time attention stays zero."""
    replaced = [name for name, source in (("video.", config.video), ("text.", config.text)) if source is not None]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not _of_time(name) and not name.startswith(tuple(replaced)):
            parameter.data *= config.gain


def load_vit(tower: VideoTower | JointTower, source: str) -> LoadReport:
    """Initialise the video tower from an image encoder: a timm ViT by name, a CLIP or SigLIP, or a file of weights.

    Time attention, its norm and the temporal positions keep their initial values. Positions are resampled to the
    tower's grid where the image sizes differ. Raises `CheckpointError`, by name, on tensors that do not fit.
    """
    encoder = read_image_encoder(source)
    theirs, ours = encoder.tensors, tower.state_dict()
    for key in ("style", "activation"):
        wanted = getattr(encoder, key)
        if wanted is not None and wanted != getattr(tower.config, key):
            raise CheckpointError(
                f"init.video = {source}: its {key} is {wanted}, and model.{key} is {getattr(tower.config, key)}; set "
                f"model.attention=joint and model.{key}={wanted}"
            )
    kept = {name: tensor for name, tensor in theirs.items() if not name.startswith(CLASSIFIER)}
    strange = [f"{name} is not in a plain ViT" for name in kept if name not in ours]
    fresh = [name for name in ours if name not in kept]
    strange += [f"missing {name}" for name in fresh if not _of_time(name)]
    resized = []
    if not strange and kept["pos_embed"].shape != ours["pos_embed"].shape:
        prefix = 0 if tower.cls_token is None else 1
        kept["pos_embed"] = _resample(kept["pos_embed"], tower.config.grid_hw, prefix)
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
    """Initialise the text encoder from a pretrained one of the same architecture and size; raise `CheckpointError`."""
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


def _of_time(name: str) -> bool:
    return "timeattn." in name or "norm3." in name or name == "temporal_embed"


def _resample(positions_1SD: Tensor, grid_hw: tuple[int, int], prefix: int) -> Tensor:
    from timm.layers.pos_embed import resample_abs_pos_embed

    resampled_1SD: Tensor = resample_abs_pos_embed(positions_1SD, list(grid_hw), num_prefix_tokens=prefix)
    return resampled_1SD
