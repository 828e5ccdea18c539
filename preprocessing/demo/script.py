"""Plans the actions and activities of every video, as a function of the configuration."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

import numpy as np

from preprocessing.demo.config import DemoConfig
from preprocessing.demo.vocabulary import ACTIVITY_PAIRS, VERBS, Activity, activities, possible


class Flaw(StrEnum):
    """The defect of a video's file."""

    NONE = "none"
    DAMAGED = "damaged"  # bytes overwritten in the middle of the stream; the rest decodes
    TRUNCATED = "truncated"  # cut off before the index; nothing decodes
    MISSING = "missing"  # annotated, but without a file


@dataclass(frozen=True)
class Action:
    """One action of the hand."""

    verb: str
    noun: str
    start: float  # s; the hand leaves its rest position
    core_start: float  # s; the movement starts
    core_end: float  # s; the movement ends
    end: float  # s; the hand is back at rest

    @property
    def time(self) -> float:
        """The middle of the movement, s: the time of its narration."""
        return round((self.core_start + self.core_end) / 2, 4)


@dataclass(frozen=True)
class Episode:
    """An activity as performed in a video."""

    activity: Activity
    start: float  # s; start of its first action
    end: float  # s; end of its last action


@dataclass(frozen=True)
class VideoScript:
    """The plan of one video."""

    index: int
    video_uid: str
    fps: Fraction
    num_frames: int
    split: str  # train | val
    flaw: Flaw
    nouns: tuple[str, ...]  # on the table, from left to right
    actions: tuple[Action, ...]  # in time order, without overlap
    episodes: tuple[Episode, ...]  # in time order, without overlap
    seed: tuple[int, ...]  # of the video's appearance

    @property
    def duration(self) -> float:
        """The duration, s."""
        return float(self.num_frames / self.fps)


# Indices of the special videos; REPEATS performs an activity twice.
REPEATS, ODD_RATE, DAMAGED, TRUNCATED, MISSING = range(5)
_ACT_AT = 0.57  # position of the middle of the movement, as a fraction of an action's duration
_CORE = 0.52  # duration of the movement, as a fraction of an action's duration


def make_scripts(config: DemoConfig) -> list[VideoScript]:
    """Return the plan of every video; all activities occur about equally often."""
    done = {activity.name: 0 for activity in activities(config.n_pairs)}
    n_val = max(2, round(0.15 * config.n_videos))
    scripts = []
    for index in range(config.n_videos):
        split = "val" if index >= config.n_videos - n_val else "train"
        scripts.append(_script(config, index, split, done))
    return scripts


def stable_uuid(*parts: object) -> str:
    """Return a UUID derived from a hash of `parts`."""
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def _script(config: DemoConfig, index: int, split: str, done: dict[str, int]) -> VideoScript:
    rng = np.random.default_rng([config.seed, index, 1])
    fps = config.odd_rate if index == ODD_RATE else Fraction(config.fps)
    vary = rng.uniform(0.95, 1.07) if index != REPEATS else 1.0
    num_frames = round(config.mean_seconds * vary * fps)
    first = index % config.n_pairs
    step = 1 + index // config.n_pairs % (config.n_pairs - 1)
    candidates = [*ACTIVITY_PAIRS[first], *ACTIVITY_PAIRS[(first + step) % config.n_pairs]]
    nouns = sorted({noun for activity in candidates for _, noun in activity.steps})
    rng.shuffle(nouns)
    actions, episodes = _perform(config, index, candidates, nouns, float(num_frames / fps), done, rng)
    flaws = {DAMAGED: Flaw.DAMAGED, TRUNCATED: Flaw.TRUNCATED, MISSING: Flaw.MISSING}
    return VideoScript(
        index=index,
        video_uid=stable_uuid("video", config.seed, index),
        fps=fps,
        num_frames=num_frames,
        split=split,
        flaw=flaws.get(index, Flaw.NONE),
        nouns=tuple(nouns),
        actions=tuple(actions),
        episodes=tuple(episodes),
        seed=(config.seed, index, 2),
    )


def _perform(
    config: DemoConfig,
    index: int,
    candidates: list[Activity],
    nouns: list[str],
    duration: float,
    done: dict[str, int],
    rng: np.random.Generator,
) -> tuple[list[Action], list[Episode]]:
    """Fill a video of `duration` s with activities and, between and within them, actions that belong to none."""
    steps = {step for activity in activities(config.n_pairs) for step in activity.steps}
    others = [(v, n) for n in nouns for v in VERBS if possible(v, n) and (v, n) not in steps]
    pace = float(rng.uniform(1.75, 2.15)) if index != REPEATS else 1.75  # s an action
    slow = 1.06 * pace
    last = duration - 0.4
    clock = 0.5
    actions: list[Action] = []
    episodes: list[Episode] = []

    def act(verb: str, noun: str) -> None:
        nonlocal clock
        length = pace * float(rng.uniform(0.94, 1.06))
        middle = clock + _ACT_AT * length
        if index % 2 == 0 and middle < config.chunk_seconds <= middle + 1.5 * length:
            middle = config.chunk_seconds  # delayed, so that this clip crosses the chunk boundary
        start, core = middle - _ACT_AT * length, _CORE * length
        actions.append(Action(verb, noun, start, middle - core / 2, middle + core / 2, start + length))
        clock = start + length

    def act_other() -> None:
        verb, noun = others[rng.integers(len(others))]
        act(verb, noun)

    def actions_left() -> int:
        """Return how many more actions fit, allowing for a delay at the chunk boundary."""
        wait = 1.5 * slow if index % 2 == 0 and clock < config.chunk_seconds else 0.0
        return int((last - 0.3 - clock - wait) / slow)

    while actions_left() >= 4:
        repeat = index == REPEATS and len(episodes) == 1
        activity = episodes[0].activity if repeat else _next(candidates, done, rng)
        done[activity.name] += 1
        spare = actions_left() - len(activity.steps)
        extra = min(int(rng.integers(0, 3)), spare) if index != REPEATS or len(episodes) > 1 else 0
        before = sorted(int(place) for place in rng.integers(1, len(activity.steps), extra))
        begin = len(actions)
        for place, (verb, noun) in enumerate(activity.steps):
            for _ in range(before.count(place)):
                act_other()
            act(verb, noun)
        episodes.append(Episode(activity, round(actions[begin].start, 3), round(min(clock, last), 3)))
        clock += float(rng.uniform(0.1, 0.4))
        if rng.uniform() < 0.5 and actions_left() >= 6 and index != REPEATS:
            act_other()
            clock += 0.1
    while actions_left() >= 1:
        act_other()
    return actions, episodes


def _next(candidates: list[Activity], done: dict[str, int], rng: np.random.Generator) -> Activity:
    """Return a random one of the activities that were performed least often."""
    fewest = min(done[activity.name] for activity in candidates)
    rarest = [activity for activity in candidates if done[activity.name] == fewest]
    return rarest[rng.integers(len(rarest))]
