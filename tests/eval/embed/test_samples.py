"""Each distinct sample is embedded once; an undecodable one is reported and nothing takes its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.embed import EmbedError, EmbedSettings
from hiervl_train.models import HierVL
from hiervl_train.models.pixels import normalise
from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.loader import Loader
from shards.order import OrderError
from tests.eval.embed.clips import CLIPS, embedded
from tests.shards.coded import overwrite_member


def test_every_clip_is_embedded_once_as_by_the_model_alone(root: Path, model: HierVL) -> None:
    reports: list[tuple[int, int]] = []
    found = embedded(model, root, progress=lambda done, of: reports.append((done, of)))
    assert found.keys == open_dataset(root).rows(*CLIPS, ["key"])["key"].to_pylist()
    assert found.encoded == 18 and not found.failed and reports[-1] == (18, 18)
    config = LoaderConfig(global_batch=1, workers=0, frames=2, size=16)
    with Loader(root, *CLIPS, config, is_training=False) as loader, torch.no_grad():
        alone = [model.encode_video(normalise(batch.video))[0] for batch in loader]
    np.testing.assert_allclose(found.vectors, torch.stack(alone).numpy(), atol=1e-5)


def test_keys_restrict_what_is_embedded(root: Path, model: HierVL) -> None:
    every = embedded(model, root)
    wanted = [every.keys[index] for index in (14, 3, 9)]
    some = embedded(model, root, keys=[*wanted, "absent_c1_000000"])
    assert some.keys == sorted(wanted, key=every.keys.index)
    assert some.encoded == 3
    np.testing.assert_allclose(some.vectors, every.vectors[[3, 9, 14]], atol=1e-6)
    assert embedded(model, root, keys=[]).keys == []
    with pytest.raises(OrderError, match="training always uses all"):
        Loader(root, *CLIPS, LoaderConfig(global_batch=2, workers=0), keys=wanted)


def test_an_undecodable_sample_has_a_reason_and_no_embedding(own_root: Path, model: HierVL) -> None:
    whole = embedded(model, own_root)
    overwrite_member(open_dataset(own_root), 1, 2, b"\0" * 64)
    broken = whole.keys[7 + 2]
    found = embedded(model, own_root)
    assert list(found.failed) == [broken]
    assert found.failed[broken] == "not an mp4: missing moov box"
    assert found.keys == [key for key in whole.keys if key != broken]
    np.testing.assert_array_equal(found.vectors, np.delete(whole.vectors, 9, axis=0))


def test_an_embedding_that_is_not_finite_counts_as_failed(root: Path, model: HierVL) -> None:
    model.video_projection.bias.data[0] = torch.nan
    found = embedded(model, root)
    assert not found.keys and len(found.failed) == 18
    assert set(found.failed.values()) == {"its embedding is not finite"}


def test_more_frames_than_the_model_has_slots_are_refused(root: Path, model: HierVL) -> None:
    with pytest.raises(EmbedError, match="frames = 5: the model has 4"):
        embedded(model, root, settings=EmbedSettings(frames=5))
