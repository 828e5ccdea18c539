"""Decodes a source from a packet on and says, for each frame, which packet of its clock it comes from.

The frame of a packet is found by the packet's number, which libav hands through the decoder, and never by a time stamp
that libav guesses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from preprocessing.video.clock import VideoClock
from preprocessing.video.index import open_source

_SEEK_MARGINS = (0.0, 2.0, 12.0, 60.0)  # s by which a seek aims before the wanted packet
# Words in messages below the level of errors, and what begins errors that say nothing about pictures.
_SUSPICIOUS = ("error", "corrupt", "invalid", "missing", "conceal", "non-existing", "no frame", "truncat", "partial")
_HARMLESS = ("SEI type", "mmco: unref short failure")


class SeekError(ValueError):
    """Decoding cannot start at the wanted packet; it can start at the first."""


@dataclass(frozen=True)
class SentPacket:
    """A packet that was given to the decoder."""

    number: int  # in the clock; −1: a packet that the clock does not know
    time: float  # s from the video's first frame; NaN: not shown; with `by_order`, the nearest that is certain
    is_key: bool
    is_broken: bool  # it did not decode, or the decoder concealed errors


@dataclass(frozen=True)
class DecodedFrame:
    """A frame that the decoder put out."""

    number: int  # of its packet; with `by_order`, its number in the order of output
    time: float  # s from the video's first frame; NaN: not shown
    frame: av.VideoFrame


@dataclass(frozen=True)
class LostFrames:
    """With `by_order`: a packet gave no frame, so that the frames around it may have the number of a neighbour."""

    start: float  # s from the video's first frame
    end: float  # s


def suggests_damage(level: int, text: str, *, stream_index: int) -> bool:
    """Return whether a message of libav of a level indicates damage of a stream."""
    if text.startswith(_HARMLESS) or ("(stream = " in text and f"(stream = {stream_index}," not in text):
        return False
    return level <= av.logging.ERROR or any(word in text.lower() for word in _SUSPICIOUS)


class Messages:
    """What libav logged since it was last asked."""

    def __init__(self, captured: list[tuple[int, str, str]], stream_index: int) -> None:
        self._captured, self._stream_index = captured, stream_index

    def suggest_damage(self) -> bool:
        """Return whether the messages since the last call suggest damage of the stream."""
        if not self._captured:
            return False
        logged = [(level, text) for level, _, text in self._captured]
        self._captured.clear()
        return any(suggests_damage(level, text, stream_index=self._stream_index) for level, text in logged)


@contextmanager
def watched_messages(stream_index: int = 0) -> Iterator[Messages]:
    """Capture what libav logs in this thread."""
    previous = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.INFO)  # the level at which error concealment is reported
    av.logging.set_skip_repeated(False)  # each packet with the same fault is one that is broken
    try:
        with av.logging.Capture(local=True) as captured:
            yield Messages(captured, stream_index)
    finally:
        av.logging.set_level(previous[0])
        av.logging.set_skip_repeated(previous[1])


def decode(
    path: Path, stream_index: int, clock: VideoClock, *, first: int = 0
) -> Iterator[SentPacket | DecodedFrame | LostFrames]:
    """Yield the packets of a stream from number `first` on as they are decoded, and the frames that come out.

    Raises `SeekError` where the stream cannot be entered at `first`, and `av.FFmpegError` where it cannot be opened.
    """
    with ExitStack() as stack:
        container = stack.enter_context(open_source(path))
        stream = container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        stream.thread_type = "NONE"  # messages of other threads could not be attributed to a packet
        stream.codec_context.copy_opaque = True
        messages = stack.enter_context(watched_messages(stream_index))
        packets = _enter(container, stream, clock, first) if first else container.demux(stream)
        yield from _decode(packets, stream, clock, first, messages)


def _enter(container: InputContainer, stream: VideoStream, clock: VideoClock, first: int) -> Iterator[av.Packet[Any]]:
    """Return the packets of a stream from number `first` of its clock on; raise `SeekError` where no seek gets there.

    In formats without an index a seek may land too late: the next one aims earlier.
    """
    assert stream.time_base is not None
    for margin in _SEEK_MARGINS:
        container.seek(int(clock.raw_P[first]) - int(margin / stream.time_base), stream=stream, backward=True)
        packets = container.demux(stream)
        for packet in packets:
            if not packet.size:
                break
            number = _number(packet, clock)
            if number == first:
                return itertools.chain([packet], packets)
            if number > first:
                break
    raise SeekError(f"packet {first} cannot be reached by a seek")


def _decode(
    packets: Iterator[av.Packet[Any]],
    stream: VideoStream,
    clock: VideoClock,
    first: int,
    messages: Messages,
) -> Iterator[SentPacket | DecodedFrame | LostFrames]:
    position = first - 1  # number of the packet sent last
    order = _OutputOrder(clock, _most_reordered(stream)) if clock.by_order else None
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            packet = None  # damaged here: what follows is lost
        is_media, number = packet is not None and bool(packet.size), -1
        if packet is not None and is_media:
            number = _number(packet, clock, after=position)
            position = number if number >= 0 else position + 1
            packet.opaque = (number,)  # an object of its own: PyAV confuses packets that share one
        frames, is_broken = _frames(packet, stream)
        is_broken = messages.suggest_damage() or is_broken
        if packet is not None and is_media:
            is_broken = is_broken or packet.is_corrupt or number < 0
            yield _sent(number, clock, order, is_key=packet.is_keyframe, is_broken=is_broken)
        for frame in frames:
            number = _packet_number(frame)
            if order is not None:
                number, lost = order.take(number)
                yield from lost
            if 0 <= number < len(clock.time_P):
                yield DecodedFrame(number, float(clock.time_P[number]), frame)
        if packet is None:
            if order is not None:
                yield from order.finish()
            return


def _sent(number: int, clock: VideoClock, order: _OutputOrder | None, *, is_key: bool, is_broken: bool) -> SentPacket:
    if number < 0:
        return SentPacket(number, math.nan, is_key, is_broken)
    at = number
    if order is not None:
        order.sent(number)
        at = max(0, number - order.window) if is_broken else min(number + order.window, len(clock.time_P) - 1)
    return SentPacket(number, float(clock.time_P[at]), is_key, is_broken)


class _OutputOrder:
    """Counts frames in the order of output, and with them the packets from which none comes out."""

    def __init__(self, clock: VideoClock, window: int) -> None:
        self.window = window  # packets by which the output of a frame may lag behind
        self._clock = clock
        self._waiting: dict[int, None] = {}  # packets from which no frame came yet, ascending
        self._shown = self._lost = 0

    def sent(self, number: int) -> None:
        """Take a packet that was given to the decoder."""
        self._waiting[number] = None

    def take(self, number: int) -> tuple[int, list[LostFrames]]:
        """Return the number in output order of the frame of packet `number` (−1: none), and what was lost before."""
        if number not in self._waiting:
            return -1, []
        del self._waiting[number]
        lost = list(itertools.takewhile(lambda q: q < number - self.window, self._waiting))
        for q in lost:
            del self._waiting[q]
        self._lost += len(lost)
        place = self._shown + self._lost
        self._shown += 1
        return place, [self._span(lost[0], place)] if lost else []

    def finish(self) -> list[LostFrames]:
        """Return what was lost at the end of the stream."""
        return [self._span(min(self._waiting), len(self._clock.time_P))] if self._waiting else []

    def _span(self, lost: int, place: int) -> LostFrames:
        time_P = self._clock.time_P
        end = float(time_P[place]) if place < len(time_P) else self._clock.end
        return LostFrames(float(time_P[max(0, lost - self.window)]), end)


def _most_reordered(stream: VideoStream) -> int:
    """Return by how many packets the output of a frame may lag behind."""
    return 16 if stream.codec_context.name in ("h264", "hevc") else 2


def _number(packet: av.Packet[Any], clock: VideoClock, *, after: int | None = None) -> int:
    """Return the number of a packet in the clock, found by its place in the file; −1 if the clock does not know it.

    It is the one `after` the packet sent last, unless something was lost in between.
    """
    pos = -1 if packet.pos is None else packet.pos
    if after is not None and after + 1 < len(clock.pos_P):
        following = after + 1
        if clock.pos_P[following] == pos and clock.size_P[following] == packet.size:
            return following
    if pos < 0:
        return -1
    same = np.flatnonzero((clock.pos_P == pos) & (clock.size_P == packet.size))
    if after is not None:
        same = same[same > after]
        return int(same[0]) if len(same) else -1
    return int(same[0]) if len(same) == 1 else -1


def _packet_number(frame: av.VideoFrame) -> int:
    """Return the number in the clock of the packet from which `decode` got a frame; −1 where that is unknown."""
    return int(frame.opaque[0]) if isinstance(frame.opaque, tuple) else -1


def _frames(packet: av.Packet[Any] | None, stream: VideoStream) -> tuple[list[av.VideoFrame], bool]:
    """Return the frames that come out for a packet (None: the last ones), and whether decoding it failed."""
    try:
        frames = stream.codec_context.decode(packet) if packet is None or packet.size else []
    except av.FFmpegError:
        return [], True
    return frames, any(frame.is_corrupt for frame in frames)
