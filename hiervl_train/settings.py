"""What every training run is told, whatever it trains: where it writes, how it optimises, when it saves and stops."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from hiervl_train.checkpoint.manager import SaveConfig
from hiervl_train.distributed import DistributedConfig
from hiervl_train.evaluation import EvaluationConfig
from hiervl_train.models.speed import SpeedConfig
from hiervl_train.monitor.metrics import MetricsConfig
from hiervl_train.monitor.profiler import ProfileConfig
from hiervl_train.optim import OptimConfig
from hiervl_train.preemption import PreemptionConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: its folder, its seed, its limits. The same command on the same folder resumes it."""

    folder: Path = Path("runs/pretrain")  # where the run writes
    seed: NonNegativeInt = 0  # of weights, dropout, and the order and augmentation of the data
    max_steps: PositiveInt | None = None  # stop after this many steps in all, before the schedule's end
    # Use kernels that sum in a fixed order: the same losses bit for bit on one kind of GPU, but slower.
    deterministic: bool = False
    max_consecutive_skips: PositiveInt = 20  # steps in a row without a finite loss before the run ends
    # Steps between garbage collections, which all ranks make at the same step, as a pause of one is a pause of all.
    collect_garbage_every: PositiveInt = 1000


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The sections that pretraining and fine-tuning share."""

    run: RunConfig = field(default_factory=RunConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
