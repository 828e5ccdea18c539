"""The images of things, tools and hands: each is drawn once, large, on a transparent canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from preprocessing.demo.render.paint import Canvas, Color, Field, union


@dataclass(frozen=True)
class AnchoredImage:
    """An image with premultiplied alpha and an anchor: the foot of a thing, the grip of a hand."""

    image: Image.Image
    anchor: tuple[float, float]  # px
    scale: float  # px per unit


@dataclass(frozen=True)
class ThingShape:
    """The measures of a thing, in units."""

    height: float
    width: float  # of its shadow
    lid: float = 0.0  # height of the seam between body and lid; 0: no lid
    spout: tuple[float, float] = (-0.4, -0.6)  # where it pours from, relative to the foot


THING_SHAPES: dict[str, ThingShape] = {
    "cup": ThingShape(0.62, 0.70, spout=(-0.32, -0.60)),
    "bowl": ThingShape(0.42, 1.00),
    "plate": ThingShape(0.20, 1.10),
    "bottle": ThingShape(1.15, 0.46, lid=1.00, spout=(0.0, -1.10)),
    "jar": ThingShape(0.72, 0.66, lid=0.56),
    "kettle": ThingShape(0.85, 1.10, lid=0.60, spout=(-0.66, -0.58)),
    "box": ThingShape(0.70, 0.95, lid=0.55),
    "book": ThingShape(0.35, 1.00),
    "apple": ThingShape(0.58, 0.60),
    "lemon": ThingShape(0.50, 0.76),
    "bread": ThingShape(0.50, 1.00),
    "carrot": ThingShape(0.30, 1.10),
    "sponge": ThingShape(0.36, 0.80),
    "phone": ThingShape(0.30, 0.86),
    "ball": ThingShape(0.68, 0.68),
}
FLESH: dict[str, Color] = {
    "apple": (240, 238, 190),
    "lemon": (252, 240, 150),
    "bread": (246, 226, 180),
    "carrot": (255, 176, 90),
}
PARTS = ("whole", "body", "lid", "left", "right")
SKINS: tuple[Color, ...] = ((236, 188, 158), (206, 150, 114), (150, 100, 72), (104, 68, 50))


@cache
def thing(noun: str, part: str, scale: float) -> AnchoredImage:
    """Return the image of a part of a noun at `scale` px per unit.

    `part` is `whole`, `body` (without the lid), `lid`, or the cut half `left` or `right`.
    """
    build = THING_SHAPES[noun]
    sketch = Canvas(-0.85, -1.35, 0.85, 0.35, scale=scale)
    if build.lid and part != "lid":
        _BODIES[noun](sketch)
    if build.lid and part in ("whole", "lid"):
        _LIDS[noun](sketch)
    if not build.lid:
        _BODIES[noun](sketch)
    if part in ("left", "right"):
        side = 1.0 if part == "left" else -1.0
        sketch.keep(sketch.x * side)
        middle, flesh = -build.height * 0.5, FLESH.get(noun, (240, 220, 190))
        face = sketch.ellipse(-0.05 * side, middle, 0.11, build.height * 0.47)
        sketch.fill(face, flesh, sketch.slope_light(-build.height, 0.0, 0.1), edge=0.03)
    return AnchoredImage(sketch.image(), (0.85 * scale, 1.35 * scale), scale)


def _cup(s: Canvas) -> None:
    red = (214, 50, 46)
    s.fill(abs(s.ellipse(0.36, -0.33, 0.16, 0.18)) - 0.05, red, s.tube_light(0.4, 0.3))
    body = union([s.box(-0.32, -0.6, 0.32, -0.12), s.ellipse(0, -0.12, 0.32, 0.13)])
    s.fill(body, red, s.tube_light(0, 0.34))
    s.fill(s.box(-0.315, -0.36, 0.315, -0.26), (250, 236, 220), s.tube_light(0, 0.34), edge=0)
    s.fill(s.ellipse(0, -0.6, 0.33, 0.11), (240, 96, 84))
    s.fill(s.ellipse(0, -0.585, 0.27, 0.075), (104, 58, 30), s.slope_light(-0.66, -0.5, -0.3), edge=0)


def _bowl(s: Canvas) -> None:
    blue = (54, 108, 206)
    s.fill(s.ellipse(0, -0.02, 0.22, 0.07), (34, 70, 150))
    s.fill(_below(s, s.ellipse(0, -0.38, 0.52, 0.40), -0.38), blue, s.tube_light(0, 0.55))
    s.fill(s.ellipse(0, -0.38, 0.52, 0.16), (120, 164, 236))
    s.fill(s.ellipse(0, -0.355, 0.43, 0.115), (246, 236, 206), s.slope_light(-0.48, -0.24, -0.15), edge=0.015)


def _plate(s: Canvas) -> None:
    s.fill(s.ellipse(0, -0.12, 0.58, 0.22), (206, 210, 216))
    s.fill(s.ellipse(0, -0.15, 0.58, 0.22), (248, 248, 250), s.slope_light(-0.36, 0.06, 0.05))
    s.fill(abs(s.ellipse(0, -0.15, 0.50, 0.18)) - 0.012, (60, 110, 190), edge=0)
    s.fill(s.ellipse(0, -0.14, 0.36, 0.125), (232, 234, 238), s.slope_light(-0.26, 0.0, -0.06), edge=0.012)


def _bottle(s: Canvas) -> None:
    green = (36, 140, 76)
    shape = union(
        [
            s.box(-0.21, -0.66, 0.21, -0.06),
            s.ellipse(0, -0.06, 0.21, 0.08),
            s.ellipse(0, -0.66, 0.21, 0.2),
            s.box(-0.085, -1.04, 0.085, -0.7),
        ]
    )
    s.fill(shape, green, s.tube_light(0, 0.24))
    s.fill(s.box(-0.21, -0.5, 0.21, -0.2), (244, 236, 206), s.tube_light(0, 0.26), edge=0.012)
    s.fill(s.ellipse(0, -0.35, 0.09, 0.09), (210, 70, 60), edge=0)
    s.fill(s.box(-0.155, -0.76, -0.105, -0.1, 0.02), (190, 240, 200), edge=0, opacity=0.5)
    s.fill(s.ellipse(0, -1.04, 0.085, 0.03), (12, 50, 28), edge=0.015)


def _bottle_lid(s: Canvas) -> None:
    s.fill(s.box(-0.11, -1.16, 0.11, -1.0, 0.03), (226, 190, 64), s.tube_light(0, 0.13))


def _jar(s: Canvas) -> None:
    s.fill(
        union([s.box(-0.31, -0.54, 0.31, -0.09, 0.06), s.ellipse(0, -0.1, 0.31, 0.11)]),
        (240, 130, 30),
        s.tube_light(0, 0.34),
    )
    s.fill(s.box(-0.31, -0.4, 0.31, -0.16), (252, 246, 226), s.tube_light(0, 0.36), edge=0.012)
    s.fill(s.ellipse(0, -0.28, 0.10, 0.08), (240, 130, 30), edge=0)
    s.fill(s.box(-0.25, -0.5, -0.19, -0.06, 0.03), (255, 244, 226), edge=0, opacity=0.5)
    s.fill(s.ellipse(0, -0.55, 0.29, 0.09), (130, 56, 8))


def _jar_lid(s: Canvas) -> None:
    s.fill(
        union([s.box(-0.33, -0.66, 0.33, -0.55), s.ellipse(0, -0.55, 0.33, 0.1)]), (214, 176, 62), s.tube_light(0, 0.36)
    )
    s.fill(s.ellipse(0, -0.66, 0.33, 0.1), (244, 214, 112), s.slope_light(-0.76, -0.56, 0.1))


def _kettle(s: Canvas) -> None:
    steel = (150, 158, 168)
    s.fill(abs(s.ellipse(0, -0.56, 0.36, 0.30)) - 0.045, (44, 46, 52))
    s.fill(s.capsule(-0.36, -0.24, -0.66, -0.58, 0.11, 0.055), steel, s.slope_light(-0.6, -0.1, 0.25))
    s.fill(_above(s, s.ellipse(0, -0.26, 0.5, 0.36), 0.02), steel, s.tube_light(0, 0.54))
    s.fill(s.box(-0.47, -0.04, 0.47, 0.03, 0.03), (70, 74, 82), edge=0.012)
    s.fill(s.ellipse(-0.22, -0.32, 0.05, 0.14), (240, 244, 250), edge=0, opacity=0.6)
    s.fill(s.ellipse(0, -0.56, 0.23, 0.07), (40, 42, 48))


def _kettle_lid(s: Canvas) -> None:
    s.fill(s.ellipse(0, -0.58, 0.25, 0.085), (186, 194, 204), s.tube_light(0, 0.3))
    s.fill(s.ellipse(0, -0.67, 0.065, 0.06), (30, 30, 34), s.ball_light(0, -0.67, 0.07))


def _box(s: Canvas) -> None:
    brown = (186, 132, 76)
    s.fill(s.polygon((0.24, -0.5), (0.48, -0.62), (0.48, -0.16), (0.24, 0.03)), (140, 94, 50))
    s.fill(s.polygon((-0.46, -0.5), (0.24, -0.5), (0.24, 0.03), (-0.46, 0.03)), brown, s.slope_light(-0.5, 0.05, 0.1))
    s.fill(s.box(-0.16, -0.5, -0.06, 0.02), (216, 178, 120), edge=0)
    s.fill(s.polygon((-0.46, -0.5), (-0.2, -0.66), (0.48, -0.62), (0.24, -0.5)), (62, 38, 20))


def _box_lid(s: Canvas) -> None:
    s.fill(s.polygon((-0.48, -0.5), (-0.22, -0.68), (0.50, -0.64), (0.26, -0.5)), (220, 170, 108))
    s.fill(s.polygon((-0.48, -0.5), (0.26, -0.5), (0.26, -0.43), (-0.48, -0.43)), (196, 144, 86), edge=0.012)
    s.fill(s.polygon((-0.14, -0.5), (0.04, -0.67), (0.14, -0.665), (-0.04, -0.5)), (240, 206, 150), edge=0)


def _book(s: Canvas) -> None:
    purple = (124, 58, 160)
    s.fill(s.polygon((-0.5, -0.08), (0.36, -0.08), (0.36, 0.06), (-0.5, 0.06)), (246, 240, 224), edge=0.03)
    s.fill(s.polygon((0.36, -0.08), (0.54, -0.34), (0.54, -0.22), (0.36, 0.06)), (226, 216, 196))
    s.fill(s.box(-0.5, 0.035, 0.37, 0.075), (86, 36, 116), edge=0)
    cover = s.polygon((-0.3, -0.36), (0.56, -0.36), (0.37, -0.08), (-0.52, -0.08))
    s.fill(cover, purple, s.slope_light(-0.4, 0, 0.15))
    s.fill(s.polygon((-0.12, -0.30), (0.36, -0.30), (0.32, -0.24), (-0.16, -0.24)), (250, 214, 90), edge=0)
    s.fill(s.polygon((-0.2, -0.19), (0.18, -0.19), (0.15, -0.15), (-0.23, -0.15)), (226, 196, 240), edge=0)


def _apple(s: Canvas) -> None:
    shape = union([s.ellipse(-0.11, -0.27, 0.21, 0.26), s.ellipse(0.11, -0.27, 0.21, 0.26)])
    s.fill(shape, (122, 190, 50), s.ball_light(0, -0.27, 0.36))
    s.fill(s.ellipse(0, -0.48, 0.08, 0.03), (70, 110, 26), edge=0)
    s.fill(s.capsule(0, -0.48, 0.04, -0.62, 0.022), (92, 58, 30), edge=0.012)
    s.fill(s.capsule(0.06, -0.58, 0.2, -0.64, 0.05, 0.015), (58, 140, 48), edge=0.012)
    s.fill(s.ellipse(-0.15, -0.36, 0.045, 0.07), (250, 255, 230), edge=0, opacity=0.7)


def _lemon(s: Canvas) -> None:
    shape = union([s.ellipse(0, -0.24, 0.34, 0.25), s.capsule(-0.3, -0.24, -0.4, -0.24, 0.09, 0.05)])
    shape = union([shape, s.capsule(0.3, -0.24, 0.39, -0.24, 0.09, 0.05)])
    s.fill(shape, (250, 214, 40), s.ball_light(0, -0.24, 0.40))
    s.fill(s.ellipse(-0.12, -0.34, 0.08, 0.04), (255, 255, 226), edge=0, opacity=0.7)


def _bread(s: Canvas) -> None:
    shape = union([s.box(-0.5, -0.28, 0.5, 0.02, 0.08), s.ellipse(0, -0.24, 0.5, 0.22)])
    s.fill(shape, (188, 116, 50), s.slope_light(-0.48, 0.05, 0.35))
    for x in (-0.28, 0.0, 0.28):
        s.fill(s.capsule(x - 0.06, -0.3, x + 0.06, -0.4, 0.03), (246, 214, 150), edge=0.012)


def _carrot(s: Canvas) -> None:
    for y in (-0.3, -0.2, -0.08):
        s.fill(s.capsule(0.36, -0.15, 0.66, y, 0.03, 0.05), (70, 160, 56), edge=0.015)
    s.fill(s.capsule(0.3, -0.15, -0.52, -0.1, 0.14, 0.025), (245, 126, 32), s.slope_light(-0.3, 0.0, 0.2))
    for x, top in ((0.2, -0.27), (0.02, -0.24), (-0.18, -0.19)):
        s.fill(s.capsule(x, top, x + 0.015, top + 0.1, 0.012), (190, 84, 14), edge=0)


def _sponge(s: Canvas) -> None:
    s.fill(s.box(-0.4, -0.18, 0.36, 0.03, 0.03), (214, 76, 130))
    s.fill(s.polygon((0.36, -0.16), (0.46, -0.32), (0.46, -0.12), (0.36, 0.02)), (176, 54, 104), edge=0.015)
    s.fill(s.polygon((-0.28, -0.34), (0.46, -0.34), (0.36, -0.17), (-0.4, -0.17)), (250, 134, 178))
    for x, y in (
        (-0.2, -0.27),
        (0.02, -0.29),
        (0.2, -0.24),
        (-0.05, -0.21),
        (0.3, -0.29),
        (-0.26, -0.07),
        (0.1, -0.09),
    ):
        s.fill(s.ellipse(x, y, 0.035, 0.02), (186, 70, 116), edge=0)


def _phone(s: Canvas) -> None:
    s.fill(s.polygon((-0.2, -0.36), (0.46, -0.3), (0.24, 0.05), (-0.46, -0.03)), (22, 22, 26), edge=0.03)
    s.fill(s.polygon((-0.17, -0.32), (0.39, -0.27), (0.21, 0.0), (-0.38, -0.06)), (64, 190, 220), edge=0)
    s.fill(s.polygon((-0.17, -0.32), (0.39, -0.27), (0.34, -0.2), (-0.23, -0.25)), (236, 246, 250), edge=0)
    s.fill(s.polygon((-0.26, -0.18), (-0.08, -0.17), (-0.14, -0.09), (-0.32, -0.11)), (250, 200, 70), edge=0)
    s.fill(s.polygon((0.02, -0.16), (0.2, -0.15), (0.14, -0.06), (-0.04, -0.08)), (240, 90, 90), edge=0)


def _ball(s: Canvas) -> None:
    light = s.ball_light(0, -0.34, 0.36)
    s.fill(s.ellipse(0, -0.34, 0.34, 0.34), (30, 160, 160), light)
    ring = abs(s.ellipse(0.3, -0.62, 0.42, 0.42)) - 0.06
    for stripe, color in ((ring, (250, 250, 246)), (s.ellipse(0.3, -0.62, 0.2, 0.2), (250, 196, 50))):
        visible = stripe * 1.0
        visible[s.ellipse(0, -0.34, 0.33, 0.33) > 0] = 1.0
        s.fill(visible, color, light, edge=0)


def _below(s: Canvas, shape: Field, y: float) -> Field:
    """The part of a shape below the height `y`."""
    return np.asarray(np.maximum(shape, y - s.y), np.float32)


def _above(s: Canvas, shape: Field, y: float) -> Field:
    """The part of a shape above the height `y`."""
    return np.asarray(np.maximum(shape, s.y - y), np.float32)


def _darker(color: Color, by: float) -> Color:
    return int(color[0] * by), int(color[1] * by), int(color[2] * by)


_BODIES: dict[str, Callable[[Canvas], None]] = {
    "cup": _cup,
    "bowl": _bowl,
    "plate": _plate,
    "bottle": _bottle,
    "jar": _jar,
    "kettle": _kettle,
    "box": _box,
    "book": _book,
    "apple": _apple,
    "lemon": _lemon,
    "bread": _bread,
    "carrot": _carrot,
    "sponge": _sponge,
    "phone": _phone,
    "ball": _ball,
}
_LIDS: dict[str, Callable[[Canvas], None]] = {
    "bottle": _bottle_lid,
    "jar": _jar_lid,
    "kettle": _kettle_lid,
    "box": _box_lid,
}


@cache
def tool(name: str, scale: float) -> AnchoredImage:
    """Return the image of a `knife`, `spoon` or `cloth`, anchored at its handle, with its end at the lower left.

    Raises `ValueError` for another name.
    """
    s = Canvas(-0.7, -0.5, 0.5, 1.1, scale=scale)
    if name == "knife":
        s.fill(s.capsule(0.12, -0.16, -0.02, 0.05, 0.065), (60, 44, 36))
        s.fill(
            s.polygon((-0.08, 0.02), (0.06, 0.09), (-0.34, 0.86), (-0.46, 0.78)),
            (214, 220, 228),
            s.slope_light(0, 0.7, 0.1),
        )
    elif name == "spoon":
        s.fill(s.capsule(0.08, -0.2, -0.32, 0.7, 0.045), (186, 134, 80))
        s.fill(s.ellipse(-0.36, 0.8, 0.12, 0.15), (204, 152, 96), s.slope_light(0.65, 0.95, 0.2))
    elif name == "cloth":
        shape = union(
            [s.ellipse(-0.06, 0.16, 0.42, 0.2), s.ellipse(-0.26, 0.26, 0.2, 0.13), s.box(-0.3, 0, 0.24, 0.3, 0.1)]
        )
        s.fill(shape, (244, 226, 90), s.slope_light(0, 0.4, 0.15))
        for x in (-0.24, -0.02, 0.18):
            s.fill(s.capsule(x, 0.04, x - 0.08, 0.3, 0.018), (220, 110, 60), edge=0)
    else:
        raise ValueError(f"unknown tool {name!r}; expected knife, spoon or cloth")
    return AnchoredImage(s.image(), (0.7 * scale, 0.5 * scale), scale)


@cache
def drop(scale: float) -> AnchoredImage:
    """Return the image of a drop of liquid, anchored at its middle."""
    s = Canvas(-0.12, -0.2, 0.12, 0.2, scale=scale)
    s.fill(
        union([s.ellipse(0, 0.06, 0.07, 0.08), s.capsule(0, 0.05, 0, -0.14, 0.06, 0.01)]), (96, 160, 226), edge=0.015
    )
    return AnchoredImage(s.image(), (0.12 * scale, 0.2 * scale), scale)


@cache
def hand(pose: str, skin: int, sleeve: Color, scale: float) -> AnchoredImage:
    """Return the image of a right hand and forearm as its owner sees them, anchored at the grip.

    `pose` is `grip` or `flat` (raises `ValueError` for another one), `skin` an index into `SKINS`.
    """
    s = Canvas(-0.8, -0.8, 0.9, 6.0, scale=scale)
    color = SKINS[skin % len(SKINS)]
    wrist = s.capsule(0.02, 0.55, 0.06, 1.2, 0.22, 0.24)
    s.fill(wrist, color, s.tube_light(0.03, 0.30))
    if pose == "flat":
        thumb = [(-0.20, 0.52, -0.46, 0.22), (-0.46, 0.22, -0.56, 0.06)]
        fingers = [
            (-0.20, 0.24, -0.29, -0.28),
            (-0.07, 0.20, -0.10, -0.40),
            (0.07, 0.20, 0.09, -0.38),
            (0.19, 0.26, 0.27, -0.22),
        ]
    elif pose == "grip":
        thumb = [(-0.20, 0.54, -0.36, 0.30), (-0.36, 0.30, -0.26, 0.08)]
        fingers = [
            (-0.19, 0.24, -0.22, -0.02),
            (-0.07, 0.18, -0.08, -0.10),
            (0.06, 0.18, 0.05, -0.10),
            (0.18, 0.24, 0.16, -0.02),
        ]
    else:
        raise ValueError(f"unknown pose {pose!r}; expected grip or flat")
    for ax, ay, bx, by in fingers:
        finger = s.capsule(ax, ay, bx, by, 0.085, 0.07)
        s.fill(finger, color, 0.12 - 3.2 * (finger + 0.05) ** 2 * 10 + s.slope_light(by, ay, 0.08), edge=0.018)
        s.fill(s.ellipse(bx, by - 0.02, 0.038, 0.045), (250, 222, 206), edge=0.008, opacity=0.75)
    palm = union([s.box(-0.28, 0.16, 0.27, 0.66, 0.16), s.capsule(-0.02, 0.4, 0.02, 0.7, 0.24, 0.21)])
    s.fill(palm, color, s.ball_light(-0.06, 0.36, 0.7) * 0.45, edge=0.0)
    for i, (ax, ay, bx, by) in enumerate(thumb):
        s.fill(s.capsule(ax, ay, bx, by, 0.10 - 0.01 * i, 0.085 - 0.01 * i), color, 0.05, edge=0.018 if i == 0 else 0.0)
    bx, by = thumb[-1][2:]
    s.fill(s.ellipse(bx, by, 0.04, 0.045), (250, 222, 206), edge=0.008, opacity=0.75)
    for ax, ay, *_ in fingers:
        s.fill(s.ellipse(ax, ay + 0.02, 0.045, 0.03), _darker(color, 0.82), edge=0, opacity=0.6)
    arm = s.capsule(0.05, 1.15, 0.36, 6.4, 0.31, 0.48)
    s.fill(_below(s, arm, 0.98), sleeve, s.tube_light(0.1, 0.42))
    for y in (1.5, 2.1, 2.8, 3.4, 4.2):
        s.fill(s.capsule(-0.18, y, 0.22, y + 0.12, 0.02), _darker(sleeve, 0.7), edge=0, opacity=0.5)
    cuff = s.polygon((-0.31, 0.94), (0.37, 0.90), (0.40, 1.08), (-0.30, 1.12))
    s.fill(cuff, _darker(sleeve, 0.8), s.tube_light(0.05, 0.4), edge=0.02)
    return AnchoredImage(s.image(), (0.8 * scale, 0.8 * scale), scale)
