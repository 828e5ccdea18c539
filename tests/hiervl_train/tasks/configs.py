"""The configuration files of fine-tuning, for its tests."""

from __future__ import annotations

from pathlib import Path

from configs.loading import load
from hiervl_train.tasks.config import FinetuneConfig

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "finetune"
TASKS = ("charades_ego", "epic_mir", "howto100m_probe", "howto100m_full")


def config_of(task: str, *overrides: str) -> FinetuneConfig:
    return load(FinetuneConfig, FOLDER / f"{task}.yaml", overrides)
