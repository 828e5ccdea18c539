"""The configuration of a pretraining run: one typed tree, filled from `configs/pretrain/*.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from hiervl_train.compat import CompatConfig
from hiervl_train.data import DataConfig
from hiervl_train.models.config import InitConfig, ModelConfig
from hiervl_train.objectives import ObjectiveConfig
from hiervl_train.settings import RunSettings
from hiervl_train.tokenizer import TokenizerConfig

StepType = Literal["child", "parent"]


@dataclass(frozen=True, kw_only=True)
class PretrainScheduleConfig:
    """How many steps of which type, on which batches. Batch sizes are global: independent of the number of GPUs."""

    epochs: PositiveInt = 10  # passes over the clips; without child steps, over the summaries
    max_clips_per_epoch: PositiveInt | None = None  # shorter epochs: the next one continues where this one ended
    child_steps_per_parent_step: PositiveInt = 5  # child steps between parent steps; each is an optimiser step
    clips: PositiveInt = 512  # per child step, all ranks together
    summaries: PositiveInt = 32  # per parent step, all ranks together
    # Clips that a GPU encodes at a time; gradient caching covers a larger share of the batch. null: the whole share.
    clip_micro_batch: PositiveInt | None = 32
    # Summaries that a GPU encodes at a time; gradient caching covers the rest. null: the whole share.
    summary_micro_batch: PositiveInt | None = 2

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
class PretrainConfig(RunSettings):
    """A pretraining run: what is trained, from where, towards which objectives, on what; see also `RunSettings`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    # Weights to start from instead of `init`: a run, one of its checkpoints, or a released HierVL or EgoVLP .pth.
    init_from: Path | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: PretrainScheduleConfig = field(default_factory=PretrainScheduleConfig)
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
