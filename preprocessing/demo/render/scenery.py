"""The table and the wall behind it, in perspective, and the projection of the table onto the screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.demo.render.compose import Planes

Light = NDArray[np.float32]

_FAR, _NEAR = 0.88, 1.30  # scale of things at the far and at the near edge of the table
_FAR_Y, _NEAR_Y = 0.40, 0.93  # y of those edges, in frame heights
_HORIZON = 0.30  # y of the bottom of the wall, in frame heights

_WOODS = ((196, 146, 96), (150, 98, 60), (222, 190, 146), (120, 84, 62))
_WALLS = ((176, 196, 196), (206, 192, 170), (160, 178, 204), (196, 178, 186), (170, 190, 160))


@dataclass(frozen=True)
class Geometry:
    """The projection of the table, with the camera at rest, for one frame size."""

    width: int  # px
    height: int  # px

    @property
    def unit(self) -> float:
        """The length of one unit at scale 1, px."""
        return 0.25 * self.height

    @property
    def margin(self) -> int:
        """The largest offset of the camera from rest, px, even."""
        return int(self.height * 0.11) // 2 * 2

    def size_at(self, v: float) -> float:
        """Return the scale of things at depth `v` (0 at the far edge, 1 at the near edge)."""
        return 1 / (1 / _FAR + (1 / _NEAR - 1 / _FAR) * v)

    def on_screen(self, u: float, v: float) -> tuple[float, float]:
        """Return the position in the frame (px) of a point of the table: u −1 left to 1 right, v 0 far to 1 near."""
        size = self.size_at(v)
        y = self.height * (_FAR_Y + (_NEAR_Y - _FAR_Y) * (size - _FAR) / (_NEAR - _FAR))
        return self.width / 2 + u * self._half_width(size), y

    def _half_width(self, size: Any) -> Any:
        return 0.46 * self.width * (0.55 + 0.45 * size / _FAR)

    def backdrop(self, rng: np.random.Generator) -> tuple[Planes, Planes]:
        """Return the wall, and the table with the floor, each `margin` px larger than the frame on every side."""
        rows = np.arange(-self.margin, self.height + self.margin, dtype=np.float32)[:, None]
        columns = np.arange(-self.margin, self.width + self.margin, dtype=np.float32)[None, :]
        light = self._light(rows, columns)
        table = self._table(rows, columns, rng) * light[..., None]
        return Planes.of_rgb(self._wall(rows, columns, rng) * light[..., None]), Planes.of_rgb(table)

    @property
    def horizon(self) -> int:
        """The first row of the frame below the wall, with the camera at rest, px, even."""
        return int(self.height * _HORIZON) // 2 * 2

    def _light(self, y: Light, x: Light) -> Light:
        away = ((x - 0.4 * self.width) / self.width) ** 2 + ((y - 0.45 * self.height) / self.height) ** 2
        return np.asarray(1.10 - 0.55 * away, np.float32)

    def _table(self, y: Light, x: Light, rng: np.random.Generator) -> NDArray[np.float32]:
        size = _FAR + (_NEAR - _FAR) * (y / self.height - _FAR_Y) / (_NEAR_Y - _FAR_Y)
        v = (1 / np.maximum(size, 0.3) - 1 / _FAR) / (1 / _NEAR - 1 / _FAR)
        u = (x - self.width / 2) / self._half_width(size)
        wood = np.array(_WOODS[rng.integers(len(_WOODS))], np.float32)
        plank = np.floor((u + 4) * 3.2)
        tones, shifts = rng.uniform(0.88, 1.08, 64), rng.uniform(0, 50, 64)
        index = plank.astype(int) % 64
        across, along = u * 3.2, v * 1.6 + shifts[index]
        rings = np.sin(across * 34 + 5 * np.sin(along * 1.7 + across * 2.1) + 2.2 * np.sin(along * 4.3))
        fibre = np.sin(across * 140 + 9 * np.sin(along * 0.9))
        tone = tones[index] * (1 + 0.045 * rings + 0.02 * fibre)
        gap = np.abs((u + 4) * 3.2 - plank - 0.5) > 0.485
        tone = np.where(gap, tone * 0.62, tone)
        rgb = wood * tone[..., None]
        floor = np.array((104, 98, 92), np.float32) * (0.72 + 0.35 * (y - self.horizon) / self.height)[..., None]
        far_edge, side = -0.16, 1.12
        top = (v >= far_edge) & (np.abs(u) <= side)
        rgb = np.where(top[..., None], rgb, np.broadcast_to(floor, rgb.shape))
        rim = top & ((v < far_edge + 0.035) | (np.abs(u) > side - 0.012))
        return np.where(rim[..., None], rgb * 1.22, rgb).astype(np.float32)

    def _wall(self, y: Light, x: Light, rng: np.random.Generator) -> NDArray[np.float32]:
        wall = np.array(_WALLS[rng.integers(len(_WALLS))], np.float32)
        tile = 0.085 * self.height
        row = np.floor((y + 999 * tile) / tile)
        column = np.floor((x + 999 * tile) / (2 * tile) + 0.5 * (row % 2))
        tones = rng.uniform(0.93, 1.05, (64, 64))
        tone = tones[row.astype(int) % 64, column.astype(int) % 64]
        in_row = (y + 999 * tile) / tile - row
        in_column = (x + 999 * tile) / (2 * tile) + 0.5 * (row % 2) - column
        grout = (in_row < 0.09) | (in_column < 0.045)
        tone = np.where(grout, 0.78, tone * (1.06 - 0.10 * in_row))
        rgb = wall * tone[..., None]
        # A window, the source of light.
        left = rng.uniform(0.02, 0.6) * self.width
        right, bottom = left + 0.30 * self.width, 0.17 * self.height
        frame = 0.018 * self.height
        inside = (x > left) & (x < right) & (y < bottom) & (y > -1e3)
        pane = inside & (x > left + frame) & (x < right - frame) & (y < bottom - frame)
        pane &= np.abs(x - (left + right) / 2) > frame / 2
        sky = np.array((196, 222, 246), np.float32) + 30 * (y / self.height)[..., None]
        rgb = np.where(inside[..., None], np.array((238, 234, 226), np.float32), rgb)
        rgb = np.where(pane[..., None], np.broadcast_to(sky, rgb.shape), rgb)
        sill = (x > left - 2 * frame) & (x < right + 2 * frame) & (y >= bottom) & (y < bottom + frame)
        rgb = np.where(sill[..., None], np.array((250, 246, 238), np.float32), rgb)
        dim = np.clip(1 - 2.2 * (y / self.height - 0.16), 0.72, 1.0)
        return (rgb * dim[..., None]).astype(np.float32)
