"""Parts of embeddings are joined by row number."""

from __future__ import annotations

import numpy as np

from eval.embed.rows import EmbeddedRows, join_rows


def rows(numbers: list[int], **failed: str) -> EmbeddedRows:
    values = np.array(numbers, np.float32)[:, None] * np.ones(3, np.float32)
    return EmbeddedRows(
        rows=np.array(numbers, np.int64), values=values, failed={int(name[1:]): why for name, why in failed.items()}
    )


def test_parts_are_joined_in_the_order_of_rows_and_repeated_rows_once() -> None:
    joined = join_rows([rows([4, 5], r6="broken"), rows([0, 2]), rows([2, 4], r1="cut short")], (3,))
    assert joined.rows.tolist() == [0, 2, 4, 5] and joined.values[:, 0].tolist() == [0, 2, 4, 5]
    assert joined.failed == {6: "broken", 1: "cut short"} and joined.samples == 6


def test_no_parts_have_the_shape_of_no_entries() -> None:
    joined = join_rows([], (4, 3))
    assert joined.rows.dtype == np.int64 and joined.values.shape == (0, 4, 3) and joined.values.dtype == np.float32
