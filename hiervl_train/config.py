"""The configuration of a training run: the sections of every run, and all of pretraining (`configs/pretrain/*.yaml`).

`tasks/config.py` has that of fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from hiervl_train.checkpoint.manager import SaveConfig
from hiervl_train.data import DataConfig
from hiervl_train.distributed import DistributedConfig
from hiervl_train.models.config import InitConfig, ModelConfig
from hiervl_train.models.pixels import ChannelOrder
from hiervl_train.models.speed import SpeedConfig
from hiervl_train.monitor.metrics import MetricsConfig
from hiervl_train.monitor.profiler import ProfileConfig
from hiervl_train.objectives import ObjectiveConfig
from hiervl_train.optim import OptimConfig
from hiervl_train.preemption import PreemptionConfig
from hiervl_train.tokenizer import TokenizerConfig

StepType = Literal["child", "parent"]


@dataclass(frozen=True, kw_only=True)
class CompatConfig:
    """Faults of the released code that can be switched on to reproduce its figures, as `optim.apply_zero_grads`."""

    channel_order: ChannelOrder = "rgb"  # bgr: red and blue are swapped, as in the released EPIC loader
    released_eps: bool = (
        False  # multiply optim.eps by the number of GPUs: the released gradients were 1/GPUs of the exact ones
    )
    dual_softmax: bool = False  # show the released EPIC test's scores: a softmax over all queries


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Questions and retrieval inside the run, on the dataset's own test or validation sets."""

    every_steps: PositiveInt | None = None  # steps between evaluations; null: none in between
    at_end: bool = False  # also after the last step
    questions: PositiveInt = 500  # of each kind, at most
    # Samples of the val split of each level by which recall is measured; 0: only where there are no questions.
    recall: NonNegativeInt = 0
    seed: int = 0  # of the choice of questions and of their wrong options

    @property
    def is_on(self) -> bool:
        """Whether anything is evaluated at all."""
        return self.every_steps is not None or self.at_end

    def is_due(self, step: int, total: int) -> bool:
        """Return whether to evaluate after `step` of `total` steps."""
        regular = self.every_steps is not None and step % self.every_steps == 0
        return regular or (self.at_end and step == total)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: its folder, its seed, its limits. The same command on the same folder resumes it."""

    folder: Path = Path("runs/pretrain")  # where the run writes
    seed: NonNegativeInt = 0  # of weights, dropout, and the order and augmentation of the data
    max_steps: PositiveInt | None = None  # stop after this many steps in all, before the schedule's end
    # Use kernels that sum in a fixed order: the same losses bit for bit on one kind of GPU, but slower.
    deterministic: bool = False
    time_report: bool = True  # measure a step's time by phase, for the metrics `time/…` and the run's page
    max_consecutive_skips: PositiveInt = 20  # steps in a row without a finite loss before the run ends
    # Steps between garbage collections, which all ranks make at the same step, as a pause of one is a pause of all.
    collect_garbage_every: PositiveInt = 1000


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The sections that pretraining and fine-tuning share."""

    OTHER_NAMES: ClassVar[Mapping[str, str]] = {
        "checkpoint": "init_from (the weights to start from) or save (when checkpoints are written)",
        "shards": "data.root",
    }

    run: RunConfig = field(default_factory=RunConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)


@dataclass(frozen=True, kw_only=True)
class PretrainScheduleConfig:
    """How many steps of which type, on which batches. Batch sizes are global: independent of the number of GPUs."""

    epochs: PositiveInt = 10  # passes over the clips; without child steps, over the summaries
    max_clips_per_epoch: PositiveInt | None = None  # shorter epochs: the next one continues where this one ended
    child_steps_per_parent_step: PositiveInt = 5  # child steps between parent steps; each is an optimiser step
    clips: PositiveInt = 512  # per child step, all ranks together
    summaries: PositiveInt = 32  # per parent step, all ranks together
    # Clips that a GPU encodes at a time; gradient caching covers a larger share of the batch. auto: as many as fit into
    # its memory, measured at the start; null: the whole share.
    clip_micro_batch: PositiveInt | Literal["auto"] | None = "auto"
    # Summaries that a GPU encodes at a time, as for clips.
    summary_micro_batch: PositiveInt | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        if self.max_clips_per_epoch is not None and self.max_clips_per_epoch < self.clips:
            raise ValueError(f"max_clips_per_epoch = {self.max_clips_per_epoch} is less than one batch of {self.clips}")


