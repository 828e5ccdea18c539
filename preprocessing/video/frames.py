"""Decodes a chunk, chooses its frames by time and writes them raw: `python -m preprocessing.video.frames SPEC`.

It runs as a child process with limited memory and time, since it decodes files that may be hostile. `SPEC` is the JSON
text of a `FramesSpec`. The frames go to standard output, for an encoder; which packets they come from, and what was
broken, goes to the file `report`, from which the parent proves that every frame is the right one.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import av

from preprocessing.video.clock import VideoClock, load_clock
from preprocessing.video.decode import DecodedFrame, LostFrames, SeekError, SentPacket, decode, watched_messages
from preprocessing.video.picture import Colour, Deinterlacer, Painter, StoredPicture

_HALF = 0.5 + 1e-6  # frames; as `VideoClock.slots`


@dataclass(frozen=True, kw_only=True)
class FramesSpec:
    """What to decode and how to store it."""

    source: str  # path
    images: tuple[str, ...] = ()  # of a folder of frames: the file name of each packet of the clock
    stream: int  # index in the container
    clock: str  # path of the saved clock
    first_packet: int  # where decoding starts
    first: int  # frame of the grid
    stop: int  # frame of the grid, exclusive
    fps: int
    picture: StoredPicture
    deinterlace: bool
    report: str  # path

    def to_json(self) -> str:
        """Return the specification as a command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FramesSpec:
        """Return the specification in `text`."""
        value = json.loads(text)
        picture = value.pop("picture")
        colour = Colour(**picture.pop("colour"))
        images = tuple(value.pop("images"))
        return cls(**value, images=images, picture=StoredPicture(**picture, colour=colour))


@dataclass(kw_only=True)
class FramesReport:
    """What became of the frames of a chunk."""

    shown: list[int] = field(default_factory=list)  # for each written frame, the number of its packet
    decoded: list[int] = field(default_factory=list)  # packets from which frames came out, in order
    broken: list[tuple[float, float]] = field(default_factory=list)  # spans (s) in which frames may be wrong
    disordered: list[float] = field(default_factory=list)  # times (s) of frames earlier than the one before
    needs_deinterlacing: bool = False  # an interlaced frame was met: start again
    seek_failed: bool = False  # decoding cannot start at `first_packet`

    @classmethod
    def read(cls, path: Path) -> FramesReport | None:
        """Return the report at `path`; None if the child wrote none."""
        try:
            value = json.loads(path.read_bytes())
            return cls(**{**value, "broken": [(a, b) for a, b in value["broken"]]})
        except (OSError, ValueError, TypeError, KeyError):
            return None


class BrokenSpans:
    """Collects the spans in which frames may be wrong, from packets in decoding order.

    A broken packet spoils everything up to the next key frame, and what is decoded after it and shown before it.
    """

    def __init__(self, since: float) -> None:
        self.spans: list[tuple[float, float]] = []
        self._begin = since  # s; what precedes it may be undecodable, as pictures that lead the first key frame
        self._since: float | None = None
        self._last = since

    def packet(self, time: float, *, is_key: bool, is_broken: bool) -> None:
        """Take a packet shown at `time` (s; NaN: not shown)."""
        known = math.isfinite(time)
        if self._since is not None and known:
            if is_key and time > self._since:
                self.spans.append((self._since, time))
                self._since = None
            else:
                self._since = min(self._since, time)
        if known:
            self._last = time
        if is_broken and self._last >= self._begin:
            at = time if known else self._last
            self._since = at if self._since is None else min(self._since, at)

    def finish(self, end: float) -> list[tuple[float, float]]:
        """Return all spans; one that is still open ends at `end` (s)."""
        if self._since is not None:
            self.spans.append((self._since, max(end, self._since)))
            self._since = None
        return self.spans


class GridWriter:
    """Writes frames on a grid of constant rate: at each grid frame, the latest one that is due."""

    def __init__(self, out: BinaryIO, painter: Painter, first: int, stop: int) -> None:
        self.shown: list[int] = []
        self._out, self._painter = out, painter
        self._next, self._stop = first, stop
        self._pending: tuple[int, av.VideoFrame] | None = None
        self._missing = 0  # grid frames before the first one that was decoded

    def offer(self, number: int, slot: int, frame: av.VideoFrame) -> bool:
        """Take the frame of packet `number`, due at grid frame `slot`; return whether more frames are needed."""
        self._fill(slot)
        self._pending = (number, frame)
        return slot < self._stop

    def finish(self) -> None:
        """Write what is missing at the end: the last frame is held."""
        self._fill(self._stop)

    def _fill(self, until: int) -> None:
        count = min(until, self._stop) - self._next
        if count <= 0:
            return
        self._next += count
        if self._pending is None:
            self._missing += count
            return
        number, frame = self._pending
        count, self._missing = count + self._missing, 0
        planes = self._painter.paint(frame)
        for _ in range(count):
            self._out.write(planes)
        self.shown += [number] * count


