"""Training on features: the frozen towers' outputs are read, projections and aggregator are trained.

Shapes in names: B summaries or clips of this rank, K windows or narrations, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hiervl_train.config import PretrainConfig
from hiervl_train.data import DataError
from hiervl_train.features.towers import tower_hashes
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.speed import autocast
from hiervl_train.objectives import Tags, child_loss, parent_loss
from hiervl_train.steps import backward
from hiervl_train.task import NO_SCOPE, Step, StepResult, StepScope
from shards.features import FeatureSet, features_folder, open_features
from shards.features.reading import NARRATIONS, TEXT
from shards.loader import Batch
from shards.sources import open_source

VIDEO = "video"


class FeatureSteps:
    """The child and the parent step on features; each adds gradients to projections and aggregator."""

    def __init__(self, model: HierVL, config: PretrainConfig) -> None:
        self._model, self._config = model, config
        self.by_type: dict[str, Step] = {"child": self._child, "parent": self._parent}

    def _child(self, batch: Batch, scope: StepScope = NO_SCOPE) -> StepResult:
        """Compare clips with their narrations."""
        objective, tags = self._config.objective, Tags(verbs_BV=batch.verbs_BV, nouns_BO=batch.nouns_BO)
        found = batch.features

        def encode(rows: slice) -> tuple[Tensor, ...]:
            return self._video(found[VIDEO][rows])[:, 0], self._text(found[TEXT][rows])[:, 0]

        count = len(batch.keys)
        loss = backward([slice(0, count)], encode, lambda v, t: child_loss(v, t, tags, objective), scope)
        return StepResult(loss=loss, clips=count, flops=None)

    def _parent(self, batch: Batch, scope: StepScope = NO_SCOPE) -> StepResult:
        """Compare aggregated windows and aggregated narrations with the summary, as the objective says."""
        objective, tags = self._config.objective, Tags(verbs_BV=batch.verbs_BV, nouns_BO=batch.nouns_BO)
        found = batch.features
        has_narrations, has_summary = objective.parent != "video_to_summary", objective.parent != "video_to_narrations"

        def encode(rows: slice) -> tuple[Tensor, ...]:
            encoded = [self._video(found[VIDEO][rows])]
            encoded += [self._text(found[NARRATIONS][rows])] if has_narrations else []
            encoded += [self._text(found[TEXT][rows])[:, 0]] if has_summary else []
            return tuple(encoded)

        def loss(windows_BKD: Tensor, *texts: Tensor) -> Tensor:
            remaining = iter(texts)
            narrations_BKD = next(remaining) if has_narrations else None
            summary_BD = next(remaining) if has_summary else None
            return parent_loss(windows_BKD, narrations_BKD, summary_BD, tags, self._aggregate, objective)

        count, windows = found[VIDEO].shape[:2]
        value = backward([slice(0, count)], encode, loss, scope)
        return StepResult(loss=value, clips=count * windows, flops=None)

    def _video(self, features_BKD: Tensor) -> Tensor:
        with autocast(features_BKD.device, self._config.speed):
            out_BKD: Tensor = self._model.video_projection(features_BKD.float()).float()
        return out_BKD

    def _text(self, features_BKD: Tensor) -> Tensor:
        with autocast(features_BKD.device, self._config.speed):
            out_BKD: Tensor = self._model.text_projection(features_BKD.float().relu()).float()
        return out_BKD

    def _aggregate(self, x_BKD: Tensor) -> Tensor:
        with autocast(x_BKD.device, self._config.speed):
            return self._model.aggregate(x_BKD).float()


def freeze_towers(model: HierVL, config: PretrainConfig) -> None:
    """Freeze the towers that features replace; raise `DataError` where the features are not these towers' outputs."""
    if config.init_from is None:
        raise DataError("data.features needs init_from: the checkpoint that the features were extracted with")
    require_towers(_open(config), model, config)
    for tower in (model.video, model.text):
        tower.requires_grad_(False)


def require_towers(features: FeatureSet, model: HierVL, config: PretrainConfig) -> None:
    """Raise `DataError` unless the features are outputs of this model's towers, of what the configuration trains."""
    name, made_by = f"data.features = {config.data.features}", features.extractor
    if made_by.get("kind") != "towers" or made_by.get("layer") != "tower":
        raise DataError(
            f"{name}: made by {made_by.get('kind')}, layer {made_by.get('layer')}: training needs what the towers give "
            "before the projections; extract with --config configs/features/towers.yaml"
        )
    weights, own = made_by.get("weights"), tower_hashes(model, layer="tower")
    for part, value in own.items():
        if not isinstance(weights, Mapping) or weights.get(part) != value:
            raise DataError(
                f"{name}: extracted with other weights of the {part} tower than init_from = {config.init_from} has: "
                "extract features with that checkpoint, or start from the one that they are of"
            )
    objective, split = config.objective, config.data.split
    if objective.child is not None:
        for array in (VIDEO, TEXT):
            features.split("clips", split).spec(array)
    names: tuple[str, ...] = ("frames",)
    if objective.parent is not None:
        for array in (VIDEO, TEXT, NARRATIONS):
            features.split("summaries", split).spec(array)
        names = ("frames", "windows", "window_seconds")
    reads = made_by.get("reads") or {}
    for key in names:
        if reads.get(key) != getattr(config.sample, key):
            raise DataError(
                f"{name}: extracted with sample.{key} = {reads.get(key)}; the run has {getattr(config.sample, key)}"
            )


def _open(config: PretrainConfig) -> FeatureSet:
    source = open_source(config.data.root, config.data.source)
    return open_features(features_folder(source.dataset, str(config.data.features)))
