"""Embeds single texts with an opened checkpoint, for searches that come one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eval.config import EvalConfig
from eval.embed import embed_texts
from eval.run import open_configured
from hiervl_train.distributed import DistributedContext


def open_encoder(checkpoint: str | Path) -> Callable[[str], np.ndarray]:
    """Return a function from a text to its embedding (D,), with the model of a run, a checkpoint or a .pth.

    It may be called from any thread. Raises as `open_checkpoint` does.
    """
    config, ranks, lock = EvalConfig(checkpoint=Path(checkpoint)), DistributedContext(), threading.Lock()
    opened = open_configured(config, ranks)
    settings = config.embedding(opened)

    def encode(text: str) -> np.ndarray:
        with lock:
            found = embed_texts(opened.model, opened.tokenizer, [text], settings, ranks=ranks)
        assert found is not None, "one rank embeds everything"
        vector_D: np.ndarray = found.of([text])[0]
        return vector_D

    return encode
