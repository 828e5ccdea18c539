"""Finds the spans of a chunk that must not be used, by comparing what was decoded with the clock of the source.

This is the proof that every stored frame is the right one: outside these spans, each frame shows exactly the source
frame that the clock names for its time.

Shapes in names: N frames of the chunk's grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from preprocessing.config import ChunkConfig
from preprocessing.video.chunks import Damage
from preprocessing.video.clock import VideoClock
from preprocessing.video.frame_folder import FrameFolder
from preprocessing.video.frames import FramesReport

_INSTANT = 1e-6  # s; what is shorter is rounding
_ADJACENT = 1.6  # times the usual step between frames: between frames that far apart, none is missing


def find_damage(
    report: FramesReport,
    clock: VideoClock,
    *,
    first: int,
    stop: int,
    config: ChunkConfig,
    frames: FrameFolder | None = None,
) -> list[Damage]:
    """Return the damage within the grid frames `first … stop − 1` of a source, from the report of their decoding.

    `frames` is the folder of a source that is one. Damage is in s from the source's first frame.
    """
    start, end = first / config.fps, stop / config.fps
    damage = [Damage(start=span.start, end=span.end, reason=span.reason) for span in clock.lost]
    reason = "broken frames" if frames is None else "broken image"
    damage += [Damage(start=a, end=b, reason=reason) for a, b in report.broken]
    damage += [Damage(start=t, end=t + clock.step, reason="frames in the wrong order") for t in report.disordered]
    if frames is not None:
        damage += missing_images(frames, start=start, end=end)
    if not report.shown:
        return [*damage, Damage(start=start, end=end, reason="no decodable frame")]
    decoded = np.array(sorted(set(report.decoded)), np.int64)
    damage += _undecoded(decoded, clock, start=start, stop=stop, fps=config.fps)
    damage += frozen_intervals(clock.time_P[report.shown], start=start, step=clock.step, config=config)
    damage += _wrong_frames(np.array(report.shown), decoded, clock, first=first, fps=config.fps)
    return [item for item in damage if item.end > start + _INSTANT and item.start < end - _INSTANT]


def _undecoded(decoded: np.ndarray, clock: VideoClock, *, start: float, stop: int, fps: int) -> Iterator[Damage]:
    """Yield where a packet gave no frame and nothing else is shown at its time, before grid frame `stop`.

    The second field of a frame, or a packet that repeats it, gives none either; there the frames around are adjacent.
    """
    if clock.by_order:
        return
    times = np.sort(clock.time_P[decoded])
    steps = np.diff(times)
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else clock.step
    absent = (clock.time_P >= start - usual) & (clock.slots(fps) < stop)
    absent[decoded] = False
    for at in np.sort(clock.time_P[absent]).tolist():
        after = int(np.searchsorted(times, at, side="right"))
        before = times[after - 1] if after else -np.inf
        following = times[after] if after < len(times) else np.inf
        around = [*steps[max(0, after - 2) : max(0, after - 1)], *steps[after : after + 1]]  # before and after the gap
        step = min(usual, *(s for s in around if s > 0)) if any(s > 0 for s in around) else usual
        if following - before > _ADJACENT * step and not (following == np.inf and at - before < 0.6 * usual):
            yield Damage(start=at, end=min(float(following), stop / fps), reason="no decodable frame")


def _wrong_frames(
    shown_N: np.ndarray, decoded: np.ndarray, clock: VideoClock, *, first: int, fps: int
) -> Iterator[Damage]:
    """Yield where a stored frame shows another source frame than the clock names for its time, of those decoded."""
    slot_P = clock.slots(fps)[decoded]
    time_P = clock.time_P[decoded]
    order = np.lexsort((time_P, slot_P))
    at = np.searchsorted(slot_P[order], first + np.arange(len(shown_N)), side="right") - 1
    right_N = np.where(at >= 0, decoded[order][np.maximum(at, 0)], shown_N)  # before the first: see frozen_intervals
    for n in np.flatnonzero(right_N != shown_N).tolist():
        yield Damage(start=(first + n) / fps, end=(first + n + 1) / fps, reason="wrong frame")


def frozen_intervals(times_N: np.ndarray, *, start: float, step: float, config: ChunkConfig) -> list[Damage]:
    """Return where stored frames show one source frame for longer than the source's frame rate explains.

    `times_N` has, for each stored frame, the time (s) of the source frame that it shows; `step` is the usual distance
    of source frames (s). Gaps up to `config.max_gap_seconds` are tolerated.
    """
    limit = max(config.max_gap_seconds, 2.5 * step)
    damage = []
    distinct = sorted(set(times_N.tolist()))
    if distinct[0] - start > 0.5 / config.fps + 1e-6:  # the first frame that decodes fills the time before it
        damage.append(Damage(start=start, end=distinct[0], reason="no decodable frame"))
    ends = [*distinct[1:], start + len(times_N) / config.fps]
    for shown, following in zip(distinct, ends, strict=True):
        if following - shown > limit:
            damage.append(Damage(start=max(start, shown + step), end=following, reason="frozen video"))
    return damage


def missing_images(frames: FrameFolder, *, start: float, end: float) -> list[Damage]:
    """Return where a folder of frames lacks some between `start` and `end` (s)."""
    return [
        Damage(start=frames.time_of(first), end=frames.time_of(last + 1), reason="frames missing")
        for first, last in frames.missing_between(frames.number_at(start), frames.number_at(end))
    ]


def merge(damage: Iterable[Damage], *, start: float, end: float) -> tuple[Damage, ...]:
    """Return the damage within `start … end` (s), sorted; overlapping spans are joined with all their reasons."""
    clipped = [
        Damage(start=max(d.start, start), end=min(d.end, end), reason=d.reason)
        for d in damage
        if d.end > start + _INSTANT and d.start < end - _INSTANT
    ]
    joined: list[Damage] = []
    for d in sorted(clipped, key=lambda d: (d.start, d.end, d.reason)):
        if joined and d.start <= joined[-1].end:
            last = joined[-1]
            reasons = last.reason if d.reason in last.reason.split(", ") else f"{last.reason}, {d.reason}"
            joined[-1] = Damage(start=last.start, end=max(last.end, d.end), reason=reasons)
        else:
            joined.append(d)
    return tuple(joined)
