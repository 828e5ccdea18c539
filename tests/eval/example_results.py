"""Results of a benchmark with given item scores."""

from __future__ import annotations

import numpy as np

from eval.results import Item, Result, Score


def example_result(
    scores: dict[str, list[float]], *, named: dict[str, float] | None = None, **changes: object
) -> Result:
    """Return a result with these item scores per group; its scores are the groups' means unless `named`."""
    items = [
        Item(id=str(i), group=group, text=f"#C C does {i}", score=score, answer=f"right-{i}", predicted=f"p-{score}")
        for group, values in scores.items()
        for i, score in enumerate(values)
    ]
    named = named if named is not None else {f"{group} accuracy": float(np.mean(v)) for group, v in scores.items()}
    fields: dict[str, object] = {
        "benchmark": "egomcq",
        "set_name": "egomcq",
        "split": "test",
        "root": "/data",
        "checkpoint": "runs/a",
        "checkpoint_digest": "aa",
        "fingerprint": "f" * 64,
        "settings": {"video": {"frames": 4}},
        "scores": [Score(name=name, value=value, items=len(items), of=len(items)) for name, value in named.items()],
        "items": items,
    }
    return Result(**{**fields, **changes})  # type: ignore[arg-type]
