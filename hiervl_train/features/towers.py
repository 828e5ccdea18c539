"""Extracts the features of our own towers: clips, windows, their aggregate, captions and narrations.

Shapes in names: B samples, K windows, T frames, C colours, H and W pixels, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.loading import to_dict
from hiervl_train.checkpoint.open import OpenConfig, OpenedCheckpoint, open_checkpoint
from hiervl_train.features.config import ExtractConfig
from hiervl_train.features.extractor import ExtractorError, Reads, weights_hash
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.pixels import normalise
from hiervl_train.models.speed import autocast
from shards.features import ArraySpec
from shards.schema import set_spec

FRAMES, WINDOWS, WINDOW_SECONDS = 4, 16, 8.0  # as published, where the checkpoint's run is not known
_TEXTS_PER_PASS = 256


class Towers:
    """The towers of a checkpoint."""

    def __init__(self, config: ExtractConfig, opened: OpenedCheckpoint, device: torch.device) -> None:
        self._config, self._opened, self._device = config, opened, device
        self._model = opened.model
        self._is_projected = config.extractor.layer == "projected"
        self._hashes = tower_hashes(self._model, layer=config.extractor.layer)

    @property
    def reads(self) -> Reads | None:
        """See `Extractor.reads`; what the configuration leaves open is as in the checkpoint's run."""
        if not self._config.extractor.video:
            return None
        sample, trained, model = self._config.sample, self._opened.sample, self._model.config
        height, width = model.image_hw
        if height != width:
            raise ExtractorError(f"img_size = {model.img_size}: only square images are supported")
        frames = sample.frames or trained.get("frames") or min(FRAMES, model.num_frames)
        if frames > model.num_frames:
            raise ExtractorError(f"sample.frames = {frames}: {self._opened.path} has {model.num_frames} slots")
        slots = model.aggregator.tokens if model.aggregator and model.aggregator.kind == "self_attention" else None
        windows = sample.windows or trained.get("windows") or min(WINDOWS, slots or WINDOWS)
        if slots is not None and windows > slots:
            raise ExtractorError(f"sample.windows = {windows}: {self._opened.path} has {slots} slots")
        seconds = sample.window_seconds or trained.get("window_seconds") or WINDOW_SECONDS
        return Reads(size=height, frames=frames, windows=windows, window_seconds=seconds)

    def arrays(self, set_name: str) -> tuple[ArraySpec, ...]:
        """See `Extractor.arrays`."""
        config, model = self._config.extractor, self._model
        width = model.config.projection_dim
        video, text = (width, width) if self._is_projected else (model.config.embed_dim, model.text.width)
        is_long = set_spec(set_name).is_long

        def spec(name: str, level: str, size: int) -> ArraySpec:
            return ArraySpec(name=name, level=level, dtype=self._config.dtype, shape=(size,))

        found = []
        if config.video:
            found.append(spec("video", "window" if is_long else "clip", video))
            if is_long and self._aggregates:
                found.append(spec("aggregate", "summary", width))
        if config.text:
            found.append(spec("text", "text", text))
            if set_name == "summaries":
                found.append(spec("narrations", "narration", text))
        return tuple(found)

    def identity(self) -> dict[str, Any]:
        """See `Extractor.identity`."""
        return {
            "checkpoint": self._opened.digest,
            "weights": self._hashes,
            "layer": self._config.extractor.layer,
            "model": to_dict(self._model.config),
            "speed": to_dict(self._config.speed),
        }

    def encode_frames(self, frames: Tensor) -> dict[str, Tensor]:
        """See `Extractor.encode_frames`."""
        is_long = frames.ndim == 6
        with torch.inference_mode(), autocast(self._device, self._config.speed):
            clips_BTCHW = frames.flatten(0, 1) if is_long else frames
            parts = [self._video(part) for part in torch.split(clips_BTCHW, self._config.batch)]
            windows_BKD = torch.cat(parts).unflatten(0, (len(frames), -1)).float()
            found = {"video": windows_BKD}
            if is_long and self._aggregates:
                found["aggregate"] = self._model.aggregate(windows_BKD).float()[:, None]
        return found

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Extractor.encode_texts`: one row each."""
        rows: list[np.ndarray] = []
        for start in range(0, len(texts), _TEXTS_PER_PASS):
            ids_BL, mask_BL = self._opened.tokenizer(list(texts[start : start + _TEXTS_PER_PASS]))
            ids_BL, mask_BL = ids_BL.to(self._device), mask_BL.to(self._device)
            with torch.inference_mode(), autocast(self._device, self._config.speed):
                encode = self._model.encode_text if self._is_projected else self._model.text
                rows += list(encode(ids_BL, mask_BL).float().cpu().numpy()[:, None])
        return rows

    @property
    def _aggregates(self) -> bool:
        return self._is_projected and self._config.extractor.aggregate and self._model.aggregator is not None

    def _video(self, clips_BTCHW: Tensor) -> Tensor:
        pixels = normalise(clips_BTCHW)
        out_BD: Tensor = self._model.encode_video(pixels) if self._is_projected else self._model.video(pixels)
        return out_BD


def tower_hashes(model: HierVL, *, layer: str) -> dict[str, str]:
    """Return the sha256 of the weights that video and text features depend on, by what they are of."""
    parts = {"video": ("video", "video_projection"), "text": ("text", "text_projection"), "aggregate": ("aggregator",)}
    if layer == "tower":
        parts = {"video": ("video",), "text": ("text",)}
    tensors = model.state_dict()
    return {
        name: weights_hash({key: value for key, value in tensors.items() if key.partition(".")[0] in prefixes})
        for name, prefixes in parts.items()
    }


def build(config: ExtractConfig, device: torch.device) -> Towers:
    """Return the towers of the configured checkpoint."""
    if config.checkpoint is None:
        raise ExtractorError("checkpoint is not set: checkpoint=RUN, one of its checkpoints, or a released .pth")
    opening = OpenConfig(frames=config.sample.frames, speed=config.speed)
    return Towers(config, open_checkpoint(config.checkpoint, opening, device=device), device)
