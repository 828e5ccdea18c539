"""The configuration of a pretraining run: one typed tree, filled from `configs/pretrain/*.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hiervl_train.compat import CompatConfig
from hiervl_train.models.config import InitConfig, ModelConfig
from hiervl_train.models.speed import SpeedConfig
from hiervl_train.objectives import ObjectiveConfig
from hiervl_train.optim import OptimConfig

StepKind = Literal["child", "parent"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How many steps of which kind; batch sizes are per GPU."""

    epochs: int = 10
    max_clips_per_rank: int | None = 500_000  # of an epoch; null for all
    child_steps_per_parent_step: int = 5  # each step, of either kind, is an optimiser step
    clips_per_gpu: int = 16
    summaries_per_gpu: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "child_steps_per_parent_step", "clips_per_gpu", "summaries_per_gpu"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What a sample of each level holds."""

    frames: int = 4  # of a clip, and of each window of a summary
    windows: int = 16  # of a summary
    narrations: int = 16  # of a summary
    window_seconds: float = 8.0  # of a summary's window, or its whole span where that is shorter
    # w/o Hier: every summary joins the narrations as a clip, a random window of this length inside its span.
    summaries_as_clips: bool = False
    summary_clip_seconds: tuple[float, float] = (1.5, 3.0)
    # EgoVLP: with each clip a second one of the same video within the same minute.
    scene_negatives: bool = False

    def __post_init__(self) -> None:
        low, high = self.summary_clip_seconds
        if not 0 < low <= high:
            raise ValueError(f"summary_clip_seconds = {self.summary_clip_seconds}: 0 < shortest ≤ longest is needed")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run: what is trained, from where, towards which objectives and how fast."""

    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    # A checkpoint (ours, or a released HierVL or EgoVLP .pth) to start from in place of `init`.
    init_from: Path | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
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

    def step_kind(self, step: int) -> StepKind:
        """Return which kind of step number `step` (from 0) is: a parent step after every few child steps."""
        if self.objective.parent is None:
            return "child"
        if self.objective.child is None:
            return "parent"
        period = self.schedule.child_steps_per_parent_step + 1
        return "parent" if step % period == period - 1 else "child"
