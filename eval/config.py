"""Typed configuration of an evaluation: checkpoint, shards, how samples are read, switches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from configs.loading import ConfigError, from_dict, merged, overridden, read_yaml
from eval.embed import EmbedSettings
from hiervl_train.checkpoint.open import OpenConfig, OpenedCheckpoint
from hiervl_train.config import CompatConfig
from hiervl_train.distributed import DistributedConfig
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.speed import SpeedConfig
from hiervl_train.tokenizer import TokenizerSource
from shards.config import ReadConfig
from shards.schema import SETS

BENCHMARKS = ("egomcq", "summarymcq", "shufflemcq", "epic_mir", "charades_ego", "howto100m", "recall")
FRAMES, WINDOWS, WINDOW_SECONDS = 4, 16, 8.0  # as published, where the checkpoint's run is not known


@dataclass(frozen=True, kw_only=True)
class EvalDataConfig(ReadConfig):
    """Which dataset is evaluated on, and how it is read."""

    root: str = "data/embedded/shards"  # dataset: a folder, or an http(s):// or s3:// URL
    set: str | None = None  # set that the samples are from; null: as the benchmark, or its file of questions, says
    split: str | None = None  # split of that set; null: as the benchmark, or its file of questions, says
    # Read embeddings of samples from a feature set of `root` instead of video: its name, or its folder (with a slash).
    features: str | None = None
    workers: NonNegativeInt = 2  # decoding processes per rank; 0: in the calling process
    # Undecodable samples in a row before the evaluation stops; null: any, as `max_missing_fraction` bounds them.
    max_consecutive_failures: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set is not None and self.set not in SETS:
            raise ValueError(f"set = {self.set}: known are {', '.join(SETS)}")


@dataclass(frozen=True, kw_only=True)
class EvalSampleConfig:
    """What a sample holds."""

    frames: PositiveInt | None = None  # per clip and per window; null: as in the checkpoint's run, else 4
    windows: PositiveInt | None = None  # per long sample; null: as in the checkpoint's run, else 16
    window_seconds: PositiveFloat | None = None  # length of a window, s; null: as in the checkpoint's run, else 8


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """HowTo100M's linear probe: multinomial logistic regression on fixed embeddings, solved to its optimum."""

    pooling: Literal["mean", "aggregator"] = "mean"  # how a video's windows become one embedding; published: mean
    penalty: PositiveFloat = 1e-3  # factor of half the squared weights, added to the mean loss per video
    steps: PositiveInt = 200  # greatest number of L-BFGS iterations


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One evaluation, of any benchmark."""

    OTHER_NAMES: ClassVar[Mapping[str, str]] = {"shards": "data.root", "init_from": "checkpoint"}

    checkpoint: Path | None = None  # weights to evaluate: a run, one of its checkpoints, or a released .pth
    which: Literal["best", "newest"] = "best"  # checkpoint of a run; the newest where none is known as the best
    average: bool = True  # evaluate the average of the weights where the run kept one (optim.ema)
    tokenizer: TokenizerSource = field(default_factory=TokenizerSource)
    model: ModelConfig | None = None  # sizes of a released checkpoint that are not the published ones
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    sample: EvalSampleConfig = field(default_factory=EvalSampleConfig)
    speed: SpeedConfig = field(default_factory=lambda: SpeedConfig(bf16=False, compile=False))
    compat: CompatConfig = field(default_factory=CompatConfig)
    micro_batch: PositiveInt = 32  # clips per forward pass of a rank
    questions: Path | None = None  # file of questions instead of the benchmark's own; see eval/build_mcq.py
    options: Annotated[int, Field(ge=2)] = 5  # answers per ShuffleMCQ question
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    seed: int = 0  # of orders, resamples and generated questions
    made_questions: PositiveInt = 1000  # questions of each kind that all.py generates where a dataset has no benchmark
    recall_samples: PositiveInt | None = 10_000  # samples that recall is measured on, at most; null: all
    resamples: PositiveInt = 2000  # bootstrap resamples of each confidence interval
    max_missing_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01  # unscored items above which the exit code is 3
    # Results. null: RUN/evaluation/<benchmark>, or runs/eval/<checkpoint>/<benchmark> for a checkpoint without a run.
    output: Path | None = None
    cache: Path | None = Path("runs/embeddings")  # where embeddings are kept; null: nowhere
    report: bool = True  # write a page with clips next to the scores
    # Ranks wait for the slowest one to embed its share; a dead one they notice at once.
    distributed: DistributedConfig = field(default_factory=lambda: DistributedConfig(timeout_seconds=6 * 3600.0))
    # Keys that differ for one benchmark, by its name: {epic_mir: {compat: {channel_order: bgr}}}.
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.benchmarks.keys() - set(BENCHMARKS))
        if unknown:
            raise ValueError(f"benchmarks.{unknown[0]}: known are {', '.join(BENCHMARKS)}")

    def opening(self) -> OpenConfig:
        """Return how the checkpoint is opened."""
        return OpenConfig(
            which=self.which,
            average=self.average,
            tokenizer=self.tokenizer.source,
            model=self.model,
            frames=self.sample.frames,
            speed=self.speed,
        )

    def embedding(self, opened: OpenedCheckpoint) -> EmbedSettings:
        """Return how samples are read for this model; raise `ConfigError` where it has too few position slots."""
        model, trained, sample = opened.model.config, opened.sample, self.sample
        frames = sample.frames or trained.get("frames") or min(FRAMES, model.num_frames)
        slots = model.aggregator.tokens if model.aggregator and model.aggregator.kind == "self_attention" else None
        windows = sample.windows or trained.get("windows") or min(WINDOWS, slots or WINDOWS)
        if frames > model.num_frames:
            raise ConfigError(
                f"sample.frames = {frames}: {opened.path} has {model.num_frames} slots (model.num_frames)"
            )
        if slots is not None and windows > slots:
            raise ConfigError(f"sample.windows = {windows}: {opened.path} has {slots} slots (model.aggregator.tokens)")
        return EmbedSettings(
            **self.data.reading(),
            frames=frames,
            windows=windows,
            window_seconds=sample.window_seconds or trained.get("window_seconds") or WINDOW_SECONDS,
            micro_batch=self.micro_batch,
            channel_order=self.compat.channel_order,
            speed=self.speed,
            features=self.data.features,
        )

    def folder(self, opened: OpenedCheckpoint, name: str) -> Path:
        """Return where the result of a benchmark is written."""
        return (self.output if self.output is not None else self.overview(opened) / name).absolute()

    def overview(self, opened: OpenedCheckpoint) -> Path:
        """Return the folder of all results of a checkpoint."""
        if opened.run is not None:
            return opened.run / "evaluation"
        return Path("runs/eval") / (opened.path.name if opened.path.is_dir() else opened.path.stem)


def load_eval(benchmark: str, path: Path | None, overrides: Sequence[str]) -> EvalConfig:
    """Return the configuration of one benchmark: the file's keys, then those for this benchmark, then `overrides`."""
    tree = read_yaml(path) if path is not None else {}
    section = from_dict(EvalConfig, tree).benchmarks.get(benchmark, {})
    return from_dict(EvalConfig, overridden(EvalConfig, merged(tree, section), overrides))
