"""Cuts clips out of chunks at key frames by copying packets: no frame is decoded but the one that becomes the JPEG.

A cut starts at the last key frame at or before the clip and ends with the anchor (the I- or P-frame) at or after its
last frame, so that every stored frame is exactly the frame of the grid that its place says.
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
from av.video.reformatter import Interpolation, VideoReformatter

_JPEG_QUALITY = 90
# Without the last two, swscale's result depends on the processor.
_TO_RGB = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

# Colour matrices that are BT.601's, among them "not said", which every reader takes for it (ITU-T H.273, table 4).
_BT601 = (2, 5, 6)
# Video range to full range: luma 16–235, chroma 16–240 around 128.
_LEVELS = np.arange(256)
_LUMA = np.clip(np.round((_LEVELS - 16) * (255 / 219)), 0, 255).astype(np.uint8)
_CHROMA = np.clip(np.round((_LEVELS - 128) * (255 / 224)) + 128, 0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class PacketSpan:
    """Consecutive packets of one rendition of one video, in decoding order, possibly from several chunks.

    `frame` counts on the grid of the whole video, from its first frame, at the rendition's rate.
    """

    fps: int
    template: InputContainer  # one of the chunks, open: its stream's parameters are those of every cut
    frame: np.ndarray  # (P,) int64: the frame each packet shows
    is_key: np.ndarray  # (P,) bool
    is_anchor: np.ndarray  # (P,) bool: other frames refer to it
    data: Sequence[bytes]  # (P,)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A clip cut out of a stretch, and where it stands on the video's grid of frames."""

    mp4: bytes
    jpg: bytes
    first: int  # grid frame of stored frame 0
    frames: int  # stored frames


class CutError(ValueError):
    """Chunks that do not hold what their sidecars promise."""


def read_packet_span(chunks: Sequence[tuple[Path, int]], *, fps: int, first: int, stop: int) -> PacketSpan:
    """Return the packets that frames `first … stop − 1` of a video need, read from its chunks.

    `chunks` are (file, grid frame at which it starts), consecutive; each starts with a key frame. Raises `CutError`
    where the chunks cannot be joined.
    """
    packets: list[tuple[int, bool, bytes]] = []
    formats: set[tuple[int, int, bytes]] = set()
    for path, offset in chunks:
        with av.open(str(path)) as container:
            formats.add(_format(container))
            packets += _packets(container, fps=fps, offset=offset, first=first, stop=stop)
    if len(formats) != 1:
        raise CutError(f"{chunks[0][0].parent}: its chunks differ in size or encoding, they cannot be joined")
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
    """Yield (grid frame, is a key frame, data) from the last key frame before `first` to the first after `stop`."""
    stream = container.streams.video[0]
    assert stream.time_base is not None
    ticks = Fraction(1, fps) / stream.time_base
    container.seek(int(max(0, first - offset) * ticks), stream=stream, backward=True)
    for packet in container.demux(stream):
        if packet.pts is None:
            continue  # the empty packet that ends a stream
        frame = offset + round(packet.pts / ticks)
        if packet.is_keyframe and frame >= stop:
            return
        yield frame, packet.is_keyframe, bytes(packet)


class Cutter:
    """Cuts clips out of one stretch; a context manager, since it holds a decoder and an open chunk."""

    def __init__(self, stretch: PacketSpan) -> None:
        self._stretch = stretch
        self._key_at = np.flatnonzero(stretch.is_key)
        self._stream = stretch.template.streams.video[0]
        self._decoder = av.CodecContext.create("h264", "r")
        self._decoder.extradata = self._stream.codec_context.extradata
        self._decoder.thread_count = 1
        self._reformatter = VideoReformatter()

    def __enter__(self) -> Cutter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stretch.template.close()

    def cut(self, first: int, stop: int) -> Cut:
        """Return the clip of grid frames `first … stop − 1`, with what the cut at key frames adds around them."""
        start, end = self._bounds(first, stop)
        shown = self._stretch.frame[start:end]
        begin = int(shown[0])
        if int(shown.max()) - begin + 1 != end - start or int(shown.min()) != begin:
            raise CutError(f"frames {first}–{stop - 1} do not stand in an unbroken row of packets")
        return Cut(
            mp4=self._mux(start, end),
            jpg=self._jpeg(start, end, (first + stop - 1) / 2),
            first=begin,
            frames=end - start,
        )

    def _bounds(self, first: int, stop: int) -> tuple[int, int]:
        """Return the run of packets (start, end) that the frames need: key frame to anchor."""
        s = self._stretch
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
        """Return the packets as an mp4 whose first frame is at time 0; the same bytes for the same packets."""
        s = self._stretch
        pts = s.frame[start:end] - s.frame[start]
        delay = int((np.arange(end - start) - pts).max())  # frames that decoding runs ahead of showing
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
        """Return the key frame nearest to grid position `middle` as a JPEG of the stored size."""
        s = self._stretch
        keys = self._key_at[(self._key_at >= start) & (self._key_at < end)]
        nearest = keys[np.abs(s.frame[keys] - middle).argmin()]
        decoded = [*self._decoder.decode(av.Packet(s.data[nearest])), *self._decoder.decode(None)]
        self._decoder.flush_buffers()
        if len(decoded) != 1 or not isinstance(decoded[0], av.VideoFrame):
            raise CutError(f"key frame {s.frame[nearest]} does not decode on its own")
        return self._encode(decoded[0])

    def _encode(self, frame: av.VideoFrame) -> bytes:
        """Return a frame as a JPEG. JPEG's colours are BT.601's: planes that are so already are only stretched."""
        if frame.colorspace in _BT601:
            y, u, v = _full_range_planes(frame)
            return simplejpeg.encode_jpeg_yuv_planes(y, u, v, quality=_JPEG_QUALITY)
        rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=_TO_RGB).to_ndarray()
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(rgb), quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
        )


def _full_range_planes(frame: av.VideoFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the planes of a 4:2:0 frame, (H, W) and twice (H/2, W/2) uint8, from video range to JPEG's 0–255."""
    height, width = frame.height, frame.width
    samples = frame.to_ndarray().reshape(-1)
    luma, chroma = np.split(samples, [height * width])
    u, v = _CHROMA[chroma].reshape(2, height // 2, width // 2)
    return _LUMA[luma].reshape(height, width), u, v


def _is_referenced(packet: bytes) -> bool:
    """Return whether other frames refer to an H.264 frame: `nal_ref_idc` of its first slice (ITU-T H.264, 7.4.1)."""
    at = 0
    while at + 4 < len(packet):
        header = packet[at + 4]
        if header & 0x1F in (1, 5):  # a slice of a non-IDR or of an IDR picture
            return bool(header & 0x60)
        at += 4 + int.from_bytes(packet[at : at + 4], "big")
    return True
