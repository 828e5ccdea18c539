"""Extracts features of texts: any encoder of transformers, or the token ids of any tokenizer.

Shapes in names: B texts of a pass, L tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiervl_train.features.config import ExtractConfig
from hiervl_train.features.extractor import ExtractorError, Reads, weights_hash
from hiervl_train.models.speed import autocast
from hiervl_train.models.text import load_pretrained
from hiervl_train.tokenizer import Tokenizer
from shards.features import ArraySpec

_TEXTS_PER_PASS = 64


class _Texts:
    """What both extractors of texts share."""

    def __init__(self, config: ExtractConfig, spec: ArraySpec, tokenizer: Tokenizer) -> None:
        self._config, self._spec, self._tokenizer = config, spec, tokenizer

    @property
    def reads(self) -> Reads | None:
        """See `Extractor.reads`: no frames."""
        return None

    def arrays(self, set_name: str) -> tuple[ArraySpec, ...]:
        """See `Extractor.arrays`; narrations only where a text is one row."""
        if set_name != "summaries" or self._spec.level == "token":
            return (self._spec,)
        return (
            self._spec,
            ArraySpec(name="narrations", level="narration", dtype=self._spec.dtype, shape=self._spec.shape),
        )

    def identity(self) -> dict[str, Any]:
        """See `Extractor.identity`."""
        source = str(self._config.extractor.source)
        return {
            "source": Path(source).name if Path(source).exists() else source,
            "max_tokens": self._config.extractor.max_tokens,
            "tokenizer": hashlib.sha256(self._tokenizer.to_bytes()).hexdigest(),
        }

    def encode_frames(self, frames: Tensor) -> dict[str, Tensor]:
        """See `Extractor.encode_frames`: never called, as no frames are read."""
        raise ExtractorError(f"extractor.kind = {self._config.extractor.kind} has no features of frames")


class Tokens(_Texts):
    """Token ids, one row a token, without padding."""

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Extractor.encode_texts`: (L,) int32 of each text."""
        rows: list[np.ndarray] = []
        for start in range(0, len(texts), _TEXTS_PER_PASS):
            ids_BL, mask_BL = self._tokenizer(list(texts[start : start + _TEXTS_PER_PASS]))
            rows += [ids[mask.bool()].numpy().astype(np.int32) for ids, mask in zip(ids_BL, mask_BL, strict=True)]
        return rows


class TextEncoder(_Texts):
    """The states of an encoder: the first token's, or those of all tokens."""

    def __init__(
        self, config: ExtractConfig, spec: ArraySpec, tokenizer: Tokenizer, encoder: Any, device: torch.device
    ) -> None:
        super().__init__(config, spec, tokenizer)
        self._encoder, self._device = encoder, device
        self._hash = weights_hash(encoder.state_dict())

    def identity(self) -> dict[str, Any]:
        """See `Extractor.identity`."""
        rows = "token" if self._spec.level == "token" else self._config.extractor.pooling
        return {**super().identity(), "weights": {"text": self._hash}, "rows": rows}

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Extractor.encode_texts`: (1, D), or (L, D), of each text."""
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))  # similar lengths: little padding
        rows: list[np.ndarray] = [np.empty(0)] * len(texts)
        for start in range(0, len(texts), _TEXTS_PER_PASS):
            chosen = order[start : start + _TEXTS_PER_PASS]
            ids_BL, mask_BL = self._tokenizer([texts[i] for i in chosen])
            with torch.inference_mode(), autocast(self._device, self._config.speed):
                states_BLD = self._encoder(
                    input_ids=ids_BL.to(self._device), attention_mask=mask_BL.to(self._device)
                ).last_hidden_state
            states = states_BLD.float().cpu().numpy()
            for i, own_LD, mask_L in zip(chosen, states, mask_BL.bool().numpy(), strict=True):
                rows[i] = self._rows(own_LD[mask_L])
        return rows

    def _rows(self, states_LD: np.ndarray) -> np.ndarray:
        if self._spec.level == "token":
            return states_LD
        is_mean = self._config.extractor.pooling == "mean"
        return states_LD.mean(axis=0, keepdims=True) if is_mean else states_LD[:1]


def build_transformers(config: ExtractConfig, device: torch.device) -> TextEncoder:
    """Return a text encoder of transformers with its tokenizer."""
    source = str(config.extractor.source)
    encoder: Any = load_pretrained(source).eval().to(device)
    positions = int(getattr(encoder.config, "max_position_embeddings", 0) or config.extractor.max_tokens)
    tokenizer = Tokenizer.from_pretrained(source, max_length=min(config.extractor.max_tokens, positions))
    level = "token" if config.extractor.per_token else "text"
    width = int(encoder.config.hidden_size)
    spec = ArraySpec(name="text", level=level, dtype=config.dtype, shape=(width,))
    return TextEncoder(config, spec, tokenizer, encoder, device)


def build_tokens(config: ExtractConfig, _: torch.device) -> Tokens:
    """Return the tokenizer of a hub name or local folder."""
    tokenizer = Tokenizer.from_pretrained(str(config.extractor.source), max_length=config.extractor.max_tokens)
    return Tokens(config, ArraySpec(name="text", level="token", dtype="int32", shape=()), tokenizer)
