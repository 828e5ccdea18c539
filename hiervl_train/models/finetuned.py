"""The model of a fine-tuning run: the towers of a checkpoint, some of them at rest, and a head for classes.

Parameter names are HierVL's own, and `head.*` beside them: `HierVL.from_checkpoint` reads the towers of such a
checkpoint, and reports the head as ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

from torch import Tensor, nn

from hiervl_train.models import HierVL, ModelConfig
from hiervl_train.tasks.config import ModelPart

PARTS: tuple[ModelPart, ...] = ("video", "video_projection", "text", "text_projection", "aggregator")
HEAD = "head."


class FineTuned(HierVL):
    """HierVL of which some parts are trained, with a linear head where there are classes."""

    def __init__(self, config: ModelConfig, *, trained: Collection[ModelPart], classes: int | None = None) -> None:
        """`trained` are the parts that learn; the head always does. The others keep every weight, and no dropout."""
        super().__init__(config)
        self._at_rest = [part for part in PARTS if part not in trained and getattr(self, part) is not None]
        for part in self._at_rest:
            getattr(self, part).requires_grad_(False)
        self.head = nn.Linear(self.config.projection_dim, classes) if classes is not None else None

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what is trained; what is at rest stays in evaluation mode."""
        super().train(mode)
        for part in self._at_rest:
            getattr(self, part).eval()
        return self

    def trains(self, *parts: ModelPart) -> bool:
        """Return whether any of these parts learns."""
        return any(part not in self._at_rest and getattr(self, part) is not None for part in parts)

    def classify(self, x_BD: Tensor) -> Tensor:
        """Return the logits (B, C) of videos' embeddings."""
        if self.head is None:
            raise ValueError("this model has no head: its task has no classes")
        return self.head(x_BD)

    def take(self, towers: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> bool:
        """Copy in the towers of a checkpoint, and its head where that has the same shape; return whether it had."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith(HEAD)}
        fits = own.keys() == head.keys() and all(own[name].shape == head[name].shape for name in own)
        self.load_state_dict({**own, **towers, **(head if fits else {})})
        return bool(own) and fits
