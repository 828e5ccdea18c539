"""The configuration of a fine-tuning run: one typed tree, filled from `configs/finetune/*.yaml`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hiervl_train.compat import CompatConfig
from hiervl_train.config import TextConfig
from hiervl_train.data import DataConfig
from hiervl_train.models.config import ModelConfig
from hiervl_train.settings import RunConfig, RunSettings

TaskName = Literal["charades_ego", "epic_mir", "howto100m"]
ModelPart = Literal["video", "video_projection", "text", "text_projection", "aggregator"]
Pooling = Literal["mean", "aggregator"]

# Which keys of `TaskConfig` each task reads.
KNOBS: dict[TaskName, tuple[str, ...]] = {
    "charades_ego": ("temperature",),
    "epic_mir": ("margin", "relevancy_above"),
    "howto100m": ("classes", "pooling"),
}


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is learnt, which also names the set that it is learnt from, and the knobs of its loss."""

    name: TaskName = "charades_ego"
    temperature: float = 0.05  # charades_ego: of InfoNCE
    margin: float = 0.2  # epic_mir: of a pair of relevancy 1
    relevancy_above: float = 0.1  # epic_mir: sentences more relevant than this are a clip's positives
    classes: int | None = None  # howto100m: of the head; null: as many as labels.json names
    pooling: Pooling = "mean"  # howto100m: what makes one embedding of a video's windows

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self)[1:]:
            if spec.name not in KNOBS[self.name] and getattr(self, spec.name) != spec.default:
                raise ValueError(
                    f"{spec.name} = {getattr(self, spec.name)} means nothing to {self.name}, "
                    f"whose keys are {', '.join(KNOBS[self.name])}"
                )
        if self.temperature <= 0 or self.margin <= 0:
            raise ValueError(f"temperature = {self.temperature}, margin = {self.margin}: both must be above 0")
        if not 0 <= self.relevancy_above < 1:
            raise ValueError(f"relevancy_above = {self.relevancy_above}: at least 0 and below 1")
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes = {self.classes}: at least 2 are needed, or null")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How many epochs, in batches of how many. The batch is global: the same on any number of GPUs."""

    epochs: int = 20
    batch: int = 32  # samples of a step, all ranks together: clips, or long videos
    # What a GPU encodes at once. Of the contrastive tasks a larger share is reached by cached gradients, of
    # classification by adding up. null: all of it.
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: at least 1 is needed")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What a sample holds."""

    frames: int = 16  # of a clip, or of each window of a long video; more than the checkpoint's slots: zero ones join
    windows: int = 16  # of a long video
    window_seconds: float = 8.0  # of a window at most

    def __post_init__(self) -> None:
        for name in ("frames", "windows", "window_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunSettings):
    """A fine-tuning run: from which checkpoint, for what, on what; see also `RunSettings`.

    `checkpoint` is when checkpoints are written, as in pretraining; the one to start from is `init_from`.
    """

    run: RunConfig = field(default_factory=lambda: RunConfig(folder=Path("runs/finetune")))
    init_from: Path | None = None  # a checkpoint's folder, a run's folder, or a released .pth
    which: Literal["best", "newest"] = "best"  # of a run's checkpoints; the newest where none is known as the best
    average: bool = True  # start from the average of the weights where the run kept one
    model: ModelConfig | None = None  # sizes of a released checkpoint that are not the published ones
    task: TaskConfig = field(default_factory=TaskConfig)
    freeze: tuple[ModelPart, ...] = ()  # stay as they are, without dropout; so do parts that the task does not use
    data: DataConfig = field(default_factory=DataConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    text: TextConfig = field(default_factory=TextConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)

    def __post_init__(self) -> None:
        if self.task.name != "howto100m" and self.schedule.batch < 2:
            raise ValueError(f"schedule.batch = {self.schedule.batch}: {self.task.name} compares pairs of a batch")
        if self.optim.apply_zero_grads:
            raise ValueError("optim.apply_zero_grads = true is about pretraining's two kinds of steps: leave it out")
