"""Embedding the splits of a small dataset, as tests of several modules do."""

from __future__ import annotations

from pathlib import Path

from eval.embed import SampleEmbeddings, embed_split
from hiervl_train.models import HierVL
from tests.eval.small import SETTINGS

CLIPS, SUMMARIES = ("clips", "train"), ("summaries", "train")


def embedded(model: HierVL, root: Path, split: tuple[str, str] = CLIPS, **options: object) -> SampleEmbeddings:
    """Return the embeddings of a split; `options` are those of `embed_split`."""
    settings = options.pop("settings", SETTINGS)
    found = embed_split(model, root, *split, settings, **options)  # type: ignore[arg-type]
    assert found is not None
    return found
