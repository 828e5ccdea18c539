"""The configuration of a pretraining run: one typed tree, filled from `configs/pretrain/*.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hiervl_train.compat import CompatConfig
from hiervl_train.data import DataConfig
from hiervl_train.models.config import InitConfig, ModelConfig
from hiervl_train.objectives import ObjectiveConfig
from hiervl_train.settings import RunSettings

StepType = Literal["child", "parent"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How many steps of which kind, on which batches. Batches are global: the same on any number of GPUs."""

    epochs: int = 10
    max_clips_per_epoch: int | None = None  # a shorter epoch; the next one goes on where it ended
    child_steps_per_parent_step: int = 5  # each step, of either kind, is an optimiser step
    clips: int = 512  # of a child step, all ranks together
    summaries: int = 32  # of a parent step, all ranks together
    # What a GPU encodes at once; a larger share of the batch is reached by cached gradients. null: all of it.
    clip_micro_batch: int | None = 32
    summary_micro_batch: int | None = 2

    def __post_init__(self) -> None:
        names = ("epochs", "child_steps_per_parent_step", "clips", "summaries")
        for name in (*names, "max_clips_per_epoch", "clip_micro_batch", "summary_micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: at least 1 is needed")
        if self.max_clips_per_epoch is not None and self.max_clips_per_epoch < self.clips:
            raise ValueError(f"max_clips_per_epoch = {self.max_clips_per_epoch} is less than one batch of {self.clips}")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What a sample of each level holds."""

    frames: int = 4  # of a clip, and of each window of a summary
    windows: int = 16  # of a summary
    narrations: int = 16  # of a summary
    window_seconds: float = 8.0  # of a summary's window, or its whole span where that is shorter
    # w/o Hier: in each child batch so many of the clips are summaries, shown by a random window inside their span.
    summaries_as_clips: int = 0
    summary_clip_seconds: tuple[float, float] = (1.5, 3.0)
    # EgoVLP: with each clip a second one of the same video within the same minute.
    scene_negatives: bool = False

    def __post_init__(self) -> None:
        low, high = self.summary_clip_seconds
        if not 0 < low <= high:
            raise ValueError(f"summary_clip_seconds = {self.summary_clip_seconds}: 0 < shortest ≤ longest is needed")
        if self.summaries_as_clips < 0:
            raise ValueError(f"summaries_as_clips = {self.summaries_as_clips}: at least 0 is needed")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions become tokens."""

    # Hub name or folder of a tokenizer; null: that of `init.text`, of the checkpoint in `init_from`, or, where a model
    # starts from nothing, words of the training set's own texts.
    tokenizer: str | None = None
    buckets: tuple[int, ...] = (16, 32, 64, 128, 256, 512)  # lengths that texts are padded to: each is a graph

    def __post_init__(self) -> None:
        if not self.buckets or min(self.buckets) < 2:
            raise ValueError(f"text.buckets = {self.buckets}: lengths of at least 2 tokens are needed")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunSettings):
    """A pretraining run: what is trained, from where, towards which objectives, on what; see also `RunSettings`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    # What to start from in place of `init`: a run, one of its checkpoints, or a released HierVL or EgoVLP .pth.
    init_from: Path | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    text: TextConfig = field(default_factory=TextConfig)
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
