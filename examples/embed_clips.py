"""Embeds clips and captions into one space and ranks the captions for each clip.

python examples/embed_clips.py [ROOT] [CHECKPOINT]

ROOT is data/embedded/shards by default, which `make demo` builds, with the checkpoint data/embedded/run/checkpoints/….
Without a checkpoint a small model with random weights runs: the shapes are right, the ranks are chance.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.functional import normalize

from hiervl_train.models import AggregatorConfig, HierVL, ModelConfig, TextConfig
from hiervl_train.models.pixels import normalise
from hiervl_train.tokenizer import Tokenizer
from shards.config import LoaderConfig
from shards.loader import Loader

TEXT = TextConfig(vocab_size=500, max_position_embeddings=64, n_layers=1, n_heads=1, dim=32, hidden_dim=64)
SMALL = ModelConfig(
    img_size=64, embed_dim=64, depth=2, num_heads=2, num_frames=4, projection_dim=32, text=TEXT,
    aggregator=AggregatorConfig(depth=1, num_heads=2),
)  # fmt: skip


@torch.inference_mode()
def main(root: Path, checkpoint: Path | None = None) -> None:
    """Print, for each clip of a batch, its caption and the caption that the model ranks first."""
    model = HierVL.from_checkpoint(checkpoint) if checkpoint else HierVL(SMALL).eval()
    height, _ = model.config.image_hw
    config = LoaderConfig(global_batch=8, frames=4, size=height, workers=1)
    loader = Loader(root, "clips", "val", config, is_training=False)
    batch = next(iter(loader))
    loader.close()
    length = model.config.text.max_position_embeddings
    if checkpoint:
        tokenizer = Tokenizer.from_pretrained(checkpoint, max_length=length)
    else:
        tokenizer = Tokenizer.build(batch.texts, vocab_size=TEXT.vocab_size, max_length=length)
    clips_BD = model.encode_video(normalise(batch.video))
    texts_BD = model.encode_text(*tokenizer(batch.texts))
    print(f"clips {tuple(clips_BD.shape)}, texts {tuple(texts_BD.shape)}")
    scores_BB = normalize(clips_BD, dim=1) @ normalize(texts_BD, dim=1).T
    for text, best in zip(batch.texts, scores_BB.argmax(dim=1).tolist(), strict=True):
        print(f"{text!r} → {batch.texts[best]!r}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:] or ["data/embedded/shards"]))
