"""Embeddings can be read from a feature set, if it is of these weights, frames and shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.embed import EmbedError, embed_split
from hiervl_train.checkpoint.open import open_checkpoint
from hiervl_train.models import HierVL
from tests.eval.embed.clips import CLIPS, SUMMARIES, embedded
from tests.eval.small import SETTINGS, save_small_checkpoint, small_dataset, small_model
from tests.hiervl_train.features.extraction import config_of, extract


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    small_dataset(folder / "shards")
    save_small_checkpoint(folder / "checkpoint", folder / "shards")
    for layer in ("projected", "tower"):
        extract(config_of(folder, name=layer, dtype="float32", extractor={"layer": layer}))
    return folder


@pytest.fixture
def model(made: Path) -> HierVL:
    return open_checkpoint(made / "checkpoint").model


@pytest.mark.parametrize("split", [CLIPS, SUMMARIES])
@pytest.mark.parametrize("layer", ["projected", "tower"])
def test_stored_embeddings_are_those_of_video(made: Path, model: HierVL, split: tuple[str, str], layer: str) -> None:
    expected = embedded(model, made / "shards", split)
    found = embedded(model, made / "shards", split, settings=replace(SETTINGS, features=layer))
    assert found.keys == expected.keys and found.encoded == 0 and found.vectors.shape == expected.vectors.shape
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
    some = embedded(
        model, made / "shards", split, settings=replace(SETTINGS, features=layer), keys=[*found.keys[3:1:-1], "absent"]
    )
    assert some.keys == found.keys[2:4]


def test_what_does_not_fit_the_model_or_the_settings_is_refused(made: Path, model: HierVL) -> None:
    def read(model: HierVL, **changes: object) -> None:
        embed_split(model, made / "shards", *SUMMARIES, replace(SETTINGS, **{"features": "tower", **changes}))

    with pytest.raises(EmbedError, match="extracted with other weights"):
        read(small_model(1))
    for name, value in (("frames", 3), ("windows", 2), ("window_seconds", 4.0)):
        with pytest.raises(EmbedError, match=f"sample.{name} = .* evaluated with {value}"):
            read(model, **{name: value})
    with pytest.raises(EmbedError, match="channel_order is bgr"):
        read(model, channel_order="bgr")
