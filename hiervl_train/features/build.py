"""Chooses the extractor of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from hiervl_train.features import images, texts, towers
from hiervl_train.features.config import ExtractConfig, ExtractorKind
from hiervl_train.features.extractor import Extractor

Build = Callable[[ExtractConfig, torch.device], Extractor]


def build_extractor(config: ExtractConfig, device: torch.device) -> Extractor:
    """Return the configured extractor on a device.

    Raises `ExtractorError`, `CheckpointError`, `MissingPretrained` or `TokenizerError` where its model cannot be used.
    """
    builders: Mapping[ExtractorKind, Build] = {
        "towers": towers.build,
        "timm": images.build_timm,
        "transformers_vision": images.build_transformers,
        "open_clip": images.build_open_clip,
        "transformers_text": texts.build_transformers,
        "tokens": texts.build_tokens,
    }
    return builders[config.extractor.kind](config, device)
