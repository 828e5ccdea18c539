"""Training on features: the loader's order and cursor, the same losses as on frozen towers, and a real run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.loading import load
from hiervl_train import pretrain
from hiervl_train.checkpoint.open import find_checkpoint, open_checkpoint
from hiervl_train.config import PretrainConfig
from hiervl_train.features.training import FeatureSteps
from hiervl_train.models.speed import SpeedConfig
from hiervl_train.steps import PretrainSteps
from hiervl_train.task import Step
from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.features import FeatureError, open_features
from shards.loader import Batch, Loader
from tests.hiervl_train.features.extraction import config_of, extract
from tests.shards.coded import coded_dataset, overwrite_member

CONFIG = LoaderConfig(global_batch=4, frames=2, windows=3, narrations=2, size=16, workers=0, seed=3, block_mib=1)


@pytest.fixture(scope="module")
def towers(made: Path) -> Path:
    """The feature set `towers` of the dataset: float32, before the projections."""
    extract(config_of(made, name="towers", dtype="float32", extractor={"layer": "tower"}))
    return made


def loader(made: Path, set_name: str = "clips", *, features: str | None = "towers", **options: Any) -> Loader:
    config = replace(CONFIG, features=features, **options.pop("config", {}))
    return Loader(str(made / "shards"), set_name, "train", config, **options)


def by_key(made: Path, set_name: str, array: str) -> dict[str, np.ndarray]:
    """Return key → rows, read sample by sample."""
    found = {}
    for shard in open_features(made / "shards" / "features" / "towers").split(set_name, "train").shards:
        prefix = "" if array == "video" else f"{array}_"
        for row in shard.table().to_pylist():
            first = row[f"{prefix}first_row"]
            found[row["key"]] = np.array(shard.array(array)[first : first + row[f"{prefix}rows"]])
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_keys_and_tags_of_the_batches_of_video(towers: Path, workers: int) -> None:
    scenes = {"config": {"workers": workers, "scene_negatives": True}}
    with loader(towers, **scenes) as features, loader(towers, features=None, config={"scene_negatives": True}) as video:
        rows = by_key(towers, "clips", "video")
        for _ in range(2):
            for ours, theirs in zip(features, video, strict=True):
                assert ours.keys == theirs.keys and ours.texts == theirs.texts
                assert torch.equal(ours.verbs_BV, theirs.verbs_BV) and torch.equal(ours.nouns_BO, theirs.nouns_BO)
                assert torch.equal(ours.is_scene_B, theirs.is_scene_B)
                np.testing.assert_array_equal(ours.features["video"], np.stack([rows[key] for key in ours.keys]))


def test_a_cursor_of_video_goes_on_with_features(towers: Path) -> None:
    with loader(towers, features=None) as video, loader(towers) as features:
        iterator = iter(video)
        next(iterator)
        features.load_state_dict(video.state_dict())
        assert next(iter(features)).keys == next(iterator).keys


def test_the_narrations_of_a_summary_are_in_order_and_its_text_stands_for_none(towers: Path) -> None:
    rows = by_key(towers, "summaries", "narrations")
    with loader(towers, "summaries", is_training=False) as own:
        batch = next(iter(own))
    np.testing.assert_array_equal(batch.features["narrations"], np.stack([rows[key] for key in batch.keys]))
    with loader(towers, "summaries", config={"narrations": 5}) as own:
        batch = next(iter(own))
    cycled = np.stack([rows[key][[0, 1, 0, 1, 0]] for key in batch.keys])
    np.testing.assert_array_equal(batch.features["narrations"], cycled)


def test_a_sample_without_features_is_replaced_and_counted(own: Path) -> None:
    overwrite_member(open_dataset(own / "shards"), 1, 4, bytes(4000), at=40)
    extract(config_of(own, name="own", max_failed_fraction=1.0))
    with loader(own, features="own", is_training=False) as features:
        batches = list(features)
        failed = [f for batch in batches for tried in batch.failures for f in tried]
        keys = [key for batch in batches for key in batch.keys]
        assert features.metrics()["failed/features"] == 1
    listed = open_dataset(own / "shards").split("clips", "train").rows(["key"])["key"].to_pylist()
    assert failed[0].key == listed[11] and keys[11] == listed[7]


def test_features_of_other_shards_are_refused(towers: Path, tmp_path: Path) -> None:
    coded_dataset(tmp_path / "shards", (7, 5, 5))
    shutil.copytree(towers / "shards" / "features", tmp_path / "shards" / "features")
    with pytest.raises(FeatureError, match="are of other shards: their fingerprint"):
        loader(tmp_path)
    with pytest.raises(FeatureError, match="no such file"):
        loader(towers, features="absent")
    with pytest.raises(FeatureError, match="is no name"):
        loader(towers, features="..")


def eval_batch(made: Path, set_name: str, features: str | None) -> Batch:
    with loader(made, set_name, features=features, is_training=False) as own:
        return next(iter(own))


@pytest.mark.parametrize(("step_type", "set_name"), [("child", "clips"), ("parent", "summaries")])
def test_losses_and_gradients_are_those_of_frozen_towers(towers: Path, step_type: str, set_name: str) -> None:
    opened = open_checkpoint(towers / "checkpoint")
    model, config = opened.model, PretrainConfig(speed=SpeedConfig(bf16=False, compile=False))
    config = replace(config, sample=replace(config.sample, windows=3, narrations=2), model=model.config)
    parts = (model.video_projection, model.text_projection, model.aggregator)

    def gradients(step: Step, batch: Batch) -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        loss = step(batch).loss
        found = [p.grad for part in parts if part is not None for p in part.parameters() if p.grad is not None]
        return [loss, *found]

    plain = PretrainSteps(model, opened.tokenizer, config)
    plain.micro_batches.size[step_type] = None
    expected = gradients(plain.by_type[step_type], eval_batch(towers, set_name, None))
    actual = gradients(FeatureSteps(model, config).by_type[step_type], eval_batch(towers, set_name, "towers"))
    assert len(actual) == len(expected) > 4
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-3)


@pytest.mark.medium
def test_a_run_trains_projections_and_aggregator_and_resumes(towers: Path, tmp_path: Path) -> None:
    words = [
        "data={features: towers, workers: 0, summary_workers: 0}",
        f"data.root={towers / 'shards'}",
        f"init_from={towers / 'checkpoint'}",
        "model={img_size: 16, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, num_frames: 4, projection_dim: 8}",
        "model.text={vocab_size: 400, max_position_embeddings: 16, n_layers: 2, n_heads: 2, dim: 16, hidden_dim: 32}",
        "model.aggregator={depth: 2, num_heads: 2, tokens: 6, drop_path: 0.0}",
        "schedule={epochs: 2, clips: 4, summaries: 2, child_steps_per_parent_step: 2}",
        "sample={frames: 2, windows: 3, narrations: 2}",
        "speed={bf16: false, compile: false}",
        "optim={lr: 0.01}",
        "metrics={every_steps: 1, tensorboard: false}",
        "evaluation={every_steps: null, at_end: false}",
    ]
    assert load(PretrainConfig, None, words).data.features == "towers"
    assert pretrain.main([*words, f"run.folder={tmp_path / 'whole'}"]) == 0
    for steps in (4, 12):
        assert pretrain.main([*words, f"run.folder={tmp_path / 'parts'}", f"run.max_steps={steps}"]) == 0
    whole, parts = (open_checkpoint(find_checkpoint(tmp_path / name)).model.state_dict() for name in ("whole", "parts"))
    start = open_checkpoint(towers / "checkpoint").model.state_dict()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
        is_tower = name.startswith(("video.", "text."))
        assert torch.equal(value, start[name]) == is_tower or "position" in name or "bias" in name, name

    half = extract(config_of(towers, name="half", extractor={"layer": "projected"}))
    assert half.features is not None
    assert pretrain.main([*words, "data.features=half", f"run.folder={tmp_path / 'x'}"]) == 2
    assert pretrain.main([*words, "sample.windows=4", f"run.folder={tmp_path / 'y'}"]) == 2
    assert pretrain.main([*words, "init_from=null", f"run.folder={tmp_path / 'z'}"]) == 2
