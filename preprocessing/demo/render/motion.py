"""Animates a script: the state of the hand and of every thing at each time, with smooth movements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from preprocessing.demo.render.images import THING_SHAPES
from preprocessing.demo.render.scenery import Geometry
from preprocessing.demo.script import Action, VideoScript


@dataclass(frozen=True)
class ThingState:
    """The position and the appearance of a thing."""

    noun: str
    u: float  # position on the table: −1 left to 1 right
    v: float  # 0 far to 1 near
    z: float = 0.0  # height above the table, units
    aside: float = 0.0  # horizontal offset, units
    degrees: float = 0.0  # clockwise rotation
    lid_x: float = 0.0  # offset of the lid, units
    lid_z: float = 0.0  # units
    lid_degrees: float = 0.0
    apart: float = 0.0  # distance of the cut halves, units
    is_open: bool = False
    is_cut: bool = False
    here: bool = True  # False: out of sight


@dataclass(frozen=True)
class Hand:
    """The position (px, with the camera at rest) and pose of the hand, and the tool in it."""

    x: float
    y: float
    pose: str = "flat"  # flat | grip
    tool: str = ""  # knife | spoon | cloth


@dataclass(frozen=True)
class SceneState:
    """Everything in front of the backdrop at one time."""

    hand: Hand
    things: dict[str, ThingState]  # by noun
    held: str = ""  # the thing that the hand moves; it is drawn over the others
    pouring: float = 0.0  # s since pouring began; 0: not pouring


@dataclass
class _Movement:
    """The movement of one action, from the state of its thing before."""

    action: Action
    before: ThingState

    def at(self, p: float, t: float) -> tuple[ThingState, tuple[float, float], str, str]:
        """Return the state at the fraction `p` of the movement, `t` seconds into it.

        It consists of the thing, the hand's offset from the thing's foot (units), the hand's pose and its tool.
        """
        thing, tall = self.before, THING_SHAPES[self.before.noun].height
        e = _ease(p)
        grip = (0.30, -0.45 * tall)
        turn = 2 * math.pi
        match self.action.verb:
            case "lift":
                return replace(thing, z=1.35 * e), grip, "grip", ""
            case "put":
                return replace(thing, z=1.35 * (1 - e)), grip, "grip", ""
            case "push":
                return replace(thing, v=thing.v + (0.10 - thing.v) * e), (0.12, 0.34), "flat", ""
            case "pull":
                return replace(thing, v=thing.v + (0.90 - thing.v) * e), (0.34, -0.55 * tall), "grip", ""
            case "turn":
                return replace(thing, z=0.3 * _bump(p), degrees=360 * e), (0.40, -0.30 * tall), "grip", ""
            case "shake":
                swing = math.sin(turn * 3.6 * t) * min(1.0, 6 * p, 6 * (1 - p))
                thing = replace(thing, z=0.6 * min(1.0, 5 * p, 5 * (1 - p)), aside=0.34 * swing, degrees=24 * swing)
                return thing, grip, "grip", ""
            case "tap":
                bounce = abs(math.cos(turn * 1.7 * t))
                return thing, (0.30, 0.30 - tall - 0.70 * bounce), "flat", ""
            case "wipe":
                swing = turn * 1.9 * t
                return (
                    thing,
                    (0.16 + 0.42 * math.sin(swing), -0.15 - 0.6 * tall + 0.14 * math.cos(swing)),
                    "flat",
                    "cloth",
                )
            case "toss":
                height = 1.3 * 4 * p * (1 - p)
                return replace(thing, z=0.2 + height, degrees=360 * p), (0.14, 0.30), "flat", ""
            case "open" | "close":
                e = e if self.action.verb == "open" else 1 - e
                seam, tilt = THING_SHAPES[thing.noun].lid, math.radians(40 * e)
                lid_x, lid_z = 0.5 * e, 0.7 * math.sin(math.pi * e) - 0.72 * seam * e * e
                opened = replace(thing, is_open=True, lid_x=lid_x, lid_z=lid_z, lid_degrees=40 * e)
                at_lid = (0.20 + lid_x + seam * math.sin(tilt), -0.08 - seam * math.cos(tilt) - lid_z)
                return opened, at_lid, "grip", ""
            case "cut":
                saw = abs(math.sin(turn * 1.5 * t))
                return (
                    replace(thing, is_cut=p > 0.3, apart=0.30 * _ease((p - 0.3) / 0.7)),
                    (
                        0.38,
                        -0.55 - 0.45 * saw - 0.2 * tall,
                    ),
                    "grip",
                    "knife",
                )
            case "stir":
                swing = turn * 1.7 * t
                return thing, (0.38 + 0.20 * math.cos(swing), -0.58 - tall + 0.09 * math.sin(swing)), "grip", "spoon"
            case "pour":
                tilt = min(1.0, 3 * p, 4 * (1 - p))
                return (
                    replace(thing, z=0.95 * _ease(tilt), degrees=-100 * _ease(tilt)),
                    (0.34, -0.45 * tall),
                    "grip",
                    "",
                )
        raise ValueError(f"no movement is defined for the verb {self.action.verb!r}")


class SceneAnimator:
    """Plays the actions of a script; things keep the state in which an action leaves them."""

    def __init__(self, script: VideoScript, geometry: Geometry) -> None:
        self.geometry = geometry
        self.actions = script.actions
        self.rest = (0.70 * geometry.width, 1.02 * geometry.height)
        self.away = (0.62 * geometry.width, 1.45 * geometry.height)
        columns = len(script.nouns)
        self.home: dict[str, tuple[float, float]] = {}
        for i, noun in enumerate(script.nouns):
            u = -0.72 + 1.44 * (i / max(1, columns - 1))
            self.home[noun] = (u, 0.22 if i % 2 else 0.72)
        self.things = {noun: ThingState(noun, *self.home[noun]) for noun in script.nouns}
        first = {action.noun: action.verb for action in reversed(script.actions)}
        for noun, verb in first.items():
            self.things[noun] = replace(self.things[noun], here=verb != "put")

    def play(self, times: list[float]) -> Iterator[SceneState]:
        """Yield the scene at each of `times` (s, ascending)."""
        queue = iter(self.actions)
        action = next(queue, None)
        plan: _ActionPlan | None = None
        for time in times:
            while action is not None and time >= action.end:
                plan = plan or _ActionPlan(self, action)
                self.things[action.noun] = plan.after
                action, plan = next(queue, None), None
            if action is None or time < action.start:
                yield SceneState(Hand(*self._idle(time)), self.things)
                continue
            plan = plan or _ActionPlan(self, action)
            yield plan.scene(time)

    def _idle(self, time: float) -> tuple[float, float]:
        return self.rest[0] + 3 * math.sin(1.7 * time), self.rest[1] + 3 * math.sin(2.3 * time)

    def foot(self, thing: ThingState) -> tuple[float, float]:
        """Return the point of the table below a thing, px."""
        return self.geometry.on_screen(thing.u, thing.v)


class _ActionPlan:
    """One action: reach for the thing (and bring it to where the movement starts), perform it, return to rest."""

    def __init__(self, stage: SceneAnimator, action: Action) -> None:
        self.stage, self.action = stage, action
        found = stage.things[action.noun]
        u, home_v = stage.home[action.noun]
        verb = action.verb
        v = found.v
        if verb == "push" and v < 0.5:
            v = 0.78
        elif verb == "pull" and v > 0.5:
            v = 0.16
        elif not found.here:
            v = home_v
        self.found = found
        # A thing that an earlier action opened or cut is whole again when the movement starts.
        ready = ThingState(action.noun, u, v)
        self.path = _Movement(action, ready)
        self.begin = self.path.at(0.0, 0.0)
        self.carry = not found.here or (found.v != v) or verb == "put"
        end = self.path.at(1.0, action.core_end - action.core_start)[0]
        still_open, still_cut = verb == "open", verb == "cut"
        self.settled = replace(end, z=0.0, aside=0.0, degrees=0.0, is_open=still_open, is_cut=still_cut)
        self.after = replace(self.settled, here=verb != "lift")

    def scene(self, time: float) -> SceneState:
        """Return the scene at a time (s) of the action."""
        action, stage = self.action, self.stage
        if time < action.core_start:
            return self._approach((time - action.start) / (action.core_start - action.start))
        if time <= action.core_end:
            t = time - action.core_start
            p = t / (action.core_end - action.core_start)
            thing, offset, pose, tool = self.path.at(p, t)
            pouring = t if action.verb == "pour" and 0.3 < p < 0.78 else 0.0
            return SceneState(Hand(*self._from(thing, offset), pose, tool), self._with(thing), action.noun, pouring)
        return self._leave(_ease((time - action.core_end) / (action.end - action.core_end)), stage)

    def _approach(self, p: float) -> SceneState:
        stage, ready = self.stage, self.begin[0]
        _, offset, pose, tool = self.begin
        target = self._from(ready, offset)
        if not self.carry:
            hand = _between(stage.rest, target, _ease(p))
            reset = self.found if p < 0.5 else replace(ready, z=0.0)
            return SceneState(Hand(*hand, pose if p > 0.6 else "flat", tool), self._with(reset), self.action.noun)
        hidden = self.action.verb == "put" or not self.found.here
        if self.found.here and p < 0.4:  # reach for the thing
            hand = _between(stage.rest, self._from(self.found, (0.30, -0.2)), _ease(p / 0.4))
            return SceneState(Hand(*hand, "grip"), self._with(self.found), self.action.noun)
        start = 0.4 if self.found.here else 0.0
        e = _ease((p - start) / (1 - start))
        if not hidden:  # carry it to where the movement starts
            moved = replace(ready, v=self.found.v + (ready.v - self.found.v) * e, z=0.12 * _bump(e))
            return SceneState(Hand(*self._from(moved, offset), "grip", tool), self._with(moved), self.action.noun)
        if self.found.here:  # carry it out of sight and back
            out = min(1.0, 2 * e)
            if e < 0.5:
                return self._carried(replace(self.found, is_open=False, is_cut=False), (0.30, -0.2), _ease(out))
            e = 2 * e - 1
        return self._carried(ready, offset, 1 - e)

    def _leave(self, e: float, stage: SceneAnimator) -> SceneState:
        action = self.action
        thing, offset, pose, tool = self.path.at(1.0, action.core_end - action.core_start)
        if action.verb == "lift":
            return self._carried(thing, offset, e)
        hand = _between(self._from(thing, offset), stage.rest, e)
        fallen = replace(self.settled, z=thing.z * max(0.0, 1 - 4 * e))
        return SceneState(Hand(*hand, pose if e < 0.3 else "flat", tool), self._with(fallen), action.noun)

    def _carried(self, thing: ThingState, offset: tuple[float, float], out: float) -> SceneState:
        """Return the scene with the thing in the hand, carried from its position (`out` = 0) out of sight (1)."""
        x, y = self._from(thing, offset)
        to_x, to_y = _between((x, y), self.stage.away, out)
        size = self.stage.geometry.size_at(thing.v) * self.stage.geometry.unit
        moved = replace(thing, aside=(to_x - x) / size, z=thing.z - (to_y - y) / size, here=out < 1)
        return SceneState(Hand(to_x, to_y, "grip"), self._with(moved), self.action.noun)

    def _from(self, thing: ThingState, offset: tuple[float, float]) -> tuple[float, float]:
        x, y = self.stage.foot(thing)
        size = self.stage.geometry.size_at(thing.v) * self.stage.geometry.unit
        return x + (thing.aside + offset[0]) * size, y + (offset[1] - self._grip_height(thing)) * size

    def _grip_height(self, thing: ThingState) -> float:
        return 0.0 if self.action.verb == "toss" and thing.noun == self.action.noun else thing.z

    def _with(self, thing: ThingState) -> dict[str, ThingState]:
        return {**self.stage.things, thing.noun: thing}


def _ease(p: float) -> float:
    p = min(1.0, max(0.0, p))
    return p * p * (3 - 2 * p)


def _bump(p: float) -> float:
    return math.sin(math.pi * min(1.0, max(0.0, p)))


def _between(a: tuple[float, float], b: tuple[float, float], p: float) -> tuple[float, float]:
    return a[0] + (b[0] - a[0]) * p, a[1] + (b[1] - a[1]) * p