@dataclass(frozen=True, kw_only=True)
class PretrainSampleConfig:
    """What a sample of each level holds."""

    frames: PositiveInt = 4  # per clip, and per window of a summary
    windows: PositiveInt = 16  # per summary
    narrations: PositiveInt = 16  # per summary
    window_seconds: PositiveFloat = 8.0  # length of a summary's window, s; the whole span where that is shorter
    # w/o Hier: so many clips of each child batch are summaries, shown by a random window inside their span.
    summaries_as_clips: NonNegativeInt = 0
    summary_clip_seconds: tuple[float, float] = (1.5, 3.0)  # shortest and longest of these windows, s
    scene_negatives: bool = False  # EgoVLP: with each clip a second one of the same video within the same minute

    def __post_init__(self) -> None:
        low, high = self.summary_clip_seconds
        if not 0 < low <= high:
            raise ValueError(f"summary_clip_seconds = {self.summary_clip_seconds}: must satisfy 0 < shortest ≤ longest")


@dataclass(frozen=True, kw_only=True)
class SizingConfig:
    """How a run is fitted to a small dataset: `schedule` and `optim.lr` are then upper bounds; see `sizing.py`."""

    steps: PositiveInt = 500  # of the clip level, wanted; at most schedule.epochs passes over the data
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of the steps, where optim.warmup_steps is 0


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunSettings):
    """A pretraining run: what is trained, from where, towards which objectives, on what; see also `RunSettings`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    # Weights to start from instead of `init`: a run, one of its checkpoints, or a released HierVL or EgoVLP .pth.
    init_from: Path | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: PretrainScheduleConfig = field(default_factory=PretrainScheduleConfig)
    sizing: SizingConfig | None = None  # fit batches, steps and learning rate to the data; null: as configured
    sample: PretrainSampleConfig = field(default_factory=PretrainSampleConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)

    def __post_init__(self) -> None:
        aggregator, parent = self.model.aggregator, self.objective.parent
        if parent is not None and aggregator is None:
            raise ValueError(f"objective.parent = {parent} aggregates, and model.aggregator is null")
        if parent is not None and aggregator is not None and aggregator.kind == "self_attention":
            for name in ("windows", "narrations"):
                if getattr(self.sample, name) > aggregator.tokens:
                    raise ValueError(
                        f"sample.{name} = {getattr(self.sample, name)} is more than "
                        f"model.aggregator.tokens = {aggregator.tokens}"
                    )
        if self.sample.frames > self.model.num_frames:
            raise ValueError(
                f"sample.frames = {self.sample.frames} is more than model.num_frames = {self.model.num_frames} slots"
            )
        height, width = self.model.image_hw
        if height != width:
            raise ValueError(f"model.img_size = {self.model.img_size}: training crops are square")
        if self.sample.summaries_as_clips >= self.schedule.clips:
            raise ValueError(
                f"sample.summaries_as_clips = {self.sample.summaries_as_clips} leaves no clips in a batch of "
                f"schedule.clips = {self.schedule.clips}"
            )
        if self.data.features is not None and self.sample.summaries_as_clips:
            raise ValueError(f"data.features = {self.data.features}: summaries_as_clips are read from video only")
        if parent is not None and self.schedule.summaries < 2:
            raise ValueError(
                f"schedule.summaries = {self.schedule.summaries}: with fewer than 2 in the global batch there is no "
                "negative and the parent loss is zero"
            )

    def step_type(self, step: int) -> StepType:
        """Return the type of step number `step` (from 0): a parent step after every few child steps."""
        if self.objective.parent is None:
            return "child"
        if self.objective.child is None:
            return "parent"
        period = self.schedule.child_steps_per_parent_step + 1
        return "parent" if step % period == period - 1 else "child"
