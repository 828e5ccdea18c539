"""From texts to token ids of a few lengths: a pretrained encoder's tokenizer, or one made of the texts themselves.

Shapes in names: B texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor

from hiervl_train.models.text import load_tokenizer
from shards.files import write_bytes

FILE = "tokenizer.json"
BUCKETS = (16, 32, 64, 128, 256, 512)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message names the file and what is wrong."""

    exit_code: ClassVar[int] = 2


class Tokenizer:
    """Texts → (input_ids_BL, attention_mask_BL), padded to one of a few lengths, so that few shapes are compiled."""

    def __init__(
        self, backend: tokenizers.Tokenizer, *, pad_id: int, max_length: int, buckets: Sequence[int] = BUCKETS
    ) -> None:
        """Texts are cut at `max_length` tokens (the encoder's positions); buckets above it are left out."""
        self._backend, self._pad_id, self._max_length = backend, pad_id, max_length
        self._buckets = (*sorted(bucket for bucket in buckets if bucket < max_length), max_length)
        backend.no_padding()
        backend.enable_truncation(max_length)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, max_length: int, buckets: Sequence[int] = BUCKETS) -> Tokenizer:
        """Return the tokenizer of a checkpoint's folder or of a text encoder, by hub name or local folder.

        Raises `TokenizerError` on a broken file, `models.text.MissingPretrained` where there is none to be had.
        """
        file = Path(source) / FILE
        if not file.is_file():
            found = load_tokenizer(str(source))
            pad_id = found.pad_token_id if found.pad_token_id is not None else 0
            return cls(found.backend_tokenizer, pad_id=pad_id, max_length=max_length, buckets=buckets)
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise TokenizerError(f"{file}: not a tokenizer's JSON: {error}") from error
        return cls(backend, pad_id=_pad_id(backend), max_length=max_length, buckets=buckets)

    @classmethod
    def build(
        cls, texts: Iterable[str], *, vocab_size: int, max_length: int, buckets: Sequence[int] = BUCKETS
    ) -> Tokenizer:
        """Return a tokenizer whose vocabulary of whole words is made of these texts; the same for the same texts.

        For models that start from nothing, where no hub is needed. Words are ranked by count, then by name; those
        that do not fit are [UNK].
        """
        normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        counts: dict[str, int] = {}
        for text in texts:
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
                counts[word] = counts.get(word, 0) + 1
        words = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - len(_SPECIAL)]
        vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *words))}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106  no password
        backend.normalizer, backend.pre_tokenizer = normalizer, splitter
        backend.add_special_tokens(list(_SPECIAL))
        ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        return cls(backend, pad_id=0, max_length=max_length, buckets=buckets)

    @property
    def size(self) -> int:
        """Token ids are below this: the encoder's vocabulary must be at least as large."""
        return self._backend.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask, (B, L) int64 on the CPU, L the shortest bucket that holds the longest text."""
        found = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]
        longest = max(map(len, found), default=1)
        length = next(bucket for bucket in self._buckets if bucket >= longest)
        ids_BL = np.full((len(found), length), self._pad_id, np.int64)
        mask_BL = np.zeros((len(found), length), np.int64)
        for row, ids in enumerate(found):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
        return torch.from_numpy(ids_BL), torch.from_numpy(mask_BL)

    def to_bytes(self) -> bytes:
        """Return the tokenizer as its file's bytes."""
        copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
        token = copy.id_to_token(self._pad_id)
        copy.enable_padding(pad_id=self._pad_id, pad_token=token if token is not None else "[PAD]")
        return copy.to_str().encode()

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into a folder, whole or not at all; return its path."""
        path = Path(folder) / FILE
        write_bytes(path, self.to_bytes())
        return path


def _pad_id(backend: tokenizers.Tokenizer) -> int:
    """Return the id of padding: as the file says, else the usual tokens', else 0 (the mask hides it anyway)."""
    if backend.padding:
        return int(backend.padding["pad_id"])
    return next((i for name in ("[PAD]", "<pad>") if (i := backend.token_to_id(name)) is not None), 0)
