"""Where the hand and every thing are at each moment: a script's actions played as smooth movements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from preprocessing.demo.render.images import THING_SHAPES
from preprocessing.demo.render.scenery import Geometry
from preprocessing.demo.script import Action, VideoScript


@dataclass(frozen=True)
class ThingState:
    """A thing: where it stands (u, v), how high it is held and how far it is moved aside (units), and its shape."""

    noun: str
    u: float
    v: float
    z: float = 0.0
    aside: float = 0.0
    degrees: float = 0.0
    lid_x: float = 0.0  # units
    lid_z: float = 0.0  # units
    lid_degrees: float = 0.0
    apart: float = 0.0  # how far the cut halves are apart, units
    is_open: bool = False
    is_cut: bool = False
    here: bool = True  # False: carried out of sight


@dataclass(frozen=True)
class Hand:
    """The hand at rest camera coordinates (px), its pose, and the tool in it."""

    x: float
    y: float
    pose: str = "flat"  # flat | grip
    tool: str = ""  # knife | spoon | cloth


@dataclass(frozen=True)
class SceneState:
    """All that is drawn besides the backdrop."""

    hand: Hand
    things: dict[str, ThingState]
    held: str = ""  # the thing that the hand moves, drawn over the others
    pouring: float = 0.0  # the age of the stream in seconds; 0: none


@dataclass
class _Movement:
    """What one action does at `p` of its movement (0 to 1), at `t` seconds into it."""

    action: Action
    before: ThingState

    def at(self, p: float, t: float) -> tuple[ThingState, tuple[float, float], str, str]:
        """Return the thing, where the hand is from the thing's foot (units), the hand's pose and its tool."""
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
        raise ValueError(f"there is no movement for the verb {self.action.verb!r}")


class SceneAnimator:
    """Plays a script; the things keep what was done to them."""

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
        """Yield what is seen at each of `times` (s, rising)."""
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
            yield plan.moment(time)

    def _idle(self, time: float) -> tuple[float, float]:
        return self.rest[0] + 3 * math.sin(1.7 * time), self.rest[1] + 3 * math.sin(2.3 * time)

    def foot(self, thing: ThingState) -> tuple[float, float]:
        """Where the thing touches (or would touch) the table, px."""
        return self.geometry.on_screen(thing.u, thing.v)


class _ActionPlan:
    """One action on the stage: reach (and bring the thing where it must be), act, go back."""

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
        # What an earlier action opened or cut is whole again by the time that the hand is there.
        ready = ThingState(action.noun, u, v)
        self.path = _Movement(action, ready)
        self.begin = self.path.at(0.0, 0.0)
        self.carry = not found.here or (found.v != v) or verb == "put"
        end = self.path.at(1.0, action.core_end - action.core_start)[0]
        still_open, still_cut = verb == "open", verb == "cut"
        self.settled = replace(end, z=0.0, aside=0.0, degrees=0.0, is_open=still_open, is_cut=still_cut)
        self.after = replace(self.settled, here=verb != "lift")

    def moment(self, time: float) -> SceneState:
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
        if self.found.here and p < 0.4:  # take it from where it is
            hand = _between(stage.rest, self._from(self.found, (0.30, -0.2)), _ease(p / 0.4))
            return SceneState(Hand(*hand, "grip"), self._with(self.found), self.action.noun)
        start = 0.4 if self.found.here else 0.0
        e = _ease((p - start) / (1 - start))
        if not hidden:  # carry it to where the movement begins
            moved = replace(ready, v=self.found.v + (ready.v - self.found.v) * e, z=0.12 * _bump(e))
            return SceneState(Hand(*self._from(moved, offset), "grip", tool), self._with(moved), self.action.noun)
        if self.found.here:  # out of sight, and back
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
        """The thing in the hand, on its way from where it is (0) to out of sight (1)."""
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
