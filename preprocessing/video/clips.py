"""Cuts clips out of chunks by copying packets; only the key frame that becomes the JPEG is decoded.

A cut starts at the last key frame at or before the clip and ends with the first anchor (I- or P-frame) at or after the
clip's last frame. The stored frames are therefore consecutive frames of the video's frame grid.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import simplejpeg
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace

from shards.decode import DecodeError, matrix_and_range

_JPEG_QUALITY = 90
# Weights of red and blue in luma (ITU-T H.273, table 4). JPEG has those of BT.601.
_WEIGHTS = {
    Colorspace.ITU601: (0.299, 0.114),
    Colorspace.ITU709: (0.2126, 0.0722),
    Colorspace.FCC: (0.30, 0.11),
    Colorspace.SMPTE240M: (0.212, 0.087),
    Colorspace.BT2020: (0.2627, 0.0593),
}
# Video range to full range: luma 16–235, chroma 16–240 around 128.
_LEVELS = np.arange(256)
_LUMA = np.clip(np.round((_LEVELS - 16) * (255 / 219)), 0, 255).astype(np.uint8)
_CHROMA = np.clip(np.round((_LEVELS - 128) * (255 / 224)) + 128, 0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class PacketSpan:
    """P consecutive packets of one rendition of a video in decoding order, from one or more chunks.

    Frames are numbered on the grid of the whole video, from its first frame, at the rendition's rate.
    """

    fps: int
    template: InputContainer  # one of the chunks, open: the source of stream parameters for every cut
    frame: np.ndarray  # (P,) int64: the grid frame of each packet
    is_key: np.ndarray  # (P,) bool
    is_anchor: np.ndarray  # (P,) bool: other frames reference it
    data: Sequence[bytes]  # (P,)


@dataclass(frozen=True, kw_only=True)
class ClipCut:
    """A clip cut out of a packet span."""

    mp4: bytes
    jpg: bytes
    first: int  # grid frame of the first stored frame
    frames: int  # number of stored frames


class CutError(ValueError):
    """Chunks whose content does not match their sidecars."""


def read_packet_span(chunks: Sequence[tuple[Path, int]], *, fps: int, first: int, stop: int) -> PacketSpan:
    """Return the packets needed for grid frames `first … stop − 1` of a video, read from its chunks.

    `chunks` are consecutive pairs of (file, grid frame of its first frame); each file starts with a key frame. Raises
    `CutError` where the chunks cannot be joined.
    """
    packets: list[tuple[int, bool, bytes]] = []
    formats: set[tuple[int, int, bytes]] = set()
    for path, offset in chunks:
        with av.open(str(path)) as container:
            formats.add(_format(container))
            packets += _packets(container, fps=fps, offset=offset, first=first, stop=stop)
    if len(formats) != 1:
        raise CutError(f"{chunks[0][0].parent}: chunks cannot be joined, they differ in size or encoding parameters")
    return PacketSpan(
        fps=fps,
        template=av.open(str(chunks[0][0])),
        frame=np.array([frame for frame, _, _ in packets], np.int64),
        is_key=np.array([is_key for _, is_key, _ in packets], bool),
        is_anchor=np.array([_is_referenced(data) for _, _, data in packets], bool),
        data=[data for _, _, data in packets],
    )


def _format(container: InputContainer) -> tuple[int, int, bytes]:
    context = container.streams.video[0].codec_context
    return context.width, context.height, bytes(context.extradata or b"")


def _packets(
    container: InputContainer, *, fps: int, offset: int, first: int, stop: int
) -> Iterator[tuple[int, bool, bytes]]:
    """Yield (grid frame, is key frame, data) from the last key frame before `first` up to the first after `stop`."""
    stream = container.streams.video[0]
    assert stream.time_base is not None
    ticks = Fraction(1, fps) / stream.time_base
    container.seek(int(max(0, first - offset) * ticks), stream=stream, backward=True)
    for packet in container.demux(stream):
        if packet.pts is None:
            continue  # the empty packet at the end of a stream
        frame = offset + round(packet.pts / ticks)
        if packet.is_keyframe and frame >= stop:
            return
        yield frame, packet.is_keyframe, bytes(packet)


class Cutter:
    """Cuts clips out of one packet span; a context manager that closes the span's chunk."""

    def __init__(self, span: PacketSpan) -> None:
        self._span = span
        self._key_at = np.flatnonzero(span.is_key)
        self._stream = span.template.streams.video[0]
        self._decoder = av.CodecContext.create("h264", "r")
        self._decoder.extradata = self._stream.codec_context.extradata
        self._decoder.thread_count = 1

    def __enter__(self) -> Cutter:
        return self

    def __exit__(self, *_: object) -> None:
        self._span.template.close()

    def cut(self, first: int, stop: int) -> ClipCut:
        """Return the clip that holds grid frames `first … stop − 1`, extended to a key frame and an anchor.

        Raises `CutError` where the span does not hold these frames without a gap.
        """
        start, end = self._bounds(first, stop)
        shown = self._span.frame[start:end]
        begin = int(shown[0])
        if int(shown.max()) - begin + 1 != end - start or int(shown.min()) != begin:
            raise CutError(f"the packets of frames {first}–{stop - 1} are not consecutive")
        return ClipCut(
            mp4=self._mux(start, end),
            jpg=self._jpeg(start, end, (first + stop - 1) / 2),
            first=begin,
            frames=end - start,
        )

    def _bounds(self, first: int, stop: int) -> tuple[int, int]:
        """Return the range of packets (start, end) from key frame to anchor that the frames need."""
        s = self._span
        before = self._key_at[s.frame[self._key_at] <= first]
        if not len(before) or not len(s.frame):
            raise CutError(f"no key frame at or before frame {first}")
        start = int(before[-1])
        ends = np.flatnonzero(s.is_anchor & (s.frame >= stop - 1))
        ends = ends[ends >= start]
        if not len(ends):
            raise CutError(f"the chunk ends before frame {stop - 1}")
        anchor_frame = s.frame[ends[0]]
        return start, start + int(np.flatnonzero(s.frame[start:] <= anchor_frame)[-1]) + 1

    def _mux(self, start: int, end: int) -> bytes:
        """Return the packets as an MP4 whose first frame has PTS 0; the same packets give the same bytes."""
        s = self._span
        pts = s.frame[start:end] - s.frame[start]
        delay = int((np.arange(end - start) - pts).max())  # frames by which decoding precedes presentation
        buffer = io.BytesIO()
        step = Fraction(1, s.fps)
        with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream_from_template(self._stream)
            stream.time_base = step
            for i in range(end - start):
                packet = av.Packet(s.data[start + i])
                packet.pts, packet.dts, packet.duration = int(pts[i]), i - delay, 1
                packet.time_base = step
                packet.is_keyframe = bool(s.is_key[start + i])
                packet.stream = stream
                container.mux_one(packet)
        return buffer.getvalue()

    def _jpeg(self, start: int, end: int, middle: float) -> bytes:
        """Return the key frame nearest to grid frame `middle` as a JPEG of the same size."""
        s = self._span
        keys = self._key_at[(self._key_at >= start) & (self._key_at < end)]
        nearest = keys[np.abs(s.frame[keys] - middle).argmin()]
        decoded = [*self._decoder.decode(av.Packet(s.data[nearest])), *self._decoder.decode(None)]
        self._decoder.flush_buffers()
        if len(decoded) != 1 or not isinstance(decoded[0], av.VideoFrame):
            raise CutError(f"key frame {s.frame[nearest]} cannot be decoded by itself")
        return self._encode(decoded[0])

    def _encode(self, frame: av.VideoFrame) -> bytes:
        """Return a frame as a JPEG, which has no other matrix than that of BT.601 and no other range than the full one.

        Raises `CutError` for a pixel format or matrix that shards do not store.
        """
        if frame.format.name not in ("yuv420p", "yuvj420p"):
            raise CutError(f"the pixel format of the chunk is {frame.format.name}, not yuv420p")
        try:
            matrix, limits = matrix_and_range(frame)
        except DecodeError as error:
            raise CutError(str(error)) from None
        y, u, v = _full_range_planes(frame, limits)
        if matrix != Colorspace.ITU601:
            y, u, v = _in_bt601(y, u, v, matrix)
        jpg: bytes = simplejpeg.encode_jpeg_yuv_planes(y, u, v, quality=_JPEG_QUALITY)
        return jpg


