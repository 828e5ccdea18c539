"""The model: towers, aggregator, where their weights come from and in which layouts they are kept."""

import hiervl_train.models.torchvision_ops  # noqa: F401  timm and transformers import torchvision: mended before they do
from hiervl_train.models.config import AggregatorConfig, InitConfig, ModelConfig, TextConfig
from hiervl_train.models.hiervl import HierVL

__all__ = ["AggregatorConfig", "HierVL", "InitConfig", "ModelConfig", "TextConfig"]
