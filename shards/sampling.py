"""Chooses what a sample shows: frames, windows, narrations and crop, from (seed, epoch, key) and nothing else.

Shapes in names: T frames of a clip or window, K windows or narrations of a summary.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.schema import MediaRecord, Narration, SummaryRecord

RATIO = (3 / 4, 4 / 3)  # width to height of a random crop, torchvision's default
_TRIES = 10  # as torchvision's RandomResizedCrop, before it takes the centre


class KeyedRng:
    """Random numbers that follow from the parts of a name alone: the same on every machine, in every process.

    Made of BLAKE2b rather than of a library's generator, whose streams may change between versions.
    """

    def __init__(self, *name: int | str) -> None:
        self._name = ":".join(str(part) for part in name).encode()
        self._blocks = 0
        self._left: list[int] = []

    def bits(self) -> int:
        """Return the next 64 random bits."""
        if not self._left:
            block = hashlib.blake2b(self._name, salt=self._blocks.to_bytes(16, "little")).digest()
            self._left = [int.from_bytes(block[i : i + 8], "little") for i in range(0, 64, 8)]
            self._blocks += 1
        return self._left.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number from [low, high)."""
        return low + (high - low) * (self.bits() >> 11) / (1 << 53)

    def integer(self, stop: int) -> int:
        """Return one of 0 … stop − 1."""
        return self.bits() * stop >> 64


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of a frame, in even pixels (as 4:2:0 video has it), and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def frame_numbers(count: int, frames: int, rng: KeyedRng | None) -> np.ndarray:
    """Return (T,) frames of a stretch of `count` frames: one of each of T equal parts.

    With `rng` a random one of each part (training), without the middle `(a + b − 1) // 2` (evaluation). A stretch of
    fewer than T frames repeats some; one frame is enough.
    """
    if count < 1 or frames < 1:
        raise ValueError(f"{frames} frames of a stretch of {count}: both must be at least 1")
    edges = np.linspace(0, count, frames + 1).astype(np.int64).tolist()
    chosen = []
    for a, b in itertools.pairwise(edges):
        inside = a + rng.integer(b - a) if rng is not None and b > a else (a + max(a + 1, b) - 1) // 2
        chosen.append(min(inside, count - 1))
    return np.array(chosen, np.int64)


def window_starts(span: float, windows: int, seconds: float) -> tuple[np.ndarray, float]:
    """Return the starts (K,) of the windows of a summary, in s from its start, and their length in s.

    HierVL: d = min(8 s, span), start_i = i / (K − 1) · (span − d − 1 s), here never before the summary's start.
    """
    length = min(seconds, span)
    room = max(0.0, span - length - 1.0)
    steps = np.arange(windows) / (windows - 1) if windows > 1 else np.array([0.5])
    return steps * room, length


def window_frames(
    record: MediaRecord, *, windows: int, seconds: float, frames: int, rng: KeyedRng | None
) -> np.ndarray:
    """Return (K, T) stored frames of a summary: T of each of K windows; see `window_starts` and `frame_numbers`."""
    starts, length = window_starts(record.clip_frames / record.fps, windows, seconds)
    count = max(1, round(length * record.fps))
    rows = []
    for start in starts.tolist():
        first = min(math.floor(start * record.fps), record.clip_frames - count)
        rows.append(record.first_frame + first + frame_numbers(count, frames, rng))
    return np.stack(rows)


def clip_frames(record: MediaRecord, *, frames: int, rng: KeyedRng | None) -> np.ndarray:
    """Return (T,) stored frames of a clip."""
    return record.first_frame + frame_numbers(record.clip_frames, frames, rng)


def part_frames(record: MediaRecord, *, seconds: tuple[float, float], frames: int, rng: KeyedRng | None) -> np.ndarray:
    """Return (T,) stored frames of one part of a sample, of a length between `seconds`, at most the whole.

    With `rng` length and place are random (training), without the middle one of the mean length.
    """
    length = rng.uniform(*seconds) if rng is not None else sum(seconds) / 2
    count = min(max(1, round(length * record.fps)), record.clip_frames)
    room = record.clip_frames - count
    first = rng.integer(room + 1) if rng is not None else room // 2
    return record.first_frame + first + frame_numbers(count, frames, rng)


def narrations_in_order(record: SummaryRecord, count: int, rng: KeyedRng | None) -> list[Narration | None]:
    """Return K narrations of a summary by time; all of them in turn when fewer, None (the summary itself) when none."""
    found = sorted(record.narrations, key=lambda narration: narration.clip_start)
    if not found:
        return [None] * count
    if len(found) < count:
        return [found[i % len(found)] for i in range(count)]
    return [found[i] for i in frame_numbers(len(found), count, rng).tolist()]


def partner(row: int, candidates: Sequence[int], rng: KeyedRng) -> int | None:
    """Return another of `candidates` than `row`, None where there is none."""
    others = [other for other in candidates if other != row]
    return others[rng.integer(len(others))] if others else None


def centre_crop(width: int, height: int) -> Crop:
    """Return the middle square of a frame: evaluation's resize, centre crop and resize in one."""
    side = min(width, height) // 2 * 2
    return Crop(top=(height - side) // 4 * 2, left=(width - side) // 4 * 2, height=side, width=side)


def random_crop(width: int, height: int, *, scale: tuple[float, float], flip: float, rng: KeyedRng) -> Crop:
    """Return a random resized crop (torchvision's rule): a share of the area within `scale`, a ratio within `RATIO`."""
    is_flipped = rng.uniform() < flip
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = _even(math.sqrt(area * ratio)), _even(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(
                top=2 * rng.integer((height - h) // 2 + 1),
                left=2 * rng.integer((width - w) // 2 + 1),
                height=h,
                width=w,
                flip=is_flipped,
            )
    w = min(width, _even(height * RATIO[1])) // 2 * 2
    h = min(height, _even(width / RATIO[0])) // 2 * 2
    return Crop(top=(height - h) // 4 * 2, left=(width - w) // 4 * 2, height=h, width=w, flip=is_flipped)


def _even(pixels: float) -> int:
    return round(pixels / 2) * 2
