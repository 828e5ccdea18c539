"""Extracts features of single frames by image models: timm, transformers, and open_clip with its text tower.

Every frame is a row: of a clip T rows, of a long sample K · T, in temporal order. Pixels are normalised as the model's
own configuration says. Shapes in names: N frames, C colours, H and W pixels, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiervl_train.features.config import ExtractConfig
from hiervl_train.features.extractor import ExtractorError, Reads, weights_hash
from hiervl_train.features.towers import FRAMES, WINDOW_SECONDS, WINDOWS
from hiervl_train.models.errors import missing_pretrained
from hiervl_train.models.speed import autocast
from shards.features import ArraySpec

_TEXTS_PER_PASS = 256
Encode = Callable[[Tensor], Tensor]


class Images:
    """An image model, and optionally the text model that shares its space."""

    def __init__(
        self,
        config: ExtractConfig,
        device: torch.device,
        *,
        encode: Encode,
        weights: Mapping[str, Tensor],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        width: int,
        texts: Callable[[Sequence[str]], Tensor] | None = None,
    ) -> None:
        """`encode` returns (N, `width`) of normalised pixels (N, C, H, W); `texts` rows of the same width."""
        self._config, self._device, self._encode, self._texts = config, device, encode, texts
        self._size, self._width = size, width
        self._mean, self._std = list(map(float, mean)), list(map(float, std))
        self._scale = [torch.tensor(values, device=device).view(3, 1, 1) for values in (self._mean, self._std)]
        self._hash = weights_hash(weights)

    @property
    def reads(self) -> Reads | None:
        """See `Extractor.reads`."""
        if not self._config.extractor.video:
            return None
        sample = self._config.sample
        return Reads(
            size=self._size,
            frames=sample.frames or FRAMES,
            windows=sample.windows or WINDOWS,
            window_seconds=sample.window_seconds or WINDOW_SECONDS,
        )

    def arrays(self, set_name: str) -> tuple[ArraySpec, ...]:
        """See `Extractor.arrays`."""
        dtype, shape = self._config.dtype, (self._width,)
        found = []
        if self._config.extractor.video:
            found.append(ArraySpec(name="video", level="frame", dtype=dtype, shape=shape))
        if self._texts is not None and self._config.extractor.text:
            found.append(ArraySpec(name="text", level="text", dtype=dtype, shape=shape))
            if set_name == "summaries":
                found.append(ArraySpec(name="narrations", level="narration", dtype=dtype, shape=shape))
        return tuple(found)

    def identity(self) -> dict[str, Any]:
        """See `Extractor.identity`."""
        return {
            "source": _portable(self._config.extractor.source),
            "weights": {"all": self._hash},
            "size": self._size,
            "mean": self._mean,
            "std": self._std,
        }

    def encode_frames(self, frames: Tensor) -> dict[str, Tensor]:
        """See `Extractor.encode_frames`."""
        images_NCHW = frames.flatten(0, -4)
        mean, std = self._scale
        with torch.inference_mode(), autocast(self._device, self._config.speed):
            parts = [
                self._encode((part.float() / 255 - mean) / std).float()
                for part in torch.split(images_NCHW, self._config.batch)
            ]
        return {"video": torch.cat(parts).unflatten(0, (len(frames), -1))}

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Extractor.encode_texts`: one row each."""
        assert self._texts is not None
        rows: list[np.ndarray] = []
        with torch.inference_mode(), autocast(self._device, self._config.speed):
            for start in range(0, len(texts), _TEXTS_PER_PASS):
                rows += list(self._texts(texts[start : start + _TEXTS_PER_PASS]).float().cpu().numpy()[:, None])
        return rows


