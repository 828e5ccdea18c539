"""Each distinct sample is embedded once, kept by all that decides its numbers; a broken one is nobody else."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.embed import Embedded, EmbedError, EmbedSettings, Texts, aggregate, embed_split, embed_texts
from hiervl_train.models import HierVL
from hiervl_train.models.pixels import normalise
from hiervl_train.models.speed import SpeedConfig
from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.loader import Loader
from shards.order import OrderError
from tests.eval.small import SETTINGS, small_dataset, small_model, small_tokenizer
from tests.shards.coded import overwrite_member

CLIPS, SUMMARIES = ("clips", "train"), ("summaries", "train")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed") / "shards"
    small_dataset(folder)
    return folder


@pytest.fixture
def own_root(root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(root, tmp_path / "shards"))


@pytest.fixture
def model() -> HierVL:
    return small_model()


def embedded(model: HierVL, root: Path, split: tuple[str, str] = CLIPS, **options: object) -> Embedded:
    settings = options.pop("settings", SETTINGS)
    found = embed_split(model, root, *split, settings, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_every_clip_is_embedded_once_as_the_model_alone_would(root: Path, model: HierVL) -> None:
    told: list[tuple[int, int]] = []
    found = embedded(model, root, progress=lambda done, of: told.append((done, of)))
    assert found.keys == open_dataset(root).rows(*CLIPS, ["key"])["key"].to_pylist()
    assert found.encoded == 18 and not found.failed and told[-1] == (18, 18)
    config = LoaderConfig(global_batch=1, workers=0, frames=2, size=16)
    with Loader(root, *CLIPS, config, is_training=False) as loader, torch.no_grad():
        alone = [model.encode_video(normalise(batch.video))[0] for batch in loader]
    np.testing.assert_allclose(found.vectors, torch.stack(alone).numpy(), atol=1e-5)


def test_long_samples_are_embedded_window_by_window_and_aggregated_after(root: Path, model: HierVL) -> None:
    found = embedded(model, root, SUMMARIES)
    assert found.vectors.shape == (5, 3, 8) and found.encoded == 15
    config = LoaderConfig(global_batch=5, workers=0, frames=2, windows=3, narrations=1, size=16)
    with Loader(root, *SUMMARIES, config, is_training=False) as loader, torch.no_grad():
        (batch,) = loader
        windows = model.encode_video(normalise(batch.video.flatten(0, 1))).unflatten(0, (5, 3))
        whole = model.aggregate(windows)
    np.testing.assert_allclose(found.vectors, windows.numpy(), atol=1e-5)
    ours = aggregate(model, found.vectors, SETTINGS.speed, torch.device("cpu"))
    np.testing.assert_allclose(ours, whole.numpy(), atol=1e-5)


def test_only_the_samples_that_are_asked_for_are_embedded(root: Path, model: HierVL) -> None:
    every = embedded(model, root)
    wanted = [every.keys[index] for index in (14, 3, 9)]
    some = embedded(model, root, keys=[*wanted, "absent_c1_000000"])
    assert some.keys == sorted(wanted, key=every.keys.index)
    assert some.encoded == 3
    np.testing.assert_allclose(some.vectors, every.vectors[[3, 9, 14]], atol=1e-6)
    assert embedded(model, root, keys=[]).keys == []
    with pytest.raises(OrderError, match="training takes all"):
        Loader(root, *CLIPS, LoaderConfig(global_batch=2, workers=0), keys=wanted)


def test_what_was_embedded_is_not_embedded_again(root: Path, model: HierVL, tmp_path: Path) -> None:
    first = embedded(model, root, cache=tmp_path, digest="a")
    again = embedded(model, root, cache=tmp_path, digest="a")
    assert (first.encoded, again.encoded) == (18, 0)
    assert again.keys == first.keys
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert not list(tmp_path.rglob("part-*")), "parts are of no use once all is there"


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 3},
        {"channel_order": "bgr"},
        {"batch": 5},
        {"speed": SpeedConfig(bf16=True, compile=False)},
        {"windows": 2},
        {"window_seconds": 4.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_a_number_makes_it_be_embedded_anew(
    root: Path, model: HierVL, tmp_path: Path, change: dict[str, object]
) -> None:
    split = SUMMARIES if change.keys() & {"windows", "window_seconds"} else CLIPS
    before = embedded(model, root, split, cache=tmp_path, digest="a")
    after = embedded(model, root, split, cache=tmp_path, digest="a", settings=replace(SETTINGS, **change))
    assert after.encoded
    if change.keys() & {"frames", "speed", "window_seconds"}:  # coded clips are grey
        assert not np.array_equal(before.vectors, after.vectors)


def test_another_checkpoint_and_a_split_without_a_withdrawn_video_are_not_taken_from_the_cache(
    own_root: Path, model: HierVL, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    embedded(model, own_root, cache=cache, digest="a")
    assert embedded(small_model(1), own_root, cache=cache, digest="b").encoded == 18
    (own_root / "denylist.txt").write_text("video-001\n")
    fewer = embedded(model, own_root, cache=cache, digest="a")
    assert fewer.encoded == 14 and not any(key.startswith("video-001") for key in fewer.keys)


@pytest.mark.parametrize("victim", ["whole.safetensors", "whole.json"])
def test_a_damaged_cache_is_named_and_made_again(
    root: Path, model: HierVL, tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str
) -> None:
    first = embedded(model, root, cache=tmp_path, digest="a")
    (path,) = tmp_path.rglob(victim)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        again = embedded(model, root, cache=tmp_path, digest="a")
    assert again.encoded == 18 and "whole.json: passed over" in caplog.text
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert embedded(model, root, cache=tmp_path, digest="a").encoded == 0


class Killed(HierVL):
    """A model that is interrupted at its fourth batch."""

    batches = 0

    def encode_video(self, video_BTCHW: Tensor) -> Tensor:
        self.batches += 1
        if self.batches > 3:
            raise KeyboardInterrupt
        return super().encode_video(video_BTCHW)


def test_an_interrupted_evaluation_keeps_what_it_had(root: Path, model: HierVL, tmp_path: Path) -> None:
    undisturbed = embedded(model, root)
    doomed = Killed(model.config).eval()
    doomed.load_state_dict(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        embedded(doomed, root, cache=tmp_path, digest="a")
    rest = embedded(model, root, cache=tmp_path, digest="a")
    assert rest.encoded == 6, "three batches of four were embedded before, of which parts hold two"
    assert rest.keys == undisturbed.keys
    np.testing.assert_array_equal(rest.vectors, undisturbed.vectors)


def test_a_sample_that_cannot_be_decoded_is_named_and_has_no_embedding(own_root: Path, model: HierVL) -> None:
    whole = embedded(model, own_root)
    overwrite_member(open_dataset(own_root), 1, 2, b"\0" * 64)
    broken = whole.keys[7 + 2]
    found = embedded(model, own_root)
    assert list(found.failed) == [broken]
    assert found.failed[broken] == "not an mp4: there is no moov box"
    assert found.keys == [key for key in whole.keys if key != broken]
    np.testing.assert_array_equal(found.vectors, np.delete(whole.vectors, 9, axis=0))


def test_an_embedding_that_is_no_number_counts_as_failed(root: Path, model: HierVL) -> None:
    model.video_projection.bias.data[0] = torch.nan
    found = embedded(model, root)
    assert not found.keys and len(found.failed) == 18
    assert set(found.failed.values()) == {"its embedding is not finite"}


def test_more_frames_than_the_model_has_slots_are_refused_with_both_numbers(root: Path, model: HierVL) -> None:
    with pytest.raises(EmbedError, match="frames = 5: the model has 4"):
        embedded(model, root, settings=EmbedSettings(frames=5))


def test_each_distinct_text_is_embedded_once_whatever_stands_beside_it(model: HierVL, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    texts = ["#C C does 3", "#C C does", "#C C does 3", "part"]

    def of(listed: list[str], **options: object) -> Texts:
        found = embed_texts(model, tokenizer, listed, SETTINGS, **options)  # type: ignore[arg-type]
        assert found is not None
        return found

    found = of(texts)
    assert len(found.vectors_ND) == 3
    with torch.no_grad():
        alone = torch.cat([model.encode_text(*tokenizer([text])) for text in texts])
    np.testing.assert_allclose(found.of(texts), alone.numpy(), atol=1e-5)
    first, again = of(texts, cache=tmp_path, digest="a"), of(texts[::-1], cache=tmp_path, digest="a")
    np.testing.assert_array_equal(first.vectors_ND, again.vectors_ND)
    assert len(list(tmp_path.glob("*/whole.json"))) == 1
    of([*texts, "did"], cache=tmp_path, digest="a")
    of(texts, cache=tmp_path, digest="b")
    assert len(list(tmp_path.glob("*/whole.json"))) == 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
