"""Decodes chunks in the test process, without an encoder, and reads the numbers of the frames that would be stored."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.config import ChunkConfig
from preprocessing.video import transcode
from preprocessing.video.chunks import Damage
from preprocessing.video.clock import VideoClock, save_clock
from preprocessing.video.damage import find_damage
from preprocessing.video.frames import FramesReport, FramesSpec, write_frames
from preprocessing.video.probe import ProbedVideo, probe, read_source_clock
from tests.preprocessing.chunking import task
from tests.preprocessing.video.player import Shown, as_shown

FPS = 30
SIDE = 48  # px


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What would be stored of the grid frames `first … stop − 1`, and what is said to be unusable."""

    first: int
    frames: list[Shown]
    damage: list[Damage]
    report: FramesReport

    @property
    def numbers(self) -> list[int]:
        """The numbers that the frames show."""
        return [frame.number for frame in self.frames]

    def sound(self, fps: int = FPS) -> dict[int, int]:
        """Return grid frame → number of every frame outside of damage."""
        return {n: frame.number for n, frame in self.sound_frames(fps).items()}

    def sound_frames(self, fps: int = FPS) -> dict[int, Shown]:
        """Return grid frame → frame outside of damage."""
        return {
            self.first + n: frame
            for n, frame in enumerate(self.frames)
            if not any(d.start - 1e-6 < (self.first + n + 0.5) / fps < d.end + 1e-6 for d in self.damage)
        }


class Source:
    """A probed video and its clock."""

    def __init__(self, path: Path, work: Path, *, stated_seconds: float | None = None) -> None:
        self.work = work
        clock_file = work / "clock.npz"
        self.probed: ProbedVideo = probe(path, stated_seconds=stated_seconds, clock_file=clock_file)
        self.clock: VideoClock = read_source_clock(self.probed, clock_file)
        self.clock_file = clock_file

    def frames(self, fps: int = FPS) -> int:
        """Return the number of grid frames."""
        return self.probed.frames(fps)

    def chunk(self, first: int, stop: int, *, fps: int = FPS, packet: int | None = None) -> Decoded:
        """Decode grid frames, from the ladder's first place that suffices or from a packet of the clock."""
        config = ChunkConfig(seconds=1, short_side=SIDE, fps=fps, summary_fps=1)
        whole = task(self.probed, self.work, first // fps, config=config)
        starts = transcode._starts(whole, self.clock) if packet is None else [packet]
        deinterlace, before = self.probed.is_interlaced, None
        for start in starts:
            while True:
                base = transcode.frames_spec(whole, clock_file=self.clock_file, report=self.work / "r", first=start)
                changed = {"first": first, "stop": stop, "deinterlace": deinterlace}
                made = self._decode(FramesSpec(**{**base.__dict__, **changed}), config)
                if not made.report.needs_deinterlacing or deinterlace:
                    break
                deinterlace = True
            if made.report.seek_failed:
                continue
            if not made.damage or (before is not None and before == (made.report.shown, made.damage)):
                break
            before = (made.report.shown, made.damage)
        return made

    def _decode(self, spec: FramesSpec, config: ChunkConfig) -> Decoded:
        out = io.BytesIO()
        report = write_frames(spec, self.clock, out)
        lines, width = spec.picture.height, spec.picture.width
        planes = np.frombuffer(out.getvalue(), np.uint8).reshape(-1, lines * 3 // 2, width)
        shown = [as_shown(plane[:lines]) for plane in planes]
        assert len(shown) == len(report.shown)
        damage = [] if report.seek_failed or report.needs_deinterlacing else find_damage(
            report, self.clock, first=spec.first, stop=spec.stop, config=config, frames=self.probed.frame_folder
        )  # fmt: skip
        return Decoded(first=spec.first, frames=shown, damage=damage, report=report)

    def every_chunk(self, seconds: float = 1.0, *, fps: int = FPS) -> list[Decoded]:
        """Decode the whole video in chunks of a length."""
        step = round(seconds * fps)
        total = self.frames(fps)
        return [self.chunk(first, min(first + step, total), fps=fps) for first in range(0, total, step)]


def expected(times: list[float], frame: int, fps: int = FPS) -> int:
    """Return the number of the frame that grid frame `frame` shows of a video whose frame n is shown at `times[n]`."""
    at = frame / fps + 0.5 / fps + 1e-6  # each frame is shown from the nearest grid frame on
    return max(0, int(np.searchsorted(np.array(times), at, side="right")) - 1)


def kept(clock: VideoClock, path: Path) -> VideoClock:
    """Save a clock at `path` and return it."""
    save_clock(path, clock, (0, 0, 0))
    return clock
