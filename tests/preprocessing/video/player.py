"""What a player shows of a video, decoded independently of the project: the oracle for stored frames."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from preprocessing.video.index import SAFE_INPUT
from tests.preprocessing.coded_video import read_number

_DIFFERENT = 60  # levels by which the fields of different numbers differ at least
_SAME = 0.04  # share of different pixels; one field of 16 is 0.0625
_NEAR = 0.055  # s; one frame and a half at 30 frames/s


@dataclass(frozen=True)
class Shown:
    """A frame as it is shown."""

    time: float  # s from the first; NaN: unknown
    number: int
    picture: np.ndarray  # luma, (H, W) uint8


def as_shown(luma: np.ndarray, time: float = np.nan) -> Shown:
    """Return a frame from its luma, (H, W)."""
    return Shown(time, read_number(luma[:, :, None]), luma)


@dataclass(frozen=True)
class Player:
    """The frames of a video in the order in which libav puts them out, with its own times."""

    frames: list[Shown]

    @classmethod
    def of(cls, path: Path, *, size: tuple[int, int]) -> Player:
        """Decode a video from its first packet; what cannot be decoded is left out. `size` is (width, height)."""
        frames: list[tuple[float, np.ndarray]] = []
        try:
            with av.open(str(path), options=SAFE_INPUT, metadata_errors="ignore") as container:
                stream = container.streams.best("video")
                stream.thread_type = "NONE"
                packets = container.demux(stream)
                while True:
                    try:
                        packet = next(packets)
                    except (StopIteration, av.FFmpegError):
                        break
                    try:
                        decoded = stream.codec_context.decode(packet if packet.size else None)
                    except av.FFmpegError:
                        decoded = []
                    for frame in decoded:
                        time = np.nan if frame.pts is None else float(frame.pts * stream.time_base)
                        frames.append(
                            (time, frame.reformat(*size, format="gray", interpolation="BICUBIC").to_ndarray())
                        )
        except (av.FFmpegError, AttributeError, IndexError, TypeError):
            pass
        first = min((time for time, _ in frames if np.isfinite(time)), default=0.0)
        return cls([as_shown(picture, time - first) for time, picture in frames])

    def near(self, seconds: float) -> list[Shown]:
        """Return the frames that are shown within a frame and a half of a time."""
        timed = sorted((f for f in self.frames if np.isfinite(f.time)), key=lambda f: f.time)
        times = [f.time for f in timed]
        first = max(0, bisect.bisect_right(times, seconds - _NEAR) - 1)
        return timed[first : bisect.bisect_right(times, seconds + _NEAR)]


def is_one_of(frame: Shown, others: Sequence[Shown]) -> bool:
    """Return whether a frame shows the number or the picture of another."""
    return any(
        frame.number == other.number
        or (np.abs(frame.picture.astype(int) - other.picture.astype(int)) > _DIFFERENT).mean() < _SAME
        for other in others
    )


def wrong_frames(
    stored: dict[int, Shown], player: Player, *, fps: int, by_order: bool, joins: Sequence[float] = ()
) -> dict[int, tuple[int, list[int]]]:
    """Return grid frame → (number, numbers that would be right) of every stored frame that is wrong.

    `stored` are the frames outside of damage, of a source that was mutated and whose n-th frame showed n at n/fps
    before. A frame is right if it is that one, or what a player shows of the mutated source. Where its clock was joined
    at `joins` (s), players show the parts at other times: there, frames have to follow each other as in the source.
    """
    wrong = {}
    for n, frame in sorted(stored.items()):
        right = player.near(n / fps)
        if by_order:
            right = [*right, *player.frames[max(0, n - 1) : n + 2]]
        if frame.number == n or is_one_of(frame, right):
            continue
        before = stored.get(n - 1)
        is_first = before is None or any(abs(n / fps - at) < 4 / fps for at in joins)
        if joins and (is_first or (before and frame.number - before.number in (0, 1))):
            continue
        if joins and before and _follows(before, frame, player.frames):
            continue
        wrong[n] = (frame.number, sorted({f.number for f in right}))
    return wrong


def _follows(before: Shown, frame: Shown, frames: Sequence[Shown]) -> bool:
    """Return whether two frames are shown one after the other."""
    at = [i for i, f in enumerate(frames) if is_one_of(before, [f])]
    return any(is_one_of(frame, frames[i : i + 3]) for i in at)


def joins_of(notes: Sequence[str]) -> list[float]:
    """Return the times (s) at which a clock says that it jumps back."""
    return [float(note.rpartition(" at ")[2].split()[0]) for note in notes if "jumps back" in note]
