"""EPIC-KITCHENS-100 multi-instance retrieval: compares clips with relevant sentences by an adaptive max-margin loss.

In each epoch a clip is paired with one random sentence of the split whose relevancy to it is above 0.1, or with its own
narration where there is none; the margin is proportional to that relevancy (EgoVLP, section 5).

Shapes in names: B this rank's clips, N those of all ranks, D embedding width, M sentences.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hiervl_train import losses
from hiervl_train.collectives import all_gather
from hiervl_train.models.finetuned import FineTuned
from hiervl_train.relevancy import Classes, Relevancy
from hiervl_train.steps import Encoder
from hiervl_train.task import NO_SCOPE, Step, StepResult, StepScope
from hiervl_train.tasks.base import FinetuneTask
from hiervl_train.tasks.config import FinetuneConfig
from hiervl_train.tasks.labels import require_labels
from hiervl_train.tasks.pairs import pair_step
from hiervl_train.transfer import to_device
from shards.companions import EpicLabels, EpicSentence, EpicVideo, read_companion
from shards.loader import Batch
from shards.sampling import KeyedRng
from shards.sources import Source


@dataclass(frozen=True, kw_only=True)
class ChosenSentence:
    """The text that a clip is paired with, and its relevancy to the clip."""

    text: str
    relevancy: float


class RelevantSentences:
    """Chooses a clip's sentence of an epoch from (seed, epoch, key) alone: the same on any rank, after any restart."""

    def __init__(self, labels: EpicLabels, *, above: float, seed: int) -> None:
        """Index the labels; sentences with a relevancy `above` are candidates.

        The relevancies of 67 thousand clips to 16 thousand sentences are computed row by row: they are 8.6 GB.
        """
        self._labels, self._above, self._seed = labels, above, seed
        self._rows: dict[str, list[int]] = {}  # two narrations of the same interval are one sample with two rows
        for row, video in enumerate(labels.videos):
            self._rows.setdefault(video.key, []).append(row)
        self._relevancy = Relevancy(_classes(labels.videos), _classes(labels.sentences))

    @property
    def keys(self) -> Collection[str]:
        """The clips that have labels."""
        return self._rows.keys()

    def choose(self, key: str, epoch: int) -> ChosenSentence:
        """Return the sentence of a clip in an epoch."""
        rng = KeyedRng(self._seed, epoch, key, "sentence")
        rows = self._rows[key]
        row = rows[rng.integer(len(rows))]
        relevancy_M = self._relevancy.rows_of([row])[0]
        positives = np.flatnonzero(relevancy_M > self._above)
        if not len(positives):
            return ChosenSentence(text=self._labels.videos[row].text, relevancy=1.0)
        number = int(positives[rng.integer(len(positives))])
        return ChosenSentence(text=self._labels.sentences[number].text, relevancy=float(relevancy_M[number]))


def margin_loss(video_BD: Tensor, text_BD: Tensor, relevancy_B: Tensor, *, margin: float) -> Tensor:
    """Return the adaptive max-margin loss of the global batch, the same on every rank, with exact gradients."""
    sim_NN = losses.similarity(all_gather(text_BD), all_gather(video_BD))
    return losses.adaptive_max_margin(sim_NN, all_gather(relevancy_B), margin=margin)


class EpicMir(FinetuneTask):
    """Clips and relevant sentences."""

    set_name = "epic_mir"

    def __init__(self, config: FinetuneConfig, source: Source) -> None:
        self._config = config
        split = config.data.split
        source.dataset.split(self.set_name, split)  # a missing split is the first error to report
        labels = read_companion(source, self.set_name, split, EpicLabels)
        self.sentences = RelevantSentences(labels, above=config.task.relevancy_above, seed=config.run.seed)
        require_labels(source, self.set_name, split, self.sentences.keys)

    def loader(self) -> Mapping[str, object]:
        """See `FinetuneTask`."""
        return {"frames": self._config.sample.frames}

    def step(self, model: FineTuned, encoder: Encoder) -> Step:
        """See `FinetuneTask`."""
        config = self._config

        def step(batch: Batch, scope: StepScope = NO_SCOPE) -> StepResult:
            video_BTCHW = batch.video
            chosen = [self.sentences.choose(key, batch.epoch) for key in batch.keys]
            relevancies = torch.tensor([sentence.relevancy for sentence in chosen])
            relevancy_B = to_device(relevancies, video_BTCHW.device)
            return pair_step(
                model,
                encoder,
                video_BTCHW,
                [sentence.text for sentence in chosen],
                lambda video_BD, text_BD: margin_loss(video_BD, text_BD, relevancy_B, margin=config.task.margin),
                micro_batch=config.schedule.micro_batch,
                scope=scope,
            )

        return step


def _classes(rows: Sequence[EpicVideo] | Sequence[EpicSentence]) -> Classes:
    return Classes.of([row.verb_class for row in rows], [row.noun_classes for row in rows])
