"""Tiny checkpoints for tests of evaluation: fast to make, with every part of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hiervl_train.models import AggregatorConfig, HierVL, ModelConfig, TextConfig
from hiervl_train.models.storage import save
from hiervl_train.tokenizer import Tokenizer
from shards.dataset import open_dataset
from tests.hiervl_train.tiny import tiny_model

SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 16,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "num_frames": 2,
    "text": TextConfig(vocab_size=400, max_position_embeddings=64, n_layers=1, n_heads=2, dim=16, hidden_dim=32),
    "projection_dim": 8,
    "aggregator": AggregatorConfig(depth=1, num_heads=2, tokens=3, position_std=0.5),
}
READING = ("sample.frames=2", "sample.windows=3", "data.workers=0", "micro_batch=8", "resamples=100", "seed=3")


def tiny_checkpoint(folder: Path, root: Path, *, seed: int = 0, **changes: object) -> Path:
    """Write a checkpoint whose tokenizer knows the words of the dataset at `root`; return its folder."""
    model = tiny_hiervl(seed=seed, **changes)
    save(model, folder)
    tokenizer_of(root).save(folder)
    return folder


def tiny_hiervl(*, seed: int = 0, **changes: object) -> HierVL:
    """Return a model of random weights, in evaluation mode."""
    return tiny_model(ModelConfig(**(SIZES | changes)), seed=seed, dtype=torch.float32).eval()


def tokenizer_of(root: Path) -> Tokenizer:
    """Return a tokenizer that knows the words of a dataset."""
    rows = [open_dataset(root).rows(set_name, "train", ["text"])["text"] for set_name in ("clips", "summaries")]
    texts = [text for column in rows for text in column.to_pylist()]
    return Tokenizer.build(texts, vocab_size=400, max_length=64)
