"""The text tower equals transformers' DistilBERT, and ignores padding."""

from __future__ import annotations

import pytest
import torch
from transformers import DistilBertModel

from hiervl_train.models.text import transformers_config
from tests.hiervl_train.tiny import random_text, tiny_model


def test_text_tower_equals_transformers_with_materialised_scores():
    model = tiny_model()
    ids, mask = random_text(5, 11)
    settings = transformers_config(model.config.text)
    settings._attn_implementation = "eager"
    eager = DistilBertModel(settings).double().eval()
    eager.load_state_dict(model.text.encoder.state_dict())
    assert model.text.encoder.config._attn_implementation == "sdpa"
    expected = eager(ids, attention_mask=mask).last_hidden_state[:, 0]
    torch.testing.assert_close(model.eval().text(ids, mask), expected, rtol=1e-9, atol=1e-9)


def test_padding_has_no_influence():
    model = tiny_model().eval()
    ids, mask = random_text(6, 9)
    plain = model.encode_text(ids, mask)
    longer = torch.cat([ids.where(mask.bool(), 7), torch.full((6, 4), 13)], dim=1)
    padded = model.encode_text(longer, torch.cat([mask, torch.zeros(6, 4, dtype=torch.long)], dim=1))
    torch.testing.assert_close(padded, plain, rtol=1e-9, atol=1e-9)


def test_text_longer_than_the_positions_is_an_error():
    with pytest.raises(ValueError, match=r"17 tokens.*16 positions"):
        tiny_model().encode_text(*random_text(2, 17))
