"""Writes narrations and summaries for every script, including the irregular ones of real annotations."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from preprocessing.demo.config import DemoConfig
from preprocessing.demo.script import ODD_RATE, REPEATS, Action, VideoScript
from preprocessing.demo.vocabulary import NOUNS, VERBS


@dataclass(frozen=True)
class DemoAnnotation:
    """A narration or a summary; times in s from the video's first frame."""

    video_uid: str
    narration_pass: int  # 1 | 2
    index: int  # rank within the video and pass
    time: float
    clip_start: float
    clip_end: float
    text: str
    tag_verb: tuple[int, ...]
    tag_noun: tuple[int, ...]


@dataclass(frozen=True)
class DemoAnnotations:
    """All narrations and summaries of the dataset."""

    narrations: tuple[DemoAnnotation, ...]
    summaries: tuple[DemoAnnotation, ...]
    odd: dict[str, list[tuple[str, int, int]]]  # kind of irregularity → (video_uid, pass, index) of narrations


SHORT_FRAMES = (1, 3, 6)  # lengths of the shortest clips, frames
_ODD_TEXTS = (
    "and says \"Grüß Gott, that's the 'good' one\"",
    "– voilà, très bien 🍋",
    "“日本語で”",
    'with a 12" ruler beside',
)


def narrate(config: DemoConfig, scripts: list[VideoScript]) -> DemoAnnotations:
    """Return narrations and summaries, sorted by video, pass and time.

    Clips follow EgoClip's rule: t ± β/2α, where β is the mean gap between the narrations of one pass of a video and α
    the mean of all β. The very short clips do not follow it.
    """
    narrations: list[DemoAnnotation] = []
    summaries: list[DemoAnnotation] = []
    odd: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for script in scripts:
        for narration_pass in (1, 2) if script.index % 3 == 0 else (1,):
            rng = np.random.default_rng([config.seed, script.index, 2 + narration_pass])
            narrations += _narrations(script, narration_pass, rng, odd)
            summaries += _summaries(script, narration_pass)
    narrations = _with_clips(narrations)
    crossing = f"across {config.chunk_seconds:g} s"
    for i, annotation in enumerate(narrations):
        where = (annotation.video_uid, annotation.narration_pass, annotation.index)
        if where in odd["short clip"]:
            frames = SHORT_FRAMES[odd["short clip"].index(where) % len(SHORT_FRAMES)]
            end = round(annotation.time + frames / config.fps, 6)
            narrations[i] = annotation = replace(annotation, clip_start=annotation.time, clip_end=end)
        if annotation.clip_start < config.chunk_seconds < annotation.clip_end:
            odd[crossing].append(where)
    return DemoAnnotations(tuple(narrations), tuple(summaries), dict(odd))


def _narrations(
    script: VideoScript,
    narration_pass: int,
    rng: np.random.Generator,
    odd: dict[str, list[tuple[str, int, int]]],
) -> list[DemoAnnotation]:
    steps = {id(action) for episode in script.episodes for action in _steps_of(script, episode.start, episode.end)}
    lines: list[tuple[float, str, tuple[int, ...], tuple[int, ...]]] = []
    for action in script.actions:
        if narration_pass == 1:
            time = action.time
        elif id(action) not in steps and rng.uniform() < 0.3:
            continue  # the second narrator omits some actions, but none that belongs to an activity
        else:
            time = round(action.time + float(rng.uniform(-0.12, 0.12)), 4)
        lines.append((time, _text(action, narration_pass), VERBS[action.verb].tags, NOUNS[action.noun].tags))
    if script.index == ODD_RATE:
        text, verb, noun = "#C C looks around", (52,), (440,)
        lines += [(round(script.duration + late, 4), text, verb, noun) for late in (-0.1, 1.3, 2.9)]
    annotations = [
        DemoAnnotation(script.video_uid, narration_pass, i, time, time, time, text, verb, noun)
        for i, (time, text, verb, noun) in enumerate(lines)
    ]

    def mark(what: str, i: int, **changes: object) -> None:
        annotations[i] = replace(annotations[i], **changes)  # type: ignore[arg-type]
        odd[what].append((script.video_uid, narration_pass, i))

    if script.index == ODD_RATE:
        for i in range(len(annotations) - 3, len(annotations)):
            mark("past the end", i)
        mark("no verb", 1, tag_verb=())
        mark("no tags", 2, tag_verb=(), tag_noun=())
        mark("no noun", 3, tag_noun=())
    if script.index == REPEATS and narration_pass == 1:
        for i in (0, 2, len(annotations) - 1):
            mark("short clip", i)
        for i, words in enumerate(_ODD_TEXTS, start=1):
            mark("odd text", i, text=f"{annotations[i].text} {words}")
    return annotations


def _steps_of(script: VideoScript, start: float, end: float) -> list[Action]:
    """Return the actions between `start` and `end` (s) that are steps of one of the video's activities."""
    wanted = {step for episode in script.episodes for step in episode.activity.steps}
    return [a for a in script.actions if start <= a.time <= end and (a.verb, a.noun) in wanted]


def _summaries(script: VideoScript, narration_pass: int) -> list[DemoAnnotation]:
    annotations = []
    for i, episode in enumerate(script.episodes):
        activity = episode.activity
        # The second narrator uses the same words for every other summary.
        name = activity.rephrased if narration_pass == 2 and i % 2 else activity.name
        annotations.append(
            DemoAnnotation(
                video_uid=script.video_uid,
                narration_pass=narration_pass,
                index=i,
                time=episode.start,
                clip_start=episode.start,
                clip_end=episode.end,
                text=f"#Summary C {name}",
                tag_verb=activity.tag_verb,
                tag_noun=activity.tag_noun,
            )
        )
    return annotations


def _text(action: Action, narration_pass: int) -> str:
    verb, noun = VERBS[action.verb], NOUNS[action.noun]
    phrase = verb.phrase if narration_pass == 1 else verb.rephrased
    return "#C C " + phrase.format(f"the {noun.looks}")


def _with_clips(annotations: list[DemoAnnotation]) -> list[DemoAnnotation]:
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for annotation in annotations:
        times[annotation.video_uid, annotation.narration_pass].append(annotation.time)
    gaps = {key: (max(ts) - min(ts)) / (len(ts) - 1) for key, ts in times.items()}
    mean_gap = sum(gaps.values()) / len(gaps)
    clipped = []
    for annotation in annotations:
        half = gaps[annotation.video_uid, annotation.narration_pass] / (2 * mean_gap)
        start, end = round(max(0.0, annotation.time - half), 6), round(annotation.time + half, 6)
        clipped.append(replace(annotation, clip_start=start, clip_end=end))
    return clipped
