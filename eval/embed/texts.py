"""Embeddings of texts, each distinct one computed once.

Shapes in names: B texts of a batch, L tokens, N texts, D width of the shared space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.loading import to_dict
from eval.embed.batches import compute_batches
from eval.embed.cache import CacheEntry, Covered
from eval.embed.rows import EmbeddedRows
from eval.embed.samples import encoder_hash
from eval.embed.settings import EmbedSettings
from hiervl_train.distributed import DistributedContext
from hiervl_train.features.towers import tower_hashes
from hiervl_train.models import HierVL
from hiervl_train.models.speed import autocast
from hiervl_train.tokenizer import Tokenizer

_TEXTS_PER_PASS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class TextEmbeddings:
    """Distinct texts and their embeddings."""

    index: dict[str, int]  # text → row
    vectors_ND: np.ndarray  # float32, not normalised

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings (N, D) of texts in their order, repeated texts repeatedly."""
        vectors_ND: np.ndarray = self.vectors_ND[[self.index[text] for text in texts]]
        return vectors_ND


def embed_texts(
    model: HierVL,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: EmbedSettings,
    *,
    ranks: DistributedContext | None = None,
    cache: Path | None = None,
    digest: str = "",
) -> TextEmbeddings | None:
    """Return the embeddings of the distinct texts on the first rank, None on the others.

    `cache` and `digest` as in `eval.embed.samples.embed_split`. Raises `EmbedError` if embedding fails on any rank.
    """
    ranks = ranks or DistributedContext()
    distinct = sorted(set(texts), key=lambda text: (len(text), text))  # similar lengths need little padding
    entry = None
    if cache is not None:
        identity: dict[str, Any] = {
            "checkpoint": digest,
            "texts": hashlib.sha256(json.dumps(distinct).encode()).hexdigest(),
            "tokenizer": hashlib.sha256(tokenizer.to_bytes()).hexdigest(),
            "model": encoder_hash(model),
            "speed": to_dict(settings.speed),
            "device": ranks.device.type,
        }
        covered = Covered(
            set_name="texts",
            split="all",
            fingerprint=identity["texts"],
            shards=[("00000.tar", identity["texts"], distinct)],
            keys=distinct,
            array="text",
            level="text",
            width=model.config.projection_dim,
            extractor={"kind": "towers", "layer": "projected", "weights": tower_hashes(model, layer="projected")},
        )
        entry = CacheEntry(cache, identity, covered)

    def encode(begin: int, end: int) -> Iterator[tuple[int, EmbeddedRows]]:
        for number in range(begin, end):
            rows = range(number * _TEXTS_PER_PASS, min((number + 1) * _TEXTS_PER_PASS, len(distinct)))
            ids_BL, mask_BL = tokenizer([distinct[row] for row in rows])
            with torch.inference_mode(), autocast(ranks.device, settings.speed):
                vectors_BD = model.encode_text(ids_BL.to(ranks.device), mask_BL.to(ranks.device))
            values = vectors_BD.float().cpu().numpy()
            yield number, EmbeddedRows(rows=np.array(rows, np.int64), values=values, failed={})

    found = compute_batches(
        -(-len(distinct) // _TEXTS_PER_PASS),
        encode,
        shape=(model.config.projection_dim,),
        part_samples=settings.part_samples,
        ranks=ranks,
        cache=entry,
    )
    if found is None:
        return None
    return TextEmbeddings(index={text: row for row, text in enumerate(distinct)}, vectors_ND=found.values)
