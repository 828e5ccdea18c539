"""Charades-Ego: compares action segments with their texts by InfoNCE.

Only a segment's own text is its positive: where two segments of a batch show the same action, each is a negative of
the other, as published. Shapes in names: B this rank's segments, N those of all ranks, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hiervl_train import losses
from hiervl_train.collectives import all_gather
from hiervl_train.models.finetuned import FineTuned
from hiervl_train.steps import Encoder
from hiervl_train.task import NO_SCOPE, Step, StepResult, StepScope
from hiervl_train.tasks.base import FinetuneTask
from hiervl_train.tasks.config import FinetuneConfig
from hiervl_train.tasks.labels import column, refuse
from hiervl_train.tasks.pairs import pair_step
from shards.loader import Batch
from shards.sources import Source


class CharadesEgo(FinetuneTask):
    """Action segments and their texts."""

    set_name = "charades_ego"

    def __init__(self, config: FinetuneConfig, source: Source) -> None:
        self._config = config
        split = config.data.split
        whole_videos = {key: action for key, action in column(source, self.set_name, split, "action") if action == -1}
        refuse(
            f"{self.set_name}/{split} has whole videos, not action segments",
            whole_videos,
            "set data.split to the split of segments, train",
        )

    def loader(self) -> Mapping[str, object]:
        """See `FinetuneTask`."""
        return {"frames": self._config.sample.frames}

    def step(self, model: FineTuned, encoder: Encoder) -> Step:
        """See `FinetuneTask`."""
        config = self._config

        def loss(video_BD: Tensor, text_BD: Tensor) -> Tensor:
            sim_NN = losses.similarity(all_gather(text_BD), all_gather(video_BD))
            return losses.info_nce(sim_NN, temperature=config.task.temperature)

        def step(batch: Batch, scope: StepScope = NO_SCOPE) -> StepResult:
            micro_batch = config.schedule.micro_batch
            return pair_step(model, encoder, batch.video, batch.texts, loss, micro_batch=micro_batch, scope=scope)

        return step
