"""Images in 4:2:0 (luma, interleaved chroma), and fast alpha compositing of sprites onto them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from preprocessing.demo.render.images import AnchoredImage

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
Words = NDArray[np.uint16]

# BT.601, limited range: the rows give Y, U, V from R, G, B of 0 to 255.
_TO_YUV = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], np.float32) / 255
_OFFSET = np.array([16, 128, 128], np.float32)


@dataclass(frozen=True)
class Planes:
    """An image in NV12: luma (H, W) and interleaved chroma (H/2, W)."""

    luma: Bytes
    chroma: Bytes

    @classmethod
    def of_rgb(cls, rgb_HWC: Floats) -> Planes:
        """Convert an RGB image with values from 0 to 255 and even sides."""
        height, width = rgb_HWC.shape[:2]
        luma = rgb_HWC @ _TO_YUV[0] + _OFFSET[0]
        chroma = _halved(rgb_HWC) @ _TO_YUV[1:].T + _OFFSET[1:]
        return cls(_round(luma), _round(chroma).reshape(height // 2, width))


@dataclass(frozen=True)
class Sprite:
    """A transparent image prepared for compositing: each plane becomes `plane · keep / 256 + add / 256`."""

    left: int  # px from the anchor to the left edge
    top: int  # px from the anchor to the top edge
    luma_keep: Words
    luma_add: Words
    chroma_keep: Words | None  # None for a shadow, which has no chroma
    chroma_add: Words | None

    def draw(self, target: Planes, x: float, y: float) -> None:
        """Draw the sprite onto an image, with its anchor at (x, y) px."""
        left, top = round(x) + self.left, round(y) + self.top
        _blend(target.luma, left, top, self.luma_keep, self.luma_add)
        if self.chroma_keep is not None and self.chroma_add is not None:
            _blend(target.chroma, left // 2 * 2, top // 2, self.chroma_keep, self.chroma_add)


def sprite(image: AnchoredImage, size: float, degrees: float = 0.0) -> Sprite:
    """Return an image as a sprite of `size` px per unit, rotated clockwise by `degrees` around its anchor."""
    return _sprite(*_transformed(image, size, degrees, margin=1))


def sprite_and_shadow(
    image: AnchoredImage, size: float, degrees: float, *, depth: float, blur: float
) -> tuple[Sprite, Sprite]:
    """Return the sprite of an image, and its blurred shadow; `depth` from 0 to 1 (black), `blur` in px."""
    rgba, left, top = _transformed(image, size, degrees, margin=math.ceil(2 * blur))
    alpha = Image.fromarray(rgba[..., 3].astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    return _sprite(rgba, left, top), _dark(np.asarray(alpha, np.float32) / 255 * depth, left, top)


def ground_shadow(rx: float, ry: float, depth: float) -> Sprite:
    """Return the soft shadow of a thing on the table: an ellipse with radii `rx`, `ry` (px); `depth` from 0 to 1."""
    half_width, half_height = math.ceil(rx * 1.4) // 2 * 2 + 2, math.ceil(ry * 1.4) // 2 * 2 + 2
    x = np.arange(-half_width, half_width, dtype=np.float32) + 0.5
    y = np.arange(-half_height, half_height, dtype=np.float32)[:, None] + 0.5
    away = np.sqrt((x / rx) ** 2 + (y / ry) ** 2)
    return _dark(depth * np.clip((1.35 - away) / 0.7, 0, 1), -half_width, -half_height)


def _sprite(rgba: Floats, left: int, top: int) -> Sprite:
    height, width = rgba.shape[:2]
    alpha = rgba[..., 3:] / np.float32(255)
    luma = rgba[..., :3] @ _TO_YUV[0] + _OFFSET[0] * alpha[..., 0]
    small = _halved(rgba)
    small_alpha = small[..., 3:] / np.float32(255)
    chroma = small[..., :3] @ _TO_YUV[1:].T + _OFFSET[1:] * small_alpha
    return Sprite(
        left,
        top,
        _words(256 * (1 - alpha[..., 0])),
        _words(256 * luma),
        _words(256 * (1 - np.repeat(small_alpha[..., 0], 2, axis=1))),
        _words(256 * chroma.reshape(height // 2, width)),
    )


def _halved(values_HWC: Floats) -> Floats:
    rows = values_HWC[0::2] + values_HWC[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _dark(alpha: Floats, left: int, top: int) -> Sprite:
    return Sprite(left, top, _words(256 * (1 - alpha)), _words(256 * 16 * alpha), None, None)


def _transformed(source: AnchoredImage, size: float, degrees: float, margin: int) -> tuple[Floats, int, int]:
    """Return the scaled and rotated image, and the position of its left top corner relative to the anchor (px).

    The image is premultiplied RGBA (H, W, 4) from 0 to 255 with even sides.
    """
    zoom = size / source.scale
    image, (ax, ay) = source.image, source.anchor
    cos, sin = math.cos(math.radians(degrees)) * zoom, math.sin(math.radians(degrees)) * zoom
    box = image.getbbox()
    x0, y0, x1, y1 = box if box else (0, 0, 1, 1)
    corners = [(x - ax, y - ay) for x in (x0, x1) for y in (y0, y1)]
    xs = [x * cos - y * sin for x, y in corners]
    ys = [x * sin + y * cos for x, y in corners]
    left, top = math.floor(min(xs)) - margin, math.floor(min(ys)) - margin
    width, height = (math.ceil(max(xs)) + margin - left + 1) // 2 * 2, (math.ceil(max(ys)) + margin - top + 1) // 2 * 2
    back_cos, back_sin = cos / zoom**2, sin / zoom**2  # output px → source px
    shift_x = left * back_cos + top * back_sin + ax
    shift_y = -left * back_sin + top * back_cos + ay
    matrix = (back_cos, back_sin, shift_x, -back_sin, back_cos, shift_y)
    turned = image.transform((width, height), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC)
    return np.asarray(turned, np.float32), left, top


def _blend(plane: Bytes, left: int, top: int, keep: Words, add: Words) -> None:
    """Composite onto a plane in place, clipped to its edges."""
    height, width = keep.shape
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, plane.shape[1]), min(top + height, plane.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    under = plane[y0:y1, x0:x1]
    mixed = under * keep[part]
    mixed += add[part]
    mixed >>= 8
    under[...] = mixed


def _round(values: Floats) -> Bytes:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _words(values: Floats) -> Words:
    return np.ascontiguousarray(np.clip(np.round(values), 0, 65535).astype(np.uint16))
