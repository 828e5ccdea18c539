"""The model of a fine-tuning run: the towers of a checkpoint, some of them frozen, and a linear head for classes.

Parameter names are HierVL's, plus `head.*`: `HierVL.from_checkpoint` reads the towers from such a checkpoint and
reports the head as ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self, get_args

from torch import Tensor, nn

from hiervl_train.models.config import ModelConfig, ModelPart
from hiervl_train.models.hiervl import HierVL

PARTS: tuple[ModelPart, ...] = get_args(ModelPart)
HEAD = "head."


class FineTuned(HierVL):
    """HierVL with some parts trained and the others frozen, and a linear head where there are classes."""

    def __init__(self, config: ModelConfig, *, trained: Collection[ModelPart], classes: int | None = None) -> None:
        """`trained` parts are learned, and so is the head. Frozen parts keep their weights and have no dropout."""
        super().__init__(config)
        self._frozen = [part for part in PARTS if part not in trained and getattr(self, part) is not None]
        for part in self._frozen:
            getattr(self, part).requires_grad_(False)
        self.head = nn.Linear(self.config.projection_dim, classes) if classes is not None else None

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the trained parts; frozen ones stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            getattr(self, part).eval()
        return self

    def trains(self, *parts: ModelPart) -> bool:
        """Return whether any of these parts is trained."""
        return any(part not in self._frozen and getattr(self, part) is not None for part in parts)

    def classify(self, x_BD: Tensor) -> Tensor:
        """Return the logits (B, C) of videos' embeddings; raise ValueError where there is no head."""
        if self.head is None:
            raise ValueError("this model has no head: its task has no classes")
        logits_BC: Tensor = self.head(x_BD)
        return logits_BC

    def copy_weights(self, towers: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> bool:
        """Copy the towers of a checkpoint, and its head if that has the same shape; return whether the head fitted."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith(HEAD)}
        fits = own.keys() == head.keys() and all(own[name].shape == head[name].shape for name in own)
        self.load_state_dict({**own, **towers, **(head if fits else {})})
        return bool(own) and fits
