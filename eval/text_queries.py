"""Embeds single texts with an opened checkpoint, for searches that come one after another."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from eval.config import EvalConfig
from eval.embed import embed_texts
from eval.run import open_configured
from hiervl_train.distributed import DistributedContext


class TextEncoder:
    """Embeds one text at a time, from any thread."""

    def __init__(self, checkpoint: str | Path) -> None:
        """Open a run, a checkpoint or a .pth; raises as `open_checkpoint` does."""
        config = EvalConfig(checkpoint=Path(checkpoint))
        self._ranks, self._lock = DistributedContext(), threading.Lock()
        self._opened = open_configured(config, self._ranks)
        self._settings = config.embedding(self._opened)
        self.digest = self._opened.digest  # of the weights

    def __call__(self, text: str) -> np.ndarray:
        """Return the embedding (D,) of a text."""
        with self._lock:
            found = embed_texts(self._opened.model, self._opened.tokenizer, [text], self._settings, ranks=self._ranks)
        assert found is not None, "one rank embeds everything"
        vector_D: np.ndarray = found.of([text])[0]
        return vector_D
