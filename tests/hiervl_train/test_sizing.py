"""A run is fitted to the dataset it is given: every number of clips and summaries trains, within the bounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.loading import load
from hiervl_train import sizing
from hiervl_train.config import PretrainConfig, SizingConfig
from hiervl_train.data import DataError
from hiervl_train.sizing import sized
from tests.hiervl_train.runs import FIRST_VERSION
from tests.paths import REPOSITORY
from tests.shards.coded import coded_clip, coded_dataset, coded_summary

CUSTOM = REPOSITORY / "configs" / "pretrain" / "custom.yaml"


def custom(root: Path, *overrides: str) -> PretrainConfig:
    return load(PretrainConfig, CUSTOM, [f"data.root={root}", *overrides])


def dataset(root: Path, *, clips: int = 20, summaries: int = 0) -> Path:
    made = [coded_clip(n, video=f"video-{n % 5}") for n in range(clips)]
    coded_dataset(root, clips=made, summaries=[coded_summary(n, seconds=4, narrations=1) for n in range(summaries)])
    return root


def test_without_summaries_only_clips_are_trained(tmp_path: Path) -> None:
    said: list[str] = []
    config = sized(custom(dataset(tmp_path / "shards", clips=20)), said.append)
    assert config.objective.parent is None and config.objective.child == "egonce"
    assert config.schedule.clips == 4 and config.schedule.epochs == 50  # 5 steps an epoch, 250 in all
    assert config.optim.warmup_steps == 25
    assert config.optim.lr == pytest.approx(3e-5 * (4 / 512) ** 0.5, rel=0.01)
    assert not config.evaluation.is_on and any("no val split" in text for text in said)
    assert any("20 clips and 0 summaries: 50 epochs of 5 steps" in text for text in said)


def test_summaries_are_trained_where_there_are_enough(tmp_path: Path) -> None:
    config = sized(custom(dataset(tmp_path / "shards", clips=16, summaries=8)))
    assert config.objective.parent == "both" and config.schedule.summaries == 2
    assert sized(custom(dataset(tmp_path / "few", clips=16, summaries=7))).objective.parent is None


def test_a_dataset_without_captions_is_refused_with_what_to_do(tmp_path: Path) -> None:
    silent = [coded_clip(n) for n in range(4)]
    silent = [dataclasses.replace(c, record=dataclasses.replace(c.record, text=" ")) for c in silent]
    coded_dataset(tmp_path / "shards", clips=silent)
    with pytest.raises(DataError, match=r"none of the 4 samples .* has a caption.*annotations.captions=TABLE"):
        sized(custom(tmp_path / "shards"))


def test_sizes_are_those_of_the_checkpoint_that_a_run_starts_from(tmp_path: Path) -> None:
    root = dataset(tmp_path / "shards")
    config = sized(custom(root, f"init_from={FIRST_VERSION}"))
    assert (config.model.img_size, config.sample.frames, config.sample.windows) == (16, 2, 2)
    kept = sized(custom(root, f"init_from={FIRST_VERSION}", "sample.frames=1"))
    assert kept.sample.frames == 1 and kept.model.img_size == 16


def test_the_same_command_gives_the_same_run_and_what_is_given_stays(tmp_path: Path) -> None:
    root = dataset(tmp_path / "shards")
    given_config = custom(root, "optim.warmup_steps=3", "evaluation.every_steps=7", "schedule.epochs=2")
    config = sized(given_config)
    assert sized(given_config) == config and sized(config) == config
    assert config.optim.warmup_steps == 3 and config.schedule.epochs == 2
    plain = load(PretrainConfig, None, [f"data.root={root}"])
    assert sized(plain) is plain


@settings(deadline=None)
@given(clips=st.integers(2, 10**7), summaries=st.integers(8, 10**6), steps=st.integers(1, 5000))
def test_bounds_hold_for_any_dataset(clips: int, summaries: int, steps: int) -> None:
    base = load(PretrainConfig, CUSTOM)
    wanted = SizingConfig(steps=steps)
    config = sizing._schedule(base, wanted, clips, summaries, lambda text: None)
    assert 2 <= config.schedule.clips <= min(512, clips) and 2 <= config.schedule.summaries <= min(32, summaries)
    per_epoch = clips // config.schedule.clips
    total = per_epoch * config.schedule.epochs
    assert config.schedule.epochs <= base.schedule.epochs and config.optim.lr <= base.optim.lr
    assert total >= min(steps, per_epoch * base.schedule.epochs)
    assert total < steps + per_epoch and config.optim.warmup_steps <= total
    assert clips < 8 or per_epoch >= 4
