"""The configuration of a fine-tuning run: one typed tree, filled from `configs/finetune/*.yaml`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from hiervl_train.config import CompatConfig, RunConfig, RunSettings
from hiervl_train.data import DataConfig
from hiervl_train.models.config import ModelConfig, ModelPart
from hiervl_train.tokenizer import TokenizerConfig

TaskName = Literal["charades_ego", "epic_mir", "howto100m"]
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

    name: TaskName = "charades_ego"  # what is learnt, from the set of the same name
    temperature: PositiveFloat = 0.05  # charades_ego: temperature of InfoNCE
    margin: PositiveFloat = 0.2  # epic_mir: margin of a pair of relevancy 1
    # epic_mir: sentences of a greater relevancy than this are positives of a clip.
    relevancy_above: Annotated[float, Field(ge=0, lt=1)] = 0.1
    # howto100m: classes of the head; null: as many as labels.json names.
    classes: Annotated[int, Field(ge=2)] | None = None
    pooling: Pooling = "mean"  # howto100m: how a video's windows become one embedding

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self)[1:]:
            if spec.name not in KNOBS[self.name] and getattr(self, spec.name) != spec.default:
                raise ValueError(
                    f"{spec.name} = {getattr(self, spec.name)} means nothing to {self.name}, "
                    f"whose keys are {', '.join(KNOBS[self.name])}"
                )


@dataclass(frozen=True, kw_only=True)
class FinetuneScheduleConfig:
    """How many epochs, on which batches. The batch size is global: independent of the number of GPUs."""

    epochs: PositiveInt = 20  # passes over the training split
    batch: PositiveInt = 32  # samples per step, all ranks together: clips, or long videos
    # Samples that a GPU encodes at a time; gradient caching (contrastive tasks) or accumulation (classification) covers
    # a larger share of the batch. null: the whole share.
    micro_batch: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneSampleConfig:
    """What a sample holds."""

    # Per clip, and per window of a long video. A checkpoint with fewer temporal positions gets zero ones for the rest.
    frames: PositiveInt = 16
    windows: PositiveInt = 16  # per long video
    window_seconds: PositiveFloat = 8.0  # greatest length of a window, s


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunSettings):
    """A fine-tuning run: from which checkpoint, for what, on what; see also `RunSettings`."""

    run: RunConfig = field(default_factory=lambda: RunConfig(folder=Path("runs/finetune")))
    init_from: Path | None = None  # weights to start from: a run, one of its checkpoints, or a released .pth
    which: Literal["best", "newest"] = "best"  # checkpoint of a run; the newest where none is known as the best
    average: bool = True  # start from the average of the weights where the run kept one (optim.ema)
    model: ModelConfig | None = None  # sizes of a released checkpoint that are not the published ones
    task: TaskConfig = field(default_factory=TaskConfig)
    # Parts that are not trained, and run without dropout; so do parts that the task does not use.
    freeze: tuple[ModelPart, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    sample: FinetuneSampleConfig = field(default_factory=FinetuneSampleConfig)
    schedule: FinetuneScheduleConfig = field(default_factory=FinetuneScheduleConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)

    def __post_init__(self) -> None:
        if self.task.name != "howto100m" and self.schedule.batch < 2:
            raise ValueError(f"schedule.batch = {self.schedule.batch}: {self.task.name} compares pairs of a batch")
        if self.data.features is not None:
            raise ValueError(f"data.features = {self.data.features}: fine-tuning reads video; eval/ has a linear probe")
        if self.optim.apply_zero_grads:
            raise ValueError("optim.apply_zero_grads = true is about pretraining alone: leave it out")
