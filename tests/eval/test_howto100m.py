"""HowTo100M's accuracies, from shards to a result, agree with classifying everything one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.embed import EmbedSettings, aggregate_windows, embed_split
from eval.metrics.probe import fit_probe
from hiervl_train.checkpoint.open import open_checkpoint
from shards.companions import HowToLabels, read_companion
from tests.eval.byhand import texts_by_hand, unit
from tests.eval.conftest import Evaluation


def test_long_videos_are_classified_by_class_name_and_by_a_probe_of_the_training_split(
    evaluated: Evaluation, checkpoint: Path, embedded: Path
) -> None:
    result, values = evaluated.result("howto100m"), evaluated.values("howto100m")
    labels = read_companion(embedded, "howto100m", "val", HowToLabels)
    train_labels = read_companion(embedded, "howto100m", "train", HowToLabels)
    opened = open_checkpoint(checkpoint)
    settings = EmbedSettings(frames=2, windows=3, micro_batch=8)
    val, train = (embed_split(opened.model, embedded, "howto100m", split, settings) for split in ("val", "train"))
    assert val is not None and train is not None
    truth = np.array([video.label for video in labels.videos])
    windows = val.vectors[[val.index[video.key] for video in labels.videos]]
    whole = aggregate_windows(opened.model, windows, settings.speed, torch.device("cpu"))
    predicted = (unit(whole) @ unit(texts_by_hand(checkpoint, labels.classes)).T).argmax(axis=1)
    assert values["zero-shot top-1"] == pytest.approx(100 * (predicted == truth).mean())
    pooled = train.vectors[[train.index[video.key] for video in train_labels.videos]].mean(axis=1)
    train_truth = [video.label for video in train_labels.videos]
    probe = fit_probe(pooled, train_truth, len(labels.classes), penalty=1e-3, steps=200)
    predicted = probe.scores(windows.mean(axis=1)).argmax(axis=1)
    assert values["linear probe top-1"] == pytest.approx(100 * (predicted == truth).mean())
    chance = {score.name: score.chance for score in result.scores}
    assert chance["zero-shot top-1"] == pytest.approx(100 / len(labels.classes))
    assert chance["linear probe top-5"] == pytest.approx(min(500 / len(labels.classes), 100))
    assert result.confusion is not None and np.sum(result.confusion.counts) == len(truth)
