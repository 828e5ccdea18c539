"""Selects the frames, windows, narrations and crops of a sample as a function of (seed, epoch, key).

Shapes in names: T frames of a clip or window, K windows or narrations of a long sample.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.schema import MediaRecord, Narration, SummaryRecord

RATIO = (3 / 4, 4 / 3)  # width / height of a random crop: the default of torchvision's RandomResizedCrop
_TRIES = 10  # before a centre crop, as in torchvision's RandomResizedCrop


class KeyedRng:
    """Random numbers that depend only on a key, identical in every process and on every machine.

    They are BLAKE2b digests, since the streams of a library's generator may change between versions.

        rng = KeyedRng(seed, epoch, "video_c1_000123")
        start = rng.uniform(0.0, 3.0)
    """

    def __init__(self, *key: int | str) -> None:
        self._key = ":".join(str(part) for part in key).encode()
        self._blocks = 0
        self._words: list[int] = []  # of the last block, not yet returned

    def bits(self) -> int:
        """Return the next 64 random bits."""
        if not self._words:
            block = hashlib.blake2b(self._key, salt=self._blocks.to_bytes(16, "little")).digest()
            self._words = [int.from_bytes(block[i : i + 8], "little") for i in range(0, 64, 8)]
            self._blocks += 1
        return self._words.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a random number in [low, high)."""
        return low + (high - low) * (self.bits() >> 11) / (1 << 53)

    def integer(self, stop: int) -> int:
        """Return a random integer of 0 … stop − 1."""
        return self.bits() * stop >> 64


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle of a frame in pixels; all four are even, as 4:2:0 video requires."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False  # mirror horizontally


def frame_numbers(count: int, frames: int, rng: KeyedRng | None) -> np.ndarray:
    """Return T = `frames` of `count` frames, (T,) int64, one from each of T equal parts.

    With `rng` it is a random frame of each part [a, b) (training), without the middle one, `(a + b − 1) // 2`
    (evaluation). Fewer than T frames are repeated. Raises `ValueError` unless both numbers are positive.

        >>> frame_numbers(30, 4, None)
        array([ 3, 10, 18, 25])
    """
    if count < 1 or frames < 1:
        raise ValueError(f"cannot select {frames} of {count} frames: both must be at least 1")
    edges = np.linspace(0, count, frames + 1).astype(np.int64).tolist()
    chosen = []
    for a, b in itertools.pairwise(edges):
        inside = a + rng.integer(b - a) if rng is not None and b > a else (a + max(a + 1, b) - 1) // 2
        chosen.append(min(inside, count - 1))
    return np.array(chosen, np.int64)


def window_starts(span: float, windows: int, seconds: float) -> tuple[np.ndarray, float]:
    """Return the starts of a long sample's windows, (K,) in s from its start, and their length in s.

    HierVL: d = min(8 s, span), start_i = i / (K − 1) · (span − d − 1 s); here never before the start of the sample.
    """
    length = min(seconds, span)
    room = max(0.0, span - length - 1.0)
    steps = np.arange(windows) / (windows - 1) if windows > 1 else np.array([0.5])
    return steps * room, length


def window_frames(
    record: MediaRecord, *, windows: int, seconds: float, frames: int, rng: KeyedRng | None
) -> np.ndarray:
    """Return the stored frames of a long sample's windows, (K, T); see `window_starts` and `frame_numbers`."""
    starts, length = window_starts(record.clip_frames / record.fps, windows, seconds)
    count = max(1, round(length * record.fps))
    rows = []
    for start in starts.tolist():
        first = min(math.floor(start * record.fps), record.clip_frames - count)
        rows.append(record.first_frame + first + frame_numbers(count, frames, rng))
    return np.stack(rows)


def clip_frames(record: MediaRecord, *, frames: int, rng: KeyedRng | None) -> np.ndarray:
    """Return the stored frames of a clip, (T,); see `frame_numbers`."""
    return record.first_frame + frame_numbers(record.clip_frames, frames, rng)


def part_frames(record: MediaRecord, *, seconds: tuple[float, float], frames: int, rng: KeyedRng | None) -> np.ndarray:
    """Return the stored frames, (T,), of a part of a sample whose length in s is within the range `seconds`.

    With `rng` length and position are random (training), without it is the middle part of mean length (evaluation).
    A shorter sample is used as a whole.
    """
    length = rng.uniform(*seconds) if rng is not None else sum(seconds) / 2
    count = min(max(1, round(length * record.fps)), record.clip_frames)
    room = record.clip_frames - count
    first = rng.integer(room + 1) if rng is not None else room // 2
    return record.first_frame + first + frame_numbers(count, frames, rng)


def narrations_in_order(record: SummaryRecord, count: int, rng: KeyedRng | None) -> list[Narration | None]:
    """Return K = `count` narrations of a summary by time, one from each of K equal parts.

    Fewer than K are repeated in turn. Without any, the result is K times None, which stands for the summary's text.
    """
    by_time = sorted(record.narrations, key=lambda narration: narration.clip_start)
    if not by_time:
        return [None] * count
    if len(by_time) < count:
        return [by_time[i % len(by_time)] for i in range(count)]
    return [by_time[i] for i in frame_numbers(len(by_time), count, rng).tolist()]


def partner(row: int, candidates: Sequence[int], rng: KeyedRng) -> int | None:
    """Return a random one of `candidates` other than `row`; None if there is none."""
    others = [other for other in candidates if other != row]
    return others[rng.integer(len(others))] if others else None


def centre_crop(width: int, height: int) -> Crop:
    """Return the largest centred square of a frame, which evaluation uses."""
    side = min(width, height) // 2 * 2
    return Crop(top=(height - side) // 4 * 2, left=(width - side) // 4 * 2, height=side, width=side)


def random_crop(width: int, height: int, *, scale: tuple[float, float], flip: float, rng: KeyedRng) -> Crop:
    """Return a random crop by the rule of torchvision's `RandomResizedCrop`.

    Its share of the frame's area is within `scale`, its aspect ratio within `RATIO`; `flip` is the probability that it
    is mirrored.
    """
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
