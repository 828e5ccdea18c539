"""Long samples are embedded window by window and aggregated in temporal order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from eval.embed import aggregate_windows
from hiervl_train.models import HierVL
from hiervl_train.models.pixels import normalise
from shards.config import LoaderConfig
from shards.loader import Loader
from tests.eval.embed.clips import SUMMARIES, embedded
from tests.eval.small import SETTINGS


def test_windows_are_embedded_one_by_one_and_then_aggregated(root: Path, model: HierVL) -> None:
    found = embedded(model, root, SUMMARIES)
    assert found.vectors.shape == (5, 3, 8) and found.encoded == 15
    config = LoaderConfig(global_batch=5, workers=0, frames=2, windows=3, narrations=1, size=16)
    with Loader(root, *SUMMARIES, config, is_training=False) as loader, torch.no_grad():
        (batch,) = loader
        windows = model.encode_video(normalise(batch.video.flatten(0, 1))).unflatten(0, (5, 3))
        whole = model.aggregate(windows)
    np.testing.assert_allclose(found.vectors, windows.numpy(), atol=1e-5)
    ours = aggregate_windows(model, found.vectors, SETTINGS.speed, torch.device("cpu"))
    np.testing.assert_allclose(ours, whole.numpy(), atol=1e-5)
