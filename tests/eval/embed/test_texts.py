"""Each distinct text is embedded once, whatever other texts are in its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from eval.embed import TextEmbeddings, embed_texts
from hiervl_train.models import HierVL
from tests.eval.small import SETTINGS, small_tokenizer


def test_each_distinct_text_is_embedded_once_whatever_else_is_in_its_batch(model: HierVL, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    texts = ["#C C does 3", "#C C does", "#C C does 3", "part"]

    def of(listed: list[str], **options: object) -> TextEmbeddings:
        found = embed_texts(model, tokenizer, listed, SETTINGS, **options)  # type: ignore[arg-type]
        assert found is not None
        return found

    found = of(texts)
    assert len(found.vectors_ND) == 3
    with torch.no_grad():
        alone = torch.cat([model.encode_text(*tokenizer([text])) for text in texts])
    np.testing.assert_allclose(found.of(texts), alone.numpy(), atol=1e-5)
    first, again = of(texts, cache=tmp_path, digest="a"), of(texts[::-1], cache=tmp_path, digest="a")
    np.testing.assert_array_equal(first.vectors_ND, again.vectors_ND)
    assert len(list(tmp_path.glob("*/feature.json"))) == 1
    of([*texts, "did"], cache=tmp_path, digest="a")
    of(texts, cache=tmp_path, digest="b")
    assert len(list(tmp_path.glob("*/feature.json"))) == 3
