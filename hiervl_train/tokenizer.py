"""Turns texts into token ids of a few lengths, with a pretrained tokenizer or one built from the texts themselves.

Shapes in names: B texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import tokenizers
import torch
from pydantic import Field
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor

from hiervl_train.models.text import load_tokenizer
from shards.files import write_bytes

FILE = "tokenizer.json"
BUCKETS = (16, 32, 64, 128, 256, 512)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class TokenizerError(ValueError):
    """A tokenizer cannot be used; the message names the file and what is wrong with it."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """Which tokenizer turns captions into tokens."""

    # Hub name or folder of a tokenizer. null: the checkpoint's own, or for a released one that of DistilBERT; where
    # training starts from no checkpoint, that of `init.text`, else the words of the training set's own texts.
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(TokenizerSource):
    """How captions become tokens."""

    # Lengths in tokens that texts are padded to; a compiled model has one graph for each.
    buckets: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = BUCKETS


class Tokenizer:
    """Texts → (input_ids_BL, attention_mask_BL), padded to one of a few lengths, so that few shapes are compiled.

    tokenizer = Tokenizer.from_pretrained("distilbert-base-uncased", max_length=512)
    ids_BL, mask_BL = tokenizer(["#C C opens the drawer"])  # (1, 16) each
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, pad_id: int, max_length: int, buckets: Sequence[int] = BUCKETS
    ) -> None:
        """Truncate texts to `max_length` tokens (the encoder's positions); longer buckets are ignored."""
        self._backend, self._pad_id, self._max_length = backend, pad_id, max_length
        self._buckets = (*sorted(bucket for bucket in buckets if bucket < max_length), max_length)
        backend.no_padding()
        backend.enable_truncation(max_length)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, max_length: int, buckets: Sequence[int] = BUCKETS) -> Tokenizer:
        """Return the tokenizer of a checkpoint's folder or of a text encoder, by hub name or local folder.

        Raises `TokenizerError` on a damaged file and `models.errors.MissingPretrained` where none can be found.
        """
        file = Path(source) / FILE
        if not file.is_file():
            pretrained = load_tokenizer(str(source))
            pad_id = pretrained.pad_token_id if pretrained.pad_token_id is not None else 0
            return cls(pretrained.backend_tokenizer, pad_id=pad_id, max_length=max_length, buckets=buckets)
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise TokenizerError(f"{file}: not a tokenizer: {error}") from error
        return cls(backend, pad_id=_pad_id(backend), max_length=max_length, buckets=buckets)

    @classmethod
    def build(
        cls, texts: Iterable[str], *, vocab_size: int, max_length: int, buckets: Sequence[int] = BUCKETS
    ) -> Tokenizer:
        """Return a tokenizer with a vocabulary of the whole words in these texts; deterministic.

        For models that are trained from scratch, so that no hub is needed. Words are ranked by count, then
        alphabetically; words beyond `vocab_size` become [UNK].
        """
        normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        counts: dict[str, int] = {}
        for text in texts:
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
                counts[word] = counts.get(word, 0) + 1
        words = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - len(_SPECIAL)]
        vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *words))}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106  not a password
        backend.normalizer, backend.pre_tokenizer = normalizer, splitter
        backend.add_special_tokens(list(_SPECIAL))
        ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        return cls(backend, pad_id=0, max_length=max_length, buckets=buckets)

    @property
    def size(self) -> int:
        """The number of tokens: ids are below it, and the encoder's vocabulary must be at least as large."""
        return self._backend.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask, (B, L) int64 on the CPU, L the shortest bucket that fits the longest text."""
        encoded = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]
        longest = max(map(len, encoded), default=1)
        length = next(bucket for bucket in self._buckets if bucket >= longest)
        ids_BL = np.full((len(encoded), length), self._pad_id, np.int64)
        mask_BL = np.zeros((len(encoded), length), np.int64)
        for row, ids in enumerate(encoded):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
        return torch.from_numpy(ids_BL), torch.from_numpy(mask_BL)

    def to_bytes(self) -> bytes:
        """Return the content of `tokenizer.json`."""
        copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
        token = copy.id_to_token(self._pad_id)
        copy.enable_padding(pad_id=self._pad_id, pad_token=token if token is not None else "[PAD]")
        return copy.to_str().encode()

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into a folder, atomically; return its path."""
        path = Path(folder) / FILE
        write_bytes(path, self.to_bytes())
        return path


def require_fit(tokenizer: Tokenizer, vocab_size: int, where: object) -> None:
    """Raise `TokenizerError` where a tokenizer has more tokens than the text encoder (of `where`) has embeddings."""
    if tokenizer.size > vocab_size:
        raise TokenizerError(
            f"{where}: the tokenizer has {tokenizer.size} tokens, the text encoder embeddings for {vocab_size}: they "
            "do not belong together; use the encoder's own tokenizer"
        )


def _pad_id(backend: tokenizers.Tokenizer) -> int:
    """Return the padding id: the file's, else that of a usual padding token, else 0 (the mask hides it anyway)."""
    if backend.padding:
        return int(backend.padding["pad_id"])
    return next((i for name in ("[PAD]", "<pad>") if (i := backend.token_to_id(name)) is not None), 0)