def _in_bt601(
    y: np.ndarray, u: np.ndarray, v: np.ndarray, matrix: Colorspace
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return planes of full range (as of `_full_range_planes`) with another matrix converted to that of BT.601.

    Colour differences of one matrix are sums of those of another, without luma, so they need no other resolution.
    """
    (red, blue), (red_601, blue_601) = _WEIGHTS[matrix], _WEIGHTS[Colorspace.ITU601]
    b = 2 * (1 - blue) * (u.astype(np.float32) - 128)  # B − Y
    r = 2 * (1 - red) * (v.astype(np.float32) - 128)  # R − Y
    g = -(red * r + blue * b) / (1 - red - blue)  # G − Y
    more = red_601 * r + blue_601 * b + (1 - red_601 - blue_601) * g  # luma of BT.601 − Y
    luma = y + more.repeat(2, axis=0).repeat(2, axis=1)
    planes = luma, 128 + (b - more) / (2 * (1 - blue_601)), 128 + (r - more) / (2 * (1 - red_601))
    y, u, v = (np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in planes)
    return y, u, v


def _full_range_planes(frame: av.VideoFrame, limits: ColorRange) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the planes of a 4:2:0 frame of range `limits` in full range: Y (H, W), U and V (H/2, W/2), uint8."""
    height, width = frame.height, frame.width
    samples = frame.to_ndarray().reshape(-1)
    luma, chroma = np.split(samples, [height * width])
    if limits != ColorRange.JPEG:
        luma, chroma = _LUMA[luma], _CHROMA[chroma]
    u, v = chroma.reshape(2, height // 2, width // 2)
    return luma.reshape(height, width), u, v


def _is_referenced(packet: bytes) -> bool:
    """Return whether other frames reference an H.264 frame: `nal_ref_idc` of its first slice (ITU-T H.264, 7.4.1)."""
    at = 0
    while at + 4 < len(packet):
        header = packet[at + 4]
        if header & 0x1F in (1, 5):  # a slice of a non-IDR or of an IDR picture
            return bool(header & 0x60)
        at += 4 + int.from_bytes(packet[at : at + 4], "big")
    return True
