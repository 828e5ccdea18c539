"""The tokenizer: buckets, a vocabulary built from texts, its file, and compatibility with transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from hiervl_train.models.errors import MissingPretrained
from hiervl_train.tokenizer import Tokenizer, TokenizerError

TEXTS = ["#C C opens the drawer", "#C C closes the door", "#O a person looks at C's café", ""]


def built(**changes: object) -> Tokenizer:
    return Tokenizer.build(TEXTS, **({"vocab_size": 100, "max_length": 40, "buckets": (8, 16)} | changes))  # type: ignore[arg-type]


@given(st.lists(st.text(max_size=80), min_size=1, max_size=5))
def test_any_text_becomes_ids_of_a_bucket_length_with_a_mask_over_exactly_its_tokens(texts: list[str]) -> None:
    tokenizer = built()
    ids_BL, mask_BL = tokenizer(texts)
    assert ids_BL.shape == mask_BL.shape and ids_BL.shape[1] in (8, 16, 40)
    assert int(ids_BL.max()) < tokenizer.size
    for ids_L, mask_L in zip(ids_BL, mask_BL, strict=True):
        count = int(mask_L.sum())
        assert mask_L.tolist() == [1] * count + [0] * (len(mask_L) - count)
        assert count >= 2 and set(ids_L[count:].tolist()) <= {0}


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts() -> None:
    shuffled = TEXTS * 3
    random.Random(0).shuffle(shuffled)
    again = Tokenizer.build(shuffled, vocab_size=100, max_length=40, buckets=(8, 16))
    assert again.to_bytes() == built().to_bytes()


def test_other_words_are_unknown_and_long_texts_are_truncated() -> None:
    small = built(vocab_size=6)
    ids_BL, _ = small(["C opens the drawer"])
    assert small.size == 6 and 1 in ids_BL.tolist()[0]
    assert built()(["door " * 1000])[0].shape == (1, 40)


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = built()
    tokenizer.save(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path, max_length=40, buckets=(8, 16))
    assert all(torch.equal(a, b) for a, b in zip(tokenizer(TEXTS), again(TEXTS), strict=True))


def test_a_transformers_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "#", "c", "opens", "the"])
    )
    theirs = BertTokenizerFast.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "whole")
    ours = Tokenizer.from_pretrained(tmp_path / "whole", max_length=16, buckets=())
    wanted = theirs(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    ids_BL, mask_BL = ours(TEXTS)
    assert torch.equal(ids_BL, wanted["input_ids"]) and torch.equal(mask_BL, wanted["attention_mask"])


def test_an_invalid_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path, max_length=16)
    with pytest.raises(MissingPretrained, match="nowhere"):
        Tokenizer.from_pretrained(tmp_path / "nowhere", max_length=16)
