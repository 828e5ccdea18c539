"""Draws the frames of a script: backdrop, things from far to near, and the hand, seen from a moving head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from preprocessing.demo.render import compose, frame_code
from preprocessing.demo.render.compose import Planes, Sprite
from preprocessing.demo.render.images import THING_SHAPES, drop, hand, thing, tool
from preprocessing.demo.render.motion import Hand, SceneAnimator, SceneState, ThingState
from preprocessing.demo.render.paint import Color
from preprocessing.demo.render.scenery import Geometry
from preprocessing.demo.script import VideoScript

T = TypeVar("T")

_SLEEVES: tuple[Color, ...] = (
    (52, 88, 150),
    (150, 60, 60),
    (70, 110, 80),
    (110, 90, 130),
    (200, 180, 150),
    (60, 60, 70),
)
_HAND_SIZE = 1.05  # relative to things: the hand is nearer to the camera than the table
# Steps to which the size and the angle (degrees) of sprites are rounded; sprites are cached, so coarser is faster.
_SIZE_STEP, _DEGREE_STEP, _LEAN_STEP = 0.05, 6.0, 4.0


class Renderer:
    """Renders the frames of one video at (width, height) px; sprites are made on first use and cached."""

    def __init__(self, script: VideoScript, width: int, height: int, *, with_frame_code: bool = False) -> None:
        self.script, self.with_frame_code = script, with_frame_code
        self.geometry = Geometry(width, height)
        rng = np.random.default_rng(script.seed)
        self.wall, self.table = self.geometry.backdrop(rng)
        self.skin = int(rng.integers(4))
        self.sleeve = _SLEEVES[rng.integers(len(_SLEEVES))]
        self.phases = rng.uniform(0, 2 * math.pi, 6)
        self.rates = rng.uniform(0.8, 1.25, 6)
        self.scale = 1.2 * self.geometry.unit  # px per unit of the images that sprites are made from
        self._cache: dict[tuple[Any, ...], Any] = {}

    def frames(self, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames before frame `stop` (None: all) as NV12 (H·3/2, W); the array is reused for each frame."""
        width, height = self.geometry.width, self.geometry.height
        count = self.script.num_frames if stop is None else min(stop, self.script.num_frames)
        times = [float(i / self.script.fps) for i in range(count)]
        frame = np.empty((height * 3 // 2, width), np.uint8)
        target = Planes(luma=frame[:height], chroma=frame[height:])
        for i, state in enumerate(SceneAnimator(self.script, self.geometry).play(times)):
            camera = self._camera(times[i], state.hand)
            self._draw_backdrop(target, camera)
            self._draw_scene(target, state, camera)
            if self.with_frame_code:
                frame_code.draw(target.luma, target.chroma, i, self.script.index)
            yield frame

    def _camera(self, time: float, at: Hand) -> tuple[int, int]:
        """Return the camera's offset from rest, px: the head sways and follows the hand a little."""
        a, b, c, d, e, f = np.sin(2 * math.pi * self.rates * (0.13, 0.41, 1.3, 0.11, 0.37, 1.5) * time + self.phases)
        reach = self.geometry.margin
        x = reach * (0.50 * a + 0.20 * b + 0.05 * c) + 0.03 * (at.x - 0.6 * self.geometry.width)
        y = reach * (0.40 * d + 0.16 * e + 0.06 * f) + 0.02 * (at.y - 0.8 * self.geometry.height)
        return round(max(-reach, min(reach, x))), round(max(-reach, min(reach, y)))

    def _draw_backdrop(self, target: Planes, camera: tuple[int, int]) -> None:
        height, width = target.luma.shape
        horizon = max(0, (self.geometry.horizon - camera[1]) // 2 * 2)
        far = (camera[0] // 2, camera[1] // 2)  # parallax: the wall moves less than the table
        for planes, (dx, dy), top, bottom in (
            (self.wall, far, 0, horizon),
            (self.table, camera, horizon, height),
        ):
            x, y = dx + self.geometry.margin, dy + self.geometry.margin
            target.luma[top:bottom] = planes.luma[y + top : y + bottom, x : x + width]
            x, y = x // 2 * 2, y // 2
            target.chroma[top // 2 : bottom // 2] = planes.chroma[y + top // 2 : y + bottom // 2, x : x + width]

    def _draw_scene(self, target: Planes, scene: SceneState, camera: tuple[int, int]) -> None:
        visible = [state for state in scene.things.values() if state.here]
        visible.sort(key=lambda state: (state.noun == scene.held and state.z > 0.05, state.v))
        for state in visible:
            self._draw_thing(target, state, camera, scene.pouring if state.noun == scene.held else 0.0)
        self._draw_hand(target, scene.hand, camera)

    def _draw_thing(self, target: Planes, state: ThingState, camera: tuple[int, int], pouring: float) -> None:
        size = self.geometry.size_at(state.v)
        unit = size * self.geometry.unit
        foot_x, foot_y = self.geometry.on_screen(state.u, state.v)
        x, ground = foot_x + state.aside * unit - camera[0], foot_y - camera[1]
        y = ground - state.z * unit
        shape = THING_SHAPES[state.noun]
        if ground < self.geometry.height * 1.1 and y < self.geometry.height:
            fade = max(1, 4 - int(2.5 * state.z))  # of 4: paler the higher the thing is
            shadow = self._ground_shadow(shape.width * (1 + 0.9 * state.apart), size, fade)
            shadow.draw(target, x + 0.06 * unit, ground)
        turning = round(state.degrees / _DEGREE_STEP) * _DEGREE_STEP % 360
        # Things turn around their middle, not around their foot.
        middle = 0.5 * shape.height * unit
        angle = math.radians(turning)
        pivot_x, pivot_y = x - middle * math.sin(angle), y - middle + middle * math.cos(angle)
        if state.is_cut:
            for part, side in (("left", -0.5), ("right", 0.5)):
                half = self._thing(state.noun, part, size, side * 60 * state.apart)
                half.draw(target, x + side * state.apart * unit, y)
        elif state.is_open:
            self._thing(state.noun, "body", size, turning).draw(target, pivot_x, pivot_y)
            lid = self._thing(state.noun, "lid", size, state.lid_degrees)
            lid.draw(target, x + state.lid_x * unit, y - state.lid_z * unit)
        else:
            self._thing(state.noun, "whole", size, turning).draw(target, pivot_x, pivot_y)
        if pouring:
            self._draw_stream(target, state, pouring, (x, y), unit, angle)

    def _draw_stream(
        self, target: Planes, state: ThingState, age: float, foot: tuple[float, float], unit: float, angle: float
    ) -> None:
        """Draw drops falling from the spout of a thing at `foot` (px) tilted by `angle` (rad), `age` s into pouring."""
        shape = THING_SHAPES[state.noun]
        out_x, out_y = shape.spout[0], shape.spout[1] + shape.height / 2
        cos, sin = math.cos(angle), math.sin(angle)
        start_x = foot[0] + (out_x * cos - out_y * sin) * unit
        start_y = foot[1] + (out_x * sin + out_y * cos - shape.height / 2) * unit
        depth = max(0.2, state.z - 0.1) * unit
        sprite = self._cached(("drop",), lambda: compose.sprite(drop(self.scale), 0.8 * self.geometry.unit))
        for i in range(7):
            fallen = (i / 7 + 2.3 * age) % 1.0
            sprite.draw(target, start_x - 0.05 * unit * fallen, start_y + depth * fallen**1.6)

    def _draw_hand(self, target: Planes, at: Hand, camera: tuple[int, int]) -> None:
        width, height = self.geometry.width, self.geometry.height
        lean = math.degrees(math.atan2(at.x - 1.16 * width, 1.45 * height - at.y))
        lean = round(lean / _LEAN_STEP) * _LEAN_STEP
        size = _HAND_SIZE * self.geometry.unit
        x, y = at.x - camera[0], at.y - camera[1]
        image, shadow = self._cached(("hand", at.pose, lean), lambda: self._make_hand(at.pose, lean, size))
        shadow.draw(target, x + 0.03 * height, y + 0.05 * height)
        if at.tool:
            held = self._cached(("tool", at.tool), lambda: compose.sprite(tool(at.tool, self.scale), size))
            held.draw(target, x, y)
        image.draw(target, x, y)

    def _make_hand(self, pose: str, lean: float, size: float) -> tuple[Sprite, Sprite]:
        blur = 0.012 * self.geometry.height
        image = hand(pose, self.skin, self.sleeve, self.scale)
        return compose.sprite_and_shadow(image, size, lean, depth=0.30, blur=blur)

    def _thing(self, noun: str, part: str, size: float, degrees: float) -> Sprite:
        size = round(size / _SIZE_STEP) * _SIZE_STEP
        degrees = round(degrees / _DEGREE_STEP) * _DEGREE_STEP % 360
        unit = size * self.geometry.unit
        key = ("thing", noun, part, size, degrees)
        return self._cached(key, lambda: compose.sprite(thing(noun, part, self.scale), unit, degrees))

    def _ground_shadow(self, width: float, size: float, fade: int) -> Sprite:
        size, width = round(size / _SIZE_STEP) * _SIZE_STEP, round(width / 0.1) * 0.1
        radius = 0.58 * width * size * self.geometry.unit
        key = ("ground", width, size, fade)
        return self._cached(key, lambda: compose.ground_shadow(radius, 0.30 * radius + 2, 0.12 * fade))

    def _cached(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        if key not in self._cache:
            self._cache[key] = make()
        return cast(T, self._cache[key])
