"""HowTo100M: classifies long videos by a linear head on the pooled embedding of their windows.

With `freeze: [video, video_projection]` this is a linear probe; without, the whole video side is trained.

Shapes in names: B this rank's videos, K windows, T frames, C colours, H and W pixels, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.loading import ConfigError
from hiervl_train.collectives import all_gather, sum_over_ranks
from hiervl_train.distributed import DistributedContext
from hiervl_train.models import flops
from hiervl_train.models.config import ModelPart
from hiervl_train.models.finetuned import FineTuned
from hiervl_train.models.hiervl import HierVL
from hiervl_train.steps import Encoder, micro_batches
from hiervl_train.task import NO_SCOPE, Evaluate, Step, StepResult, StepScope
from hiervl_train.tasks.base import FinetuneTask
from hiervl_train.tasks.config import FinetuneConfig
from hiervl_train.tasks.labels import refuse, require_labels
from hiervl_train.tasks.pairs import graph_if, has_known_flops, passes
from hiervl_train.tokenizer import Tokenizer
from hiervl_train.transfer import to_device
from shards.companions import HowToLabels, read_companion
from shards.loader import Batch, Loader
from shards.sources import Source

TESTED = "val"  # the split that scores during the run are of
_TOP = (1, 5)  # k of top-k accuracy


class HowTo100M(FinetuneTask):
    """Long videos and their class numbers."""

    set_name = "howto100m"

    def __init__(self, config: FinetuneConfig, source: Source) -> None:
        self._config, self._source = config, source
        split = config.data.split
        source.dataset.split(self.set_name, split)  # a missing split is the first error to report
        labels = read_companion(source, self.set_name, split, HowToLabels)
        known = len(labels.classes) or 1 + max((video.label for video in labels.videos), default=0)
        self._classes = config.task.classes or known
        self._labels = self._checked(labels, split)
        require_labels(source, self.set_name, split, self._labels.keys())

    @property
    def parts(self) -> tuple[ModelPart, ...]:
        """See `FinetuneTask`."""
        video: tuple[ModelPart, ...] = ("video", "video_projection")
        return video if self._config.task.pooling == "mean" else (*video, "aggregator")

    @property
    def classes(self) -> int | None:
        """See `FinetuneTask`."""
        return self._classes

    def loader(self) -> Mapping[str, object]:
        """See `FinetuneTask`."""
        sample = self._config.sample
        windows = {"windows": sample.windows, "window_seconds": sample.window_seconds, "narrations": 1}
        return {"frames": sample.frames, **windows}

    def step(self, model: FineTuned, encoder: Encoder) -> Step:
        """See `FinetuneTask`. The loss is a mean over videos, so the losses of micro-batches add up."""
        self._require_room(model)

        def step(batch: Batch, scope: StepScope = NO_SCOPE) -> StepResult:
            video_BKTCHW = batch.video
            count, windows, frames = video_BKTCHW.shape[:3]
            labels_B = self._labels_of(batch, video_BKTCHW.device)
            loss = torch.zeros(1, device=video_BKTCHW.device)
            slices = micro_batches(count, self._config.schedule.micro_batch)
            for rows in slices:
                scope.phase("forward")
                logits_BC = self._logits(model, encoder, video_BKTCHW[rows])
                value = F.cross_entropy(logits_BC, labels_B[rows], reduction="sum") / count
                scope.phase("backward")
                with scope.last_backward() if rows is slices[-1] else nullcontext():
                    value.backward()
                loss += value.detach()
            operations = None
            if has_known_flops(model):
                clip = flops.clip(model.config, frames=frames, training=True)
                operations = count * windows * clip.video * passes(model.trains("video"))
            return StepResult(loss=all_gather(loss).mean(), clips=count * windows, flops=operations)

        return step

    def evaluate(self, encoder: Encoder) -> Evaluate | None:
        """Return what scores the head on the split `val`; raise `ShardError` where the dataset has none."""
        self._source.dataset.split(self.set_name, TESTED)
        labels = read_companion(self._source, self.set_name, TESTED, HowToLabels)
        truth = self._checked(labels, TESTED)
        require_labels(self._source, self.set_name, TESTED, truth.keys())

        def evaluate(model: HierVL, _: Tokenizer, context: DistributedContext) -> dict[str, float]:
            assert isinstance(model, FineTuned)
            return self._accuracy(model, encoder, truth, context)

        return evaluate

    def _accuracy(
        self, model: FineTuned, encoder: Encoder, truth: Mapping[str, int], context: DistributedContext
    ) -> dict[str, float]:
        """Return top-1 and top-5 accuracy in percent over the videos that can be decoded, each on one rank."""
        config, fields = self._config, dict(self.loader())
        settings = config.data.loader(
            global_batch=config.schedule.batch,
            workers=config.data.summary_workers,
            seed=config.run.seed,
            size=model.config.image_hw[0],
            **fields,
        )
        counts = {"videos": 0.0, **{f"top-{k}": 0.0 for k in _TOP}}
        with (
            torch.no_grad(),
            Loader(
                self._source, self.set_name, TESTED, settings, is_training=False, rank=context.rank, world=context.world
            ) as loader,
        ):
            for batch in loader:
                rows = [row for row, failures in enumerate(batch.failures) if not failures]
                if not rows:
                    continue
                video_BKTCHW = batch.video[rows].to(context.device)
                slices = micro_batches(len(rows), config.schedule.micro_batch)
                logits_BC = torch.cat([self._logits(model, encoder, video_BKTCHW[part]).cpu() for part in slices])
                labels_B1 = torch.tensor([truth[batch.keys[row]] for row in rows])[:, None]
                counts["videos"] += len(rows)
                for k in _TOP:
                    best_BK = logits_BC.topk(min(k, self._classes), dim=1).indices
                    counts[f"top-{k}"] += float((best_BK == labels_B1).any(dim=1).sum())
        total = sum_over_ranks(counts, context)
        if not total["videos"]:
            return {}
        return {f"{self.set_name}/head top-{k}": 100 * total[f"top-{k}"] / total["videos"] for k in _TOP}

    def _logits(self, model: FineTuned, encoder: Encoder, video_BKTCHW: Tensor) -> Tensor:
        count, windows = video_BKTCHW.shape[:2]
        with graph_if(model.trains("video", "video_projection")):
            x_BKD = encoder.video(video_BKTCHW.flatten(0, 1)).unflatten(0, (count, windows))
        pooled_BD = x_BKD.mean(dim=1) if self._config.task.pooling == "mean" else encoder.aggregate(x_BKD)
        return model.classify(pooled_BD)

    def _labels_of(self, batch: Batch, device: torch.device) -> Tensor:
        return to_device(torch.tensor([self._labels[key] for key in batch.keys]), device)

    def _checked(self, labels: HowToLabels, split: str) -> dict[str, int]:
        label_of = {video.key: video.label for video in labels.videos}
        refuse(
            f"{self.set_name}/{split} has labels that are not below {self._classes} classes",
            {key: label for key, label in label_of.items() if label >= self._classes},
            "raise task.classes, or build the shards with annotations.howto100m.num_classes",
        )
        return label_of

    def _require_room(self, model: FineTuned) -> None:
        """Raise `ConfigError` where the model's aggregator cannot pool the windows."""
        settings, windows = model.config.aggregator, self._config.sample.windows
        if self._config.task.pooling != "aggregator":
            return
        if settings is None:
            raise ConfigError("task.pooling = aggregator: the checkpoint has none; set task.pooling=mean")
        if settings.kind == "self_attention" and windows > settings.tokens:
            raise ConfigError(
                f"sample.windows = {windows} is more than the {settings.tokens} slots of the checkpoint's aggregator"
            )
