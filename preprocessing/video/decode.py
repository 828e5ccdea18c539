"""Decodes a source from a packet on and says, for each frame, which packet of its clock it comes from.

The frame of a packet is found by the packet's number, which libav hands through the decoder, and never by a time stamp
that libav guesses.
"""

from __future__ import annotations

import itertools
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
_SUSPICIOUS = ("error", "corrupt", "invalid", "missing", "conceal", "non-existing", "no frame", "truncat", "partial")


class SeekError(ValueError):
    """Decoding cannot start at the wanted packet; it can start at the first."""


@dataclass(frozen=True)
class SentPacket:
    """A packet that was given to the decoder."""

    number: int  # in the clock; −1: a packet that the clock does not know
    is_key: bool
    is_broken: bool  # it did not decode, or the decoder concealed errors


@dataclass(frozen=True)
class DecodedFrame:
    """A frame that the decoder put out."""

    number: int  # of its packet; with `by_order`, its number in the order of output
    time: float  # s from the video's first frame; NaN: not shown
    frame: av.VideoFrame


def suggests_damage(messages: str) -> bool:
    """Return whether libav's messages indicate damage. A false positive costs time but no samples."""
    text = messages.lower()
    return any(word in text for word in _SUSPICIOUS)


class Messages:
    """What libav logged since it was last asked."""

    def __init__(self, captured: list[tuple[int, str, str]]) -> None:
        self._captured = captured

    def suggest_damage(self) -> bool:
        """Return whether the messages since the last call suggest damage."""
        if not self._captured:
            return False
        logged = "\n".join(text for level, _, text in self._captured if level <= av.logging.INFO)
        self._captured.clear()
        return suggests_damage(logged)


@contextmanager
def watched_messages() -> Iterator[Messages]:
    """Capture what libav logs in this thread."""
    previous = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # the level at which error concealment is reported
    try:
        with av.logging.Capture(local=True) as captured:
            yield Messages(captured)
    finally:
        av.logging.set_level(previous)


def decode(
    path: Path, stream_index: int, clock: VideoClock, *, first: int = 0, watch_messages: bool = True
) -> Iterator[SentPacket | DecodedFrame]:
    """Yield the packets of a stream from number `first` on as they are decoded, and the frames that come out.

    `watch_messages` counts a packet as broken if libav logs a problem. Raises `SeekError` where the stream cannot be
    entered at `first`, and `av.FFmpegError` where it cannot be opened.
    """
    with ExitStack() as stack:
        container = stack.enter_context(open_source(path))
        stream = container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        stream.thread_type = "NONE"  # messages of other threads could not be attributed to a packet
        stream.codec_context.copy_opaque = True
        messages = stack.enter_context(watched_messages()) if watch_messages else Messages([])
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
) -> Iterator[SentPacket | DecodedFrame]:
    position = first - 1  # number of the packet sent last
    shown = 0  # frames put out, for clocks by order
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            packet = None  # damaged here: what follows is lost
        is_media, number = packet is not None and bool(packet.size), -1
        if packet is not None and is_media:
            number = _number(packet, clock, after=position)
            position = number if number >= 0 else position + 1
            packet.opaque = number
        frames, is_broken = _frames(packet, stream)
        is_broken = messages.suggest_damage() or is_broken
        if packet is not None and is_media:
            yield SentPacket(number, packet.is_keyframe, is_broken or packet.is_corrupt or number < 0)
        for frame in frames:
            number = shown + clock.skipped if clock.by_order else _opaque(frame)
            shown += 1
            if 0 <= number < len(clock.time_P):
                yield DecodedFrame(number, float(clock.time_P[number]), frame)
        if packet is None:
            return


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


def _opaque(frame: av.VideoFrame) -> int:
    return frame.opaque if isinstance(frame.opaque, int) else -1


def _frames(packet: av.Packet[Any] | None, stream: VideoStream) -> tuple[list[av.VideoFrame], bool]:
    """Return the frames that come out for a packet (None: the last ones), and whether decoding it failed."""
    try:
        frames = stream.codec_context.decode(packet) if packet is None or packet.size else []
    except av.FFmpegError:
        return [], True
    return frames, any(frame.is_corrupt for frame in frames)