def write_frames(spec: FramesSpec, clock: VideoClock, out: BinaryIO) -> FramesReport:
    """Write the frames of a chunk to `out` and return what became of them."""
    report = FramesReport()
    writer = GridWriter(out, Painter(spec.picture), spec.first, spec.stop)
    start = clock.time_P[spec.first_packet] if spec.first_packet else 0.0
    broken = BrokenSpans(float(start) if math.isfinite(start) else 0.0)
    try:
        for number, time, frame in _frames(spec, clock, report, broken):
            if report.decoded and time < float(clock.time_P[report.decoded[-1]]) - 1e-9:
                report.disordered.append(time)
                continue
            report.decoded.append(number)
            if not writer.offer(number, math.floor(time * spec.fps + _HALF), frame):
                break
        else:
            writer.finish()
    except SeekError:
        report.seek_failed = True
    except _InterlacedError:
        report.needs_deinterlacing = True
    report.broken = broken.finish(spec.stop / spec.fps)
    report.shown = writer.shown
    return report


class _InterlacedError(Exception):
    """An interlaced frame was met, and frames are not being deinterlaced."""


def _frames(
    spec: FramesSpec, clock: VideoClock, report: FramesReport, broken: BrokenSpans
) -> Iterator[tuple[int, float, av.VideoFrame]]:
    """Yield (number, time, frame) of every shown frame in order; tell `broken` about every packet."""
    deinterlacer = Deinterlacer() if spec.deinterlace else None
    events: Iterable[SentPacket | DecodedFrame | LostFrames]
    if spec.images:
        events = _images(spec, clock)
    else:
        events = decode(Path(spec.source), spec.stream, clock, first=spec.first_packet)
    for event in events:
        if isinstance(event, SentPacket):
            broken.packet(event.time, is_key=event.is_key, is_broken=event.is_broken)
        elif isinstance(event, LostFrames):
            broken.spans.append((event.start, event.end))
        elif deinterlacer is not None:
            yield from _shown(deinterlacer.push(event.number, event.time, event.frame))
        elif event.frame.interlaced_frame:
            raise _InterlacedError
        else:
            yield from _shown([(event.number, event.time, event.frame)])
    if deinterlacer is not None:
        yield from _shown(deinterlacer.push(-1, math.nan, None))


def _shown(frames: Iterable[tuple[int, float, av.VideoFrame]]) -> Iterator[tuple[int, float, av.VideoFrame]]:
    return (item for item in frames if math.isfinite(item[1]))


def _images(spec: FramesSpec, clock: VideoClock) -> Iterator[SentPacket | DecodedFrame]:
    """Yield the JPEG files of a folder as `decode` yields the packets of a video."""
    decoder = av.CodecContext.create("mjpeg", "r")
    with watched_messages() as messages:
        for number in range(spec.first_packet, len(spec.images)):
            try:
                data = (Path(spec.source) / spec.images[number]).read_bytes()
                frames = decoder.decode(av.Packet(data)) if data else []  # an empty packet would end the decoder
            except (av.FFmpegError, OSError):
                frames = []
            intact = [frame for frame in frames if isinstance(frame, av.VideoFrame) and not frame.is_corrupt]
            time = float(clock.time_P[number])
            yield SentPacket(number, time, True, messages.suggest_damage() or not intact)
            for frame in intact:
                yield DecodedFrame(number, time, frame)


def main() -> int:
    """Write the frames that the command line specifies; return 0, or 1 where the parent has to start again."""
    spec = FramesSpec.from_json(sys.argv[1])
    clock = load_clock(Path(spec.clock))
    assert clock is not None, f"{spec.clock} cannot be read"
    report = write_frames(spec, clock, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    Path(spec.report).write_text(json.dumps(asdict(report)))
    return 1 if report.seek_failed or report.needs_deinterlacing else 0


if __name__ == "__main__":
    sys.exit(main())