def build_timm(config: ExtractConfig, device: torch.device) -> Images:
    """Return a timm model without its classifier: the pooled features of each frame."""
    import timm
    from timm.data.config import resolve_model_data_config

    name, weights = str(config.extractor.source), config.extractor.weights
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ExtractorError(f"extractor.source = {name}: timm has no such model{f'; it has {near}' if near else ''}")
    options: dict[str, Any] = {} if weights is None else {"pretrained_cfg_overlay": {"file": str(weights)}}
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        key = "extractor.weights" if weights is not None else "extractor.weights, a file,"
        raise missing_pretrained("the weights of timm model", str(weights or name), key, error) from error
    data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # timm is not annotated
    _, height, width = data["input_size"]
    if height != width:
        raise ExtractorError(f"extractor.source = {name}: takes {height} × {width} pixels; only squares are supported")
    model = model.eval().to(device)
    return Images(
        config,
        device,
        encode=model,
        weights=model.state_dict(),
        size=height,
        mean=data["mean"],
        std=data["std"],
        width=int(model.num_features) if not hasattr(model, "head_hidden_size") else int(model.head_hidden_size),
    )


def build_transformers(config: ExtractConfig, device: torch.device) -> Images:
    """Return a vision encoder of transformers: its pooled output, or the first token's state where it has none."""
    from transformers import AutoImageProcessor, AutoModel

    source = str(config.extractor.source)
    try:
        whole: Any = AutoModel.from_pretrained(source)
        processor: Any = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise missing_pretrained("the image encoder", source, "extractor.source", error) from error
    model = getattr(whole, "vision_model", whole).eval().to(device)
    settings = model.config
    size = getattr(settings, "image_size", None) or _side(processor)
    if not isinstance(size, int) or size < 1:
        raise ExtractorError(f"extractor.source = {source}: its configuration states no image size")

    def encode(pixels_NCHW: Tensor) -> Tensor:
        found = model(pixel_values=pixels_NCHW)
        pooled = getattr(found, "pooler_output", None)
        out_ND: Tensor = found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return out_ND

    with torch.inference_mode():
        width = encode(torch.zeros(1, 3, size, size, device=device)).shape[1]
    return Images(
        config,
        device,
        encode=encode,
        weights=model.state_dict(),
        size=size,
        mean=processor.image_mean,
        std=processor.image_std,
        width=width,
    )


def build_open_clip(config: ExtractConfig, device: torch.device) -> Images:
    """Return the image and the text tower of an open_clip model."""
    try:
        import open_clip  # type: ignore[import-untyped]
    except ImportError:
        raise ExtractorError(
            "extractor.kind = open_clip: the package is not installed; run `pip install open_clip_torch`"
        ) from None
    architecture, _, weights = str(config.extractor.source).partition("@")
    if not weights:
        raise ExtractorError(
            f"extractor.source = {config.extractor.source}: name its weights, as ViT-B-16@laion2b_s34b_b88k or "
            "ViT-B-16@FILE"
        )
    try:
        model: Any = open_clip.create_model(architecture, pretrained=weights).eval().to(device)
        tokenizer = open_clip.get_tokenizer(architecture)
    except (OSError, RuntimeError) as error:
        raise missing_pretrained("the open_clip model", str(config.extractor.source), "extractor.source", error) from (
            error
        )
    size = model.visual.image_size
    side = size if isinstance(size, int) else size[0]
    mean, std = (
        getattr(model.visual, name, None) or getattr(open_clip, f"OPENAI_DATASET_{kind}")
        for name, kind in (("image_mean", "MEAN"), ("image_std", "STD"))
    )

    def texts(batch: Sequence[str]) -> Tensor:
        out_ND: Tensor = model.encode_text(tokenizer(list(batch)).to(device))
        return out_ND

    with torch.inference_mode():
        width = model.encode_image(torch.zeros(1, 3, side, side, device=device)).shape[1]
    return Images(
        config,
        device,
        encode=model.encode_image,
        weights=model.state_dict(),
        size=side,
        mean=mean,
        std=std,
        width=width,
        texts=texts,
    )


def _side(processor: Any) -> int | None:
    size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
    value = size.get("height") or size.get("shortest_edge")
    return int(value) if value else None


def _portable(source: str | None) -> str:
    """Return a source without the folders of this machine: the weights' hash identifies it."""
    name, at, weights = str(source).partition("@")
    return f"{Path(name).name if Path(name).exists() else name}{at}{Path(weights).name if '/' in weights else weights}"
