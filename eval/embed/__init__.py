"""Embeddings of samples and texts: each distinct input once, identical for any number of ranks, cached on disk."""

from eval.embed.aggregation import aggregate_windows, is_order_sensitive
from eval.embed.samples import SampleEmbeddings, embed_split
from eval.embed.settings import EmbedError, EmbedSettings
from eval.embed.texts import TextEmbeddings, embed_texts

__all__ = [
    "EmbedError",
    "EmbedSettings",
    "SampleEmbeddings",
    "TextEmbeddings",
    "aggregate_windows",
    "embed_split",
    "embed_texts",
    "is_order_sensitive",
]
