"""The model: towers, aggregator, initial weights, and the layouts of checkpoints."""

import hiervl_train.models.torchvision_ops  # noqa: F401  before timm and transformers import torchvision
from hiervl_train.models.config import AggregatorConfig, InitConfig, ModelConfig, TextConfig
from hiervl_train.models.hiervl import HierVL

__all__ = ["AggregatorConfig", "HierVL", "InitConfig", "ModelConfig", "TextConfig"]
