"""EPIC-KITCHENS-100 multi-instance retrieval: clips against relevant sentences by an adaptive max-margin loss.

In each epoch a clip is shown with one random sentence of the split whose relevancy to it is above 0.1, or with its own
narration where there is none; the margin to be kept is in proportion to that relevancy (EgoVLP, section 5).

Shapes in names: B this rank's clips, N those of all ranks, D embedding width, M sentences, O noun classes.
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
from hiervl_train.steps import Encoder, StepResult
from hiervl_train.tasks.base import FinetuneTask, Step
from hiervl_train.tasks.config import FinetuneConfig
from hiervl_train.tasks.labels import require_labels
from hiervl_train.tasks.pairs import pair_step
from shards.companions import EPIC_NOUNS, EpicLabels, EpicSentence, EpicVideo, read_companion
from shards.loader import Batch
from shards.sampling import KeyedRng
from shards.sources import Source


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The text that a clip is shown with, and how relevant it is to the clip."""

    text: str
    relevancy: float


class RelevantSentences:
    """Chooses a clip's sentence of an epoch, from (seed, epoch, key) alone: the same on any rank, after any restart."""

    def __init__(self, labels: EpicLabels, *, above: float, seed: int) -> None:
        """Index the sentences by class; of 67 thousand clips × 16 thousand sentences no matrix is made."""
        self._rows: dict[str, list[EpicVideo]] = {}  # a stretch that two narrations name is one sample of two rows
        for video in labels.videos:
            self._rows.setdefault(video.key, []).append(video)
        self._sentences, self._above, self._seed = labels.sentences, above, seed
        self._verbs_M = np.array([sentence.verb_class for sentence in labels.sentences], np.int64)
        self._nouns_OM = np.zeros((EPIC_NOUNS, len(labels.sentences)), np.uint8)
        for number, sentence in enumerate(labels.sentences):
            self._nouns_OM[list(sentence.noun_classes), number] = 1
        self._counts_M = self._nouns_OM.sum(axis=0, dtype=np.int64)

    @property
    def keys(self) -> Collection[str]:
        """The clips that have labels."""
        return self._rows.keys()

    def relevancies(self, clip: EpicVideo | EpicSentence) -> np.ndarray:
        """Return the relevancy (M,) of all sentences to a clip: ([same verb class] + IoU of noun classes) / 2."""
        nouns = sorted(set(clip.noun_classes))
        shared_M = self._nouns_OM[nouns].sum(axis=0, dtype=np.int64)
        union_M = self._counts_M + len(nouns) - shared_M
        overlap_M = np.divide(shared_M, union_M, out=np.zeros(len(union_M)), where=union_M > 0)
        return ((self._verbs_M == clip.verb_class) + overlap_M) / 2

    def choose(self, key: str, epoch: int) -> Chosen:
        """Return the sentence of a clip in an epoch."""
        rng = KeyedRng(self._seed, epoch, key, "sentence")
        rows = self._rows[key]
        clip = rows[rng.integer(len(rows))]
        relevancy_M = self.relevancies(clip)
        positives = np.flatnonzero(relevancy_M > self._above)
        if not len(positives):
            return Chosen(text=clip.text, relevancy=1.0)
        number = int(positives[rng.integer(len(positives))])
        return Chosen(text=self._sentences[number].text, relevancy=float(relevancy_M[number]))


def margin_loss(video_BD: Tensor, text_BD: Tensor, relevancy_B: Tensor, *, margin: float) -> Tensor:
    """Return the adaptive max-margin loss of the global batch, the same on every rank, with exact gradients."""
    sim_NN = losses.similarity(all_gather(text_BD), all_gather(video_BD))
    return losses.adaptive_max_margin(sim_NN, all_gather(relevancy_B), margin=margin)


class EpicMir(FinetuneTask):
    """Clips against relevant sentences."""

    set_name = "epic_mir"

    def __init__(self, config: FinetuneConfig, source: Source) -> None:
        self._config = config
        split = config.data.split
        source.dataset.split(self.set_name, split)  # that it is there is the first question
        labels = read_companion(source, self.set_name, split, EpicLabels)
        self.sentences = RelevantSentences(labels, above=config.task.relevancy_above, seed=config.run.seed)
        require_labels(source, self.set_name, split, self.sentences.keys)

    def loader(self) -> Mapping[str, object]:
        """See `FinetuneTask`."""
        return {"frames": self._config.sample.frames}

    def step(self, model: FineTuned, encoder: Encoder) -> Step:
        """See `FinetuneTask`."""
        config = self._config

        def step(batch: Batch) -> StepResult:
            video_BTCHW = batch.video
            chosen: Sequence[Chosen] = [self.sentences.choose(key, batch.epoch) for key in batch.keys]
            relevancy_B = torch.tensor([one.relevancy for one in chosen]).to(video_BTCHW.device, non_blocking=True)
            return pair_step(
                model,
                encoder,
                video_BTCHW,
                [one.text for one in chosen],
                lambda video_BD, text_BD: margin_loss(video_BD, text_BD, relevancy_B, margin=config.task.margin),
                micro_batch=config.schedule.micro_batch,
            )

        return step
