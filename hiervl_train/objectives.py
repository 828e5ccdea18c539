"""Computes the configured loss of the global batch from the embeddings of this rank's batch.

Both losses gather over ranks with exact gradients, return the same value on every rank, and can be passed to
`grad_cache.cached_backward`. Shapes in names: B this rank's batch, K windows or narrations of a
summary, D embedding width, V verb classes, O noun classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from hiervl_train import losses
from hiervl_train.collectives import all_gather
from hiervl_train.losses import ParentObjective

ChildObjective = Literal["egonce", "info_nce"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Which losses are trained; null leaves a level out."""

    child: ChildObjective | None = "egonce"  # clip-level loss: clips against narrations; null: no child steps
    parent: ParentObjective | None = "both"  # summary-level loss: which pairs are contrasted; null: no parent steps
    temperature: PositiveFloat = 0.05  # of both losses

    def __post_init__(self) -> None:
        if self.child is None and self.parent is None:
            raise ValueError("child and parent are both null: there is nothing to train")


@dataclass(frozen=True, kw_only=True)
class Tags:
    """The verb and noun classes of a batch's narrations (or summaries), multi-hot."""

    verbs_BV: Tensor
    nouns_BO: Tensor

    def positives(self) -> Tensor:
        """Return which pairs of the global batch share a verb and a noun; the diagonal always does."""
        return losses.tag_positives(all_gather(self.verbs_BV), all_gather(self.nouns_BO))


def child_loss(video_BD: Tensor, text_BD: Tensor, tags: Tags, config: ObjectiveConfig) -> Tensor:
    """Return the clip-level loss of the global batch."""
    sim_NN = losses.similarity(all_gather(text_BD), all_gather(video_BD))
    if config.child == "egonce":
        return losses.egonce(sim_NN, tags.positives(), temperature=config.temperature)
    if config.child == "info_nce":
        return losses.info_nce(sim_NN, temperature=config.temperature)
    raise ValueError("objective.child is null: this configuration has no clip-level steps")


def parent_loss(
    windows_BKD: Tensor,
    narrations_BKD: Tensor | None,
    summary_BD: Tensor | None,
    tags: Tags,
    aggregate: Callable[[Tensor], Tensor],
    config: ObjectiveConfig,
) -> Tensor:
    """Return the summary-level loss of the global batch; the tags are the summaries' own.

    `aggregate` is the model's. Narrations or summaries that the objective does not use may be None.
    """
    if config.parent is None:
        raise ValueError("objective.parent is null: this configuration has no summary-level steps")
    narrations_BD = None if narrations_BKD is None else aggregate(narrations_BKD)
    return losses.parent_loss(
        all_gather(aggregate(windows_BKD)),
        None if narrations_BD is None else all_gather(narrations_BD),
        None if summary_BD is None else all_gather(summary_BD),
        tags.positives(),
        objective=config.parent,
        temperature=config.temperature,
    )
