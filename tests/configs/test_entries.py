"""Every entry has the same shell, and every key of every configuration says what it means."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from configs.help import keys
from configs.loading import load
from eval.config import EvalConfig, load_eval
from eval.mcq_builder import McqConfig
from hiervl_train.config import PretrainConfig
from hiervl_train.tasks.config import FinetuneConfig
from preprocessing.config import BuildConfig
from preprocessing.demo.config import DemoConfig
from preprocessing.extract_features import ExtractFeaturesConfig
from shards.config import ReadConfig
from tests.paths import REPOSITORY

CONFIGURATIONS: dict[str, type] = {
    "features": ExtractFeaturesConfig,
    "preprocess": BuildConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "eval": EvalConfig,
}
BENCHMARKS = ("egomcq", "summarymcq", "shufflemcq", "epic_mir", "charades_ego", "howto100m", "recall")
WITH_KEYS = (
    "preprocessing.build_shards",
    "preprocessing.extract_features",
    "preprocessing.dense_features",
    "preprocessing.demo.__main__",
    "hiervl_train.pretrain",
    "hiervl_train.finetune",
    "hiervl_train.models.convert",
    "eval.all",
    "eval.search",
    "eval.build_mcq",
)
WITHOUT_KEYS = (
    "shards.export.__main__",
    "shards.features.__main__",
    "preprocessing.hierarchies.__main__",
    "shards.verify.__main__",
    "shards.inspect.__main__",
    "hiervl_train.monitor.page",
    "eval.compare",
)
FILES = sorted((REPOSITORY / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("cls", [*CONFIGURATIONS.values(), McqConfig, DemoConfig])
def test_every_key_says_what_it_means(cls: type) -> None:
    assert [key.name for key in keys(cls) if not key.meaning] == []


@pytest.mark.parametrize("cls", [PretrainConfig, FinetuneConfig, EvalConfig])
def test_training_and_evaluation_have_the_same_keys_for_the_same_things(cls: type) -> None:
    names = {key.name for key in keys(cls)}
    shared = {key.name for key in keys(ReadConfig)} | {"root", "split"}
    assert {f"data.{name}" for name in shared} <= names
    assert {"sample.frames", "sample.windows", "sample.window_seconds"} <= names
    assert {"speed.bf16", "speed.compile", "tokenizer.source", "compat.channel_order"} <= names
    assert ("checkpoint" in names) == (cls is EvalConfig) != ("init_from" in names)


@pytest.mark.parametrize("file", FILES, ids=[f"{file.parent.name}/{file.stem}" for file in FILES])
def test_every_file_can_be_loaded(file: Path) -> None:
    cls = CONFIGURATIONS[file.parent.name]
    assert load(cls, file) is not None
    if cls is EvalConfig:
        assert all(isinstance(load_eval(name, file, []), EvalConfig) for name in BENCHMARKS)


def test_a_benchmark_s_own_keys_count_more_than_the_file_s_and_less_than_the_command_line_s() -> None:
    file = REPOSITORY / "configs" / "eval" / "hiervl_sa.yaml"
    assert (load_eval("egomcq", file, []).sample.frames, load_eval("epic_mir", file, []).sample.frames) == (4, 16)
    assert load_eval("epic_mir", file, []).sample.windows == 16
    assert load_eval("epic_mir", file, ["sample.frames=8"]).sample.frames == 8
    assert load_eval("epic_mir", file, ["speed.bf16=true"]).speed.compile is False


def main_of(module: str) -> Any:
    return importlib.import_module(module).main


@pytest.mark.parametrize("module", [*WITH_KEYS, *WITHOUT_KEYS])
def test_every_entry_has_help(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of(module)(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "--debug" in printed and "exit codes: 0 done" in printed
    assert ("key=value" in printed) == (module in WITH_KEYS)


@pytest.mark.parametrize("module", BENCHMARKS)
def test_every_benchmark_has_help(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = importlib.import_module(f"eval.{module}").BENCHMARK
    assert main_of("eval.command")(benchmark, ["--help"]) == 0
    printed = capsys.readouterr().out
    assert f"eval/{module}.py" in printed and "sample.frames=" in printed and "--shards ROOT" in printed


@pytest.mark.parametrize("word", ["videos.root=/somewhere", "annotations.narrations=/narration.json"])
def test_own_videos_without_a_configuration_are_answered_with_the_one_to_take(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of("preprocessing.build_shards")([word, "--dry-run"]) == 2
    assert "--config configs/preprocess/ego4d.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "word", "near"),
    [
        ("hiervl_train.pretrain", "bf16=true", "speed.bf16"),
        ("hiervl_train.pretrain", "text.buckets=[16]", "tokenizer.buckets"),
        ("hiervl_train.pretrain", "checkpoint.every_steps=5", "save.every_steps"),
        ("eval.all", "frames=4", "sample.frames"),
        ("eval.all", "workers=4", "data.workers"),
        ("eval.all", "source.cache=/x", "data.source.cache"),
    ],
)
def test_an_unknown_key_is_answered_with_one_of_this_entry(
    module: str, word: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of(module)([word]) == 2
    said = capsys.readouterr().err
    assert "did you mean" in said and near in said


def test_fine_tuning_needs_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of("hiervl_train.finetune")(["--checkpoint", "x"]) == 2
    assert "--config is missing" in capsys.readouterr().err
