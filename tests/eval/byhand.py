"""Embeddings computed one input at a time: what an evaluation must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hiervl_train.checkpoint.open import open_checkpoint
from hiervl_train.models.pixels import normalise
from shards.config import LoaderConfig
from shards.loader import Loader


def by_hand(checkpoint: Path, root: Path, set_name: str, split: str, keys: Sequence[str]) -> np.ndarray:
    """Return the embeddings of clips of two frames, computed one at a time."""
    model = open_checkpoint(checkpoint).model
    found = {}
    config = LoaderConfig(global_batch=1, workers=0, frames=2, size=model.config.image_hw[0])
    with Loader(root, set_name, split, config, is_training=False) as loader, torch.no_grad():
        for batch in loader:
            found[batch.keys[0]] = model.encode_video(normalise(batch.video))[0].numpy()
    return np.stack([found[key] for key in keys])


def texts_by_hand(checkpoint: Path, texts: Sequence[str]) -> np.ndarray:
    """Return the embeddings of texts, computed one at a time."""
    opened = open_checkpoint(checkpoint)
    with torch.no_grad():
        return np.concatenate([opened.model.encode_text(*opened.tokenizer([text])).numpy() for text in texts])


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
