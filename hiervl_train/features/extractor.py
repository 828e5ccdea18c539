"""The interface of an extractor.

Shapes in names: B samples, K windows, T frames, C colours, H and W pixels, R rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from shards.features import ArraySpec


class ExtractorError(ValueError):
    """An extractor that does not fit its configuration or the dataset; the message names the key and its value."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Reads:
    """The frames that an extractor needs decoded."""

    size: int  # height and width, pixels
    frames: int  # per clip and per window
    windows: int  # per long sample
    window_seconds: float  # greatest length of a window, s


class Extractor(Protocol):
    """Computes features of a sample's frames, of its texts, or both."""

    @property
    def reads(self) -> Reads | None:
        """The frames that it needs; None if it needs only texts."""
        ...

    def arrays(self, set_name: str) -> tuple[ArraySpec, ...]:
        """Return the arrays that it makes of a set; of level text and narration are those of texts."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return, ready for JSON, all that affects the features: settings, sha256 of the weights."""
        ...

    def encode_frames(self, frames: Tensor) -> dict[str, Tensor]:
        """Return array → (B, R, …) of uint8 frames, (B, T, C, H, W) of clips and (B, K, T, C, H, W) of long samples."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the rows (R, …) of each text."""
        ...


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the hex sha256 over names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
