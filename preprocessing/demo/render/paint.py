"""Draws antialiased shapes with soft shading on a small transparent canvas, from signed distance fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]
Color = tuple[int, int, int]


class Canvas:
    """A transparent canvas with coordinates in units: x to the right, y down, the origin at the anchor.

    Methods for shapes return signed distance fields (H, W) in units, negative inside; `fill` paints them. Methods for
    light return relative brightness fields (H, W).
    """

    def __init__(self, left: float, top: float, right: float, bottom: float, *, scale: float) -> None:
        """Create a canvas of `[left, right] × [top, bottom]` units at `scale` px per unit."""
        columns = np.arange(int(np.ceil((right - left) * scale)), dtype=np.float32)
        rows = np.arange(int(np.ceil((bottom - top) * scale)), dtype=np.float32)
        self.scale, self.left, self.top = scale, left, top
        self.x: Field = np.broadcast_to(left + (columns + 0.5) / scale, (len(rows), len(columns))).astype(np.float32)
        self.y: Field = np.broadcast_to((top + (rows + 0.5) / scale)[:, None], self.x.shape).astype(np.float32)
        self.rgb = np.zeros((*self.x.shape, 3), dtype=np.float32)  # premultiplied, 0 to 255
        self.alpha = np.zeros(self.x.shape, dtype=np.float32)

    def fill(
        self, distance: Field, color: Color, light: Field | float = 0.0, *, edge: float = 0.025, opacity: float = 1.0
    ) -> None:
        """Paint the inside of `distance` in `color` · (1 + light), with a darker outline of `edge` units."""
        if edge:
            self._over(distance - edge, np.array(color, np.float32) * 0.45, opacity)
        shade = np.asarray(1 + np.asarray(light, np.float32), np.float32)[..., None]
        self._over(distance, np.clip(np.array(color, np.float32) * shade, 0, 255), opacity)

    def keep(self, inside: Field) -> None:
        """Make everything outside the shape `inside` transparent."""
        coverage = np.clip(0.5 - inside * self.scale, 0, 1)
        self.alpha *= coverage
        self.rgb *= coverage[..., None]

    def image(self) -> Image.Image:
        """Return the canvas as 8-bit RGBA with premultiplied alpha (Pillow's mode RGBa)."""
        rgba = np.concatenate([self.rgb, self.alpha[..., None] * 255], axis=-1)
        data = np.clip(np.round(rgba), 0, 255).astype(np.uint8)
        return Image.frombytes("RGBa", (data.shape[1], data.shape[0]), data.tobytes())

    def ellipse(self, cx: float, cy: float, rx: float, ry: float) -> Field:
        """An ellipse with half axes `rx`, `ry`; the distance is exact on the edge and approximate elsewhere."""
        px, py = (self.x - cx) / rx, (self.y - cy) / ry
        radius = np.sqrt(px * px + py * py) + 1e-6
        slope = np.sqrt((px / rx) ** 2 + (py / ry) ** 2) / radius + 1e-6
        return np.asarray((radius - 1) / slope, np.float32)

    def box(self, left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> Field:
        """A rectangle with corners rounded by `radius`."""
        dx = np.abs(self.x - (left + right) / 2) - (right - left) / 2 + radius
        dy = np.abs(self.y - (top + bottom) / 2) - (bottom - top) / 2 + radius
        outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
        return np.asarray(outside + np.minimum(np.maximum(dx, dy), 0) - radius, np.float32)

    def capsule(self, ax: float, ay: float, bx: float, by: float, ra: float, rb: float | None = None) -> Field:
        """A bar with round ends from a to b, whose half width changes from `ra` to `rb`."""
        along, across = bx - ax, by - ay
        t = np.clip(((self.x - ax) * along + (self.y - ay) * across) / (along**2 + across**2), 0, 1)
        distance = np.hypot(self.x - ax - t * along, self.y - ay - t * across)
        return np.asarray(distance - (ra + t * ((ra if rb is None else rb) - ra)), np.float32)

    def polygon(self, *points: tuple[float, float]) -> Field:
        """A convex polygon with corners in clockwise order on the screen."""
        distance = np.full(self.x.shape, -1e3, np.float32)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            length = float(np.hypot(bx - ax, by - ay))
            distance = np.maximum(distance, ((self.x - ax) * (by - ay) - (self.y - ay) * (bx - ax)) / length)
        return distance

    def tube_light(self, cx: float, radius: float) -> Field:
        """The shading of an upright cylinder, lit from the left."""
        across = (self.x - cx) / radius
        return np.asarray(np.clip(0.30 - 0.42 * (across + 0.4) ** 2, -0.55, 0.3), np.float32)

    def ball_light(self, cx: float, cy: float, radius: float) -> Field:
        """The shading of a ball, lit from the upper left."""
        away = ((self.x - cx) / radius + 0.4) ** 2 + ((self.y - cy) / radius + 0.45) ** 2
        return np.asarray(np.clip(0.38 - 0.40 * away, -0.6, 0.4), np.float32)

    def slope_light(self, top: float, bottom: float, amount: float = 0.2) -> Field:
        """Light that decreases from `top` to `bottom`."""
        return np.asarray(amount * (1 - 2 * np.clip((self.y - top) / (bottom - top), 0, 1)), np.float32)

    def _over(self, distance: Field, color: NDArray[np.float32], opacity: float) -> None:
        coverage = np.clip(0.5 - distance * self.scale, 0, 1) * opacity
        self.rgb = self.rgb * (1 - coverage)[..., None] + color * coverage[..., None]
        self.alpha = self.alpha * (1 - coverage) + coverage


def union(fields: Sequence[Field]) -> Field:
    """Return the distance field of several shapes joined."""
    return np.asarray(np.minimum.reduce(list(fields)), np.float32)
