"""What an evaluation is told: checkpoint, shards, how samples are read, switches; by YAML and `key=value`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.loading import ConfigError, load
from eval.embed import EmbedSettings
from hiervl_train.checkpoint.open import OpenConfig, OpenedCheckpoint
from hiervl_train.compat import CompatConfig
from hiervl_train.distributed import DistributedConfig
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.speed import SpeedConfig
from shards.config import SourceConfig
from shards.schema import SETS
from shards.video.decode import DecoderName

BENCHMARKS = ("egomcq", "summarymcq", "shufflemcq", "epic_mir", "charades_ego", "howto100m")
FRAMES, WINDOWS = 4, 16  # as published, where the checkpoint does not say
_NO_LIMIT = 1 << 30  # samples that fail are counted against `max_missing_fraction`


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """HowTo100M's linear probe: multinomial logistic regression on fixed embeddings, solved to its optimum."""

    pooling: Literal["mean", "aggregator"] = "mean"  # of the windows; the mean as published
    penalty: float = 1e-3  # times half the squared weights, beside the mean loss of a video
    steps: int = 200  # of L-BFGS at most

    def __post_init__(self) -> None:
        if self.penalty <= 0 or self.steps < 1:
            raise ValueError(f"penalty = {self.penalty} (above 0), steps = {self.steps} (at least 1)")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One evaluation, of any benchmark."""

    shards: str = "data/embedded/shards"  # of the dataset: a path, or an http(s):// or s3:// URL
    checkpoint: Path | None = None  # ours, a run's folder, or a released .pth
    which: Literal["best", "newest"] = "best"  # of a run's checkpoints
    average: bool = True  # take the average of the weights where the run kept one
    tokenizer: str | None = None  # hub name or folder; null: the checkpoint's own, of a released one DistilBERT's
    model: ModelConfig | None = None  # sizes of a released checkpoint that are not the published ones
    questions: Path | None = None  # a file of questions in place of the benchmark's own (eval/build_mcq.py makes one)
    set: str | None = None  # whose samples the questions name; null: as the file of questions, or the benchmark, says
    split: str | None = None
    frames: int | None = None  # of a clip and of each window; null: as in the checkpoint's run, else 4
    windows: int | None = None  # of a long sample; null: as in the checkpoint's run, else 16
    window_seconds: float | None = None  # null: as in the checkpoint's run, else 8
    batch: int = 32  # clips of a forward pass of a rank
    workers: int = 2  # processes of each rank that read clips
    decoder: DecoderName = "pyav"
    bf16: bool = False
    compile: bool = False
    compat: CompatConfig = field(default_factory=CompatConfig)
    options: int = 5  # of a ShuffleMCQ question
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    seed: int = 0  # of orders, resamples and made questions
    made_questions: int = 1000  # of each kind, where a dataset has no benchmark and all.py makes questions of it
    resamples: int = 2000  # of the bootstrap
    max_missing_fraction: float = 0.01  # items that could not be scored, before the exit code says so
    # null: RUN/evaluation/<benchmark>, or runs/eval/<checkpoint>/<benchmark> for a checkpoint that is of no run
    out: Path | None = None
    cache: Path | None = Path("runs/embeddings")  # where embeddings are kept; null: nowhere
    report: bool = True  # a page with clips, beside the scores
    source: SourceConfig = field(default_factory=SourceConfig)
    # Ranks wait for the slowest to embed its share; one that is dead they notice at once.
    distributed: DistributedConfig = field(default_factory=lambda: DistributedConfig(timeout_seconds=6 * 3600.0))
    # What is other for one benchmark: its name → keys of this class, as {epic_mir: {compat: {channel_order: bgr}}}.
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.benchmarks.keys() - set(BENCHMARKS))
        if unknown:
            raise ValueError(f"benchmarks.{unknown[0]}: known are {', '.join(BENCHMARKS)}")
        if self.set is not None and self.set not in SETS:
            raise ValueError(f"set = {self.set}: known are {', '.join(SETS)}")
        for name in ("frames", "windows", "batch", "resamples", "made_questions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: at least 1 is needed")
        if self.options < 2:
            raise ValueError(f"options = {self.options}: at least 2 are needed")
        if not 0 <= self.max_missing_fraction <= 1:
            raise ValueError(f"max_missing_fraction = {self.max_missing_fraction}: a share is expected")

    def opening(self) -> OpenConfig:
        """Return what opening the checkpoint takes from here."""
        return OpenConfig(
            which=self.which,
            average=self.average,
            tokenizer=self.tokenizer,
            model=self.model,
            frames=self.frames,
            bf16=self.bf16,
            compile=self.compile,
        )

    def embedding(self, opened: OpenedCheckpoint) -> EmbedSettings:
        """Return how samples are read for this model; raise `ConfigError` where it has no room for them."""
        model, sample = opened.model.config, opened.sample
        frames = self.frames or sample.get("frames") or min(FRAMES, model.num_frames)
        slots = model.aggregator.tokens if model.aggregator and model.aggregator.kind == "self_attention" else None
        windows = self.windows or sample.get("windows") or min(WINDOWS, slots or WINDOWS)
        if frames > model.num_frames:
            raise ConfigError(f"frames = {frames}: {opened.path} has {model.num_frames} slots (model.num_frames)")
        if slots is not None and windows > slots:
            raise ConfigError(f"windows = {windows}: {opened.path} has {slots} slots (model.aggregator.tokens)")
        return EmbedSettings(
            frames=frames,
            windows=windows,
            window_seconds=self.window_seconds or sample.get("window_seconds") or 8.0,
            batch=self.batch,
            workers=self.workers,
            decoder=self.decoder,
            channel_order=self.compat.channel_order,
            speed=SpeedConfig(bf16=self.bf16, compile=self.compile),
            max_consecutive_failures=_NO_LIMIT,
            source=self.source,
        )

    def folder(self, opened: OpenedCheckpoint, name: str) -> Path:
        """Return where the result of a benchmark is written."""
        return (self.out if self.out is not None else self.overview(opened) / name).absolute()

    def overview(self, opened: OpenedCheckpoint) -> Path:
        """Return the folder of all results of a checkpoint."""
        if opened.run is not None:
            return opened.run / "evaluation"
        return Path("runs/eval") / (opened.path.name if opened.path.is_dir() else opened.path.stem)


def load_eval(benchmark: str, path: Path | None, overrides: Sequence[str]) -> EvalConfig:
    """Return the configuration of one benchmark: the file's keys, then those for this benchmark, then `overrides`."""
    section = load(EvalConfig, path).benchmarks.get(benchmark, {})
    return load(EvalConfig, path, [*_flat(section), *overrides])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={json.dumps(value)}"
