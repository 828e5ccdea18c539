"""What every training run is told, whatever it trains: where it writes, how it optimises, when it saves and stops."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hiervl_train.checkpoint.manager import CheckpointConfig
from hiervl_train.distributed import DistributedConfig
from hiervl_train.evaluation import EvaluationConfig
from hiervl_train.models.speed import SpeedConfig
from hiervl_train.monitor.metrics import MetricsConfig
from hiervl_train.monitor.profiler import ProfileConfig
from hiervl_train.optim import OptimConfig
from hiervl_train.preemption import PreemptionConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: its folder, its seed, its bounds. The same command on the same folder goes on where it stopped."""

    folder: Path = Path("runs/pretrain")
    seed: int = 0  # of weights, dropout, and of the order and augmentation of the data
    max_steps: int | None = None  # stop after so many steps in all, before the schedule's end
    # Kernels whose sums have one order: the same losses bit for bit on one kind of GPU, and slower.
    deterministic: bool = False
    max_consecutive_skips: int = 20  # steps in a row without a finite loss, before the run ends
    collect_garbage_every: int = 1000  # steps; at one moment on all ranks, as a pause of one is a pause of all

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_consecutive_skips", "collect_garbage_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: at least 1 is needed")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}: at least 0 is needed")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The sections that pretraining and fine-tuning share."""

    run: RunConfig = field(default_factory=RunConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
