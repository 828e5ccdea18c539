"""Embeddings are cached by everything that affects them; a damaged entry is computed again."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.embed import EmbedError
from hiervl_train.models import HierVL
from hiervl_train.models.speed import SpeedConfig
from tests.eval.embed.clips import CLIPS, SUMMARIES, embedded
from tests.eval.small import SETTINGS, small_model


def test_cached_embeddings_are_not_computed_again(root: Path, model: HierVL, tmp_path: Path) -> None:
    first = embedded(model, root, cache=tmp_path, digest="a")
    again = embedded(model, root, cache=tmp_path, digest="a")
    assert (first.encoded, again.encoded) == (18, 0)
    assert again.keys == first.keys
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert not list(tmp_path.rglob("part-*")), "parts are removed once all rows are cached"


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 3},
        {"channel_order": "bgr"},
        {"micro_batch": 5},
        {"speed": SpeedConfig(bf16=True, compile=False)},
        {"windows": 2},
        {"window_seconds": 4.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_that_affects_embeddings_is_part_of_the_cache_key(
    root: Path, model: HierVL, tmp_path: Path, change: dict[str, object]
) -> None:
    split = SUMMARIES if change.keys() & {"windows", "window_seconds"} else CLIPS
    before = embedded(model, root, split, cache=tmp_path, digest="a")
    after = embedded(model, root, split, cache=tmp_path, digest="a", settings=replace(SETTINGS, **change))
    assert after.encoded
    if change.keys() & {"frames", "speed", "window_seconds"}:  # coded clips are grey
        assert not np.array_equal(before.vectors, after.vectors)


def test_the_cache_key_has_the_checkpoint_and_the_withdrawn_videos(
    own_root: Path, model: HierVL, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    embedded(model, own_root, cache=cache, digest="a")
    assert embedded(small_model(1), own_root, cache=cache, digest="b").encoded == 18
    (own_root / "denylist.txt").write_text("video-001\n")
    fewer = embedded(model, own_root, cache=cache, digest="a")
    assert fewer.encoded == 14 and not any(key.startswith("video-001") for key in fewer.keys)


@pytest.mark.parametrize("victim", ["00001.npy", "feature.json"])
def test_a_damaged_entry_is_reported_and_computed_again(
    root: Path, model: HierVL, tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str
) -> None:
    first = embedded(model, root, cache=tmp_path, digest="a")
    (path,) = tmp_path.rglob(victim)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        again = embedded(model, root, cache=tmp_path, digest="a")
    assert again.encoded == 18 and "feature.json: ignored" in caplog.text
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert embedded(model, root, cache=tmp_path, digest="a").encoded == 0


@pytest.mark.parametrize("facts", ["{", "[]", '{"sets": {}}', '{"extractor": {"cache_key": "of another key"}}'])
def test_a_malformed_entry_is_ignored(
    root: Path, model: HierVL, tmp_path: Path, caplog: pytest.LogCaptureFixture, facts: str
) -> None:
    embedded(model, root, cache=tmp_path, digest="a")
    (path,) = tmp_path.rglob("feature.json")
    changes = json.loads(facts) if facts.endswith("}") else None
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes) if isinstance(changes, dict) else facts)
    with caplog.at_level(logging.WARNING):
        assert embedded(model, root, cache=tmp_path, digest="a").encoded == 18
    assert f"{path}: ignored" in caplog.text


def test_a_cache_that_cannot_be_written_is_reported(root: Path, model: HierVL, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbedError, match=r"embeddings cannot be cached: .*; cache=null"):
        embedded(model, root, cache=tmp_path / "file", digest="a")
