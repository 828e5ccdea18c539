"""Made-up batches and the pretraining steps of a tiny model, without a dataset: for tests of what a step does."""

from __future__ import annotations

import torch

from configs.loading import from_dict
from hiervl_train.config import PretrainConfig
from hiervl_train.models import HierVL
from hiervl_train.steps import PretrainSteps
from hiervl_train.tokenizer import Tokenizer
from shards.loader import NOUNS, VERBS, Batch

WORDS = ["c", "picks", "up", "puts", "down", "opens", "the", "a", "cup", "drawer", "knife", "cloth", "red", "blue"]
FRAMES, WINDOWS, NARRATIONS, SIZE = 2, 3, 3, 16
MODEL: dict[str, object] = {
    "img_size": SIZE,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "num_frames": 4,
    "text": {
        "vocab_size": 40,
        "max_position_embeddings": 32,
        "n_layers": 1,
        "n_heads": 2,
        "dim": 16,
        "hidden_dim": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "projection_dim": 8,
    "aggregator": {"depth": 2, "num_heads": 2, "tokens": 6, "drop_path": 0.0},
}


def config_of(**sections: dict[str, object]) -> PretrainConfig:
    """Return the configuration of a tiny run; a section updates the tiny one's."""
    tree: dict[str, dict[str, object]] = {
        "model": MODEL,
        "sample": {"frames": FRAMES, "windows": WINDOWS, "narrations": NARRATIONS},
        "schedule": {"clips": 8, "summaries": 4, "clip_micro_batch": None, "summary_micro_batch": None},
        "speed": {"bf16": False, "compile": False},
        "objective": {"temperature": 0.2},
    }
    merged = {name: tree.get(name, {}) | sections.get(name, {}) for name in tree.keys() | sections.keys()}
    return from_dict(PretrainConfig, merged)


def tokenizer_of(config: PretrainConfig) -> Tokenizer:
    """Return a tokenizer of `WORDS`."""
    return Tokenizer.build(WORDS, vocab_size=40, max_length=config.model.text.max_position_embeddings, buckets=(8, 16))


def steps_of(config: PretrainConfig, *, seed: int = 0) -> tuple[HierVL, PretrainSteps]:
    """Return a model with random weights, in training mode, and its steps."""
    torch.manual_seed(seed)
    model = HierVL(config.model).train()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data += 0.1 * torch.randn_like(parameter)  # time attention, too, does something
    return model, PretrainSteps(model, tokenizer_of(config), config)


def batch_of(step_type: str, count: int, *, seed: int = 0, rank: int = 0) -> Batch:
    """Return a batch of clips ("child") or summaries ("parent"), another one for each seed and rank."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    is_parent = step_type == "parent"
    shape = (count, WINDOWS, FRAMES) if is_parent else (count, FRAMES)

    def text() -> str:
        picked = torch.randint(0, len(WORDS), (4,), generator=generator).tolist()
        return " ".join(WORDS[word] for word in picked)

    return Batch(
        epoch=0,
        number=seed,
        keys=[f"{rank}-{row}" for row in range(count)],
        frames=torch.randint(0, 256, (*shape, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8),
        texts=[text() for _ in range(count)],
        narrations=[[text() for _ in range(NARRATIONS)] for _ in range(count)] if is_parent else [],
        verbs_BV=(torch.rand(count, VERBS, generator=generator) < 0.02).float(),
        nouns_BO=(torch.rand(count, NOUNS, generator=generator) < 0.01).float(),
        is_scene_B=torch.zeros(count, dtype=torch.bool),
        failures=[()] * count,
    )
