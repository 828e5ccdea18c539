"""A small model, its tokenizer and a dataset of coded clips, for tests of embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from eval.embed import EmbedSettings
from hiervl_train.models import HierVL
from hiervl_train.models.storage import save
from hiervl_train.tokenizer import Tokenizer
from shards.dataset import Dataset, open_dataset
from tests.hiervl_train.tiny import tiny_config, tiny_model, tiny_text
from tests.shards.coded import coded_dataset, coded_summary

SETTINGS = EmbedSettings(frames=2, windows=3, micro_batch=4, part_samples=8)


def small_model(seed: int = 0) -> HierVL:
    """Return a model for 16 × 16 pixels and up to six windows, in evaluation mode."""
    return tiny_model(seed=seed, dtype=torch.float32).eval()


def small_tokenizer(*texts: str) -> Tokenizer:
    """Return a tokenizer that knows the texts of the coded clips and `texts`."""
    known = ["#C C does part #Summary C did", *map(str, range(20)), *texts]
    return Tokenizer.build(known, vocab_size=40, max_length=16)


def small_dataset(root: Path) -> Dataset:
    """Write 18 clips of 5 videos in three shards, and 5 summaries."""
    summaries = [coded_summary(n, seconds=6 + n, narrations=2, video=f"video-{n:03d}") for n in range(5)]
    return coded_dataset(root, summaries=summaries)


def save_small_checkpoint(folder: Path, root: Path, *, seed: int = 0) -> Path:
    """Write a checkpoint of a small model whose tokenizer knows the words of every text of a dataset."""
    parts = [part for _, _, part in open_dataset(root).splits()]
    words = [text for part in parts for text in part.rows(["text"])["text"].to_pylist()]
    tokenizer = Tokenizer.build(words, vocab_size=400, max_length=16)
    text = replace(tiny_text(), vocab_size=400)
    save(tiny_model(tiny_config(text=text), seed=seed, dtype=torch.float32), folder)
    tokenizer.save(folder)
    return folder
