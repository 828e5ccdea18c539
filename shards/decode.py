"""Decodes selected frames of an mp4 to uint8 RGB, cropped and scaled to the training size, in one thread.

Three decoders share the interface `Decoder`. `pyav` decodes only the packets that the wanted frames depend on, and
crops, scales and converts them in one pass; `decord` and `torchcodec` use their own readers and the same scaler.

Shapes in names: N frames, H and W pixels (both `size`), C red, green, blue.
"""

from __future__ import annotations

import importlib
import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast

import av
import av.logging
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import Interpolation, VideoReformatter

from shards.mp4 import Mp4Error, read_packets
from shards.sampling import Crop

DecoderName = Literal["pyav", "decord", "torchcodec"]
MAX_PIXELS = 1 << 26  # per frame; larger frames are not decoded
_MAX_CONTEXTS = 8  # codec contexts kept open, one for each encoding (extradata)
# BITEXACT, since swscale's results would otherwise depend on the processor.
_SCALER = Interpolation.BILINEAR | Interpolation.BITEXACT


class DecodeError(ValueError):
    """A clip whose wanted frames cannot be decoded; `reason` is a short code, equal for all failures of one kind."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Decoder(Protocol):
    """A decoder of clips, which must be used in the process and thread that opened it.

    decoder = open_decoder("pyav")
    crop = centre_crop(record.width, record.height)
    frames_NHWC = decoder.decode(mp4, np.array([0, 8, 16]), [crop] * 3, 224)
    """

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """Return the stored frames numbered `frames`, (N,), as frames_NHWC, uint8 RGB; numbers may repeat.

        Frame i is cropped to `crops[i]` and scaled to `size` × `size` pixels. Raises `DecodeError` if any of them is
        damaged or missing; a frame is never replaced by a black or another frame.
        """
        ...


def open_decoder(name: DecoderName) -> Decoder:
    """Return a decoder; raise `ImportError`, naming the package to install, if it is missing."""
    return _DECODERS[name]()


class PyAVDecoder:
    """Decodes with libavcodec, and only the packets that the wanted frames depend on."""

    def __init__(self) -> None:
        av.logging.set_level(None)  # errors are raised here with the sample's key; libav's messages have none
        self._contexts: OrderedDict[bytes, VideoCodecContext] = OrderedDict()
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""
        try:
            table = read_packets(mp4)
        except Mp4Error as error:
            raise DecodeError("not an mp4", str(error)) from None
        if len(frames) == 0 or frames.min() < 0 or frames.max() >= len(table.frame_P):
            raise DecodeError("frames missing", f"frames {frames.tolist()}, but {len(table.frame_P)} are stored")
        wanted: dict[int, list[int]] = {}
        for index, number in enumerate(frames.tolist()):
            wanted.setdefault(number, []).append(index)
        out_NHWC = np.empty((len(frames), size, size, 3), np.uint8)

        def take(decoded: list[av.VideoFrame]) -> None:
            for frame in decoded:
                for index in wanted.pop(int(frame.pts), ()) if frame.pts is not None else ():
                    if frame.is_corrupt:
                        raise DecodeError("damaged", f"frame {frame.pts} is corrupt")
                    out_NHWC[index] = self._scaler.from_video(frame, crops[index], size)

        context = self._context(table.extradata)
        try:
            for number in table.needed(mp4, frames):
                start = int(table.offset_P[number])
                packet = av.Packet(mp4[start : start + int(table.size_P[number])])
                packet.pts = int(table.frame_P[number])
                take(context.decode(packet))
            take(context.decode(None))
            context.flush_buffers()
        except (av.FFmpegError, EOFError, ValueError) as error:
            self._contexts.clear()  # no state of a damaged clip may reach the next one
            raise error if isinstance(error, DecodeError) else DecodeError("damaged", str(error)) from None
        if wanted:
            raise DecodeError("frames missing", f"the decoder did not return frames {sorted(wanted)}")
        return out_NHWC

    def _context(self, extradata: bytes) -> VideoCodecContext:
        context = self._contexts.pop(extradata, None)
        if context is None:
            context = av.CodecContext.create("h264", "r")
            context.extradata = extradata
            context.thread_count = 1
            context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
            while len(self._contexts) >= _MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts[extradata] = context
        return context


class DecordDecoder:
    """Decodes with decord (distribution `decord2`), which fails on frames narrower than 128 pixels."""

    def __init__(self) -> None:
        try:
            import decord
        except ImportError as error:
            raise ImportError("decoder = decord: needs the package decord2 (pip install decord2)") from error
        decord.logging.set_level(decord.logging.QUIET)
        self._decord = decord
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""

        def read(numbers: list[int]) -> np.ndarray:
            reader = self._decord.VideoReader(io.BytesIO(mp4), num_threads=1)
            return np.asarray(reader.get_batch(numbers).asnumpy())

        errors = (self._decord.DECORDError, RuntimeError, IndexError, EOFError)
        return _from_whole_frames(read, errors, self._scaler, frames, crops, size)


class TorchcodecDecoder:
    """Decodes with torchcodec, which needs torch and shared FFmpeg libraries."""

    def __init__(self) -> None:
        try:
            decoders = importlib.import_module("torchcodec.decoders")
        except (ImportError, RuntimeError, OSError) as error:
            raise ImportError(f"decoder = torchcodec: cannot load it or FFmpeg's libraries: {error}") from error
        self._open = decoders.VideoDecoder
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""

        def read(numbers: list[int]) -> np.ndarray:
            decoder = self._open(mp4, dimension_order="NHWC", num_ffmpeg_threads=1)
            return np.asarray(decoder.get_frames_at(indices=numbers).data)

        return _from_whole_frames(read, (RuntimeError, ValueError, IndexError), self._scaler, frames, crops, size)


_DECODERS: dict[str, Callable[[], Decoder]] = {
    "pyav": PyAVDecoder,
    "decord": DecordDecoder,
    "torchcodec": TorchcodecDecoder,
}


def _from_whole_frames(
    read: Callable[[list[int]], np.ndarray],
    errors: tuple[type[Exception], ...],
    scaler: _Scaler,
    frames: np.ndarray,
    crops: Sequence[Crop],
    size: int,
) -> np.ndarray:
    """Implement `Decoder.decode` with a reader of whole RGB frames, which is asked for each frame once, in order."""
    numbers, place = np.unique(frames, return_inverse=True)
    try:
        whole_MHWC = read(numbers.tolist())
    except errors as error:
        raise DecodeError("damaged", str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if len(whole_MHWC) != len(numbers):
        raise DecodeError("frames missing", f"the decoder returned {len(whole_MHWC)} of {len(numbers)} frames")
    out_NHWC = np.empty((len(frames), size, size, 3), np.uint8)
    for index, crop in enumerate(crops):
        out_NHWC[index] = scaler.from_rgb(whole_MHWC[place[index]], crop, size)
    return out_NHWC


class _Scaler:
    """Crops, scales and converts to RGB in one pass of swscale, whose tables are reused from call to call."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def from_video(self, frame: av.VideoFrame, crop: Crop, size: int) -> np.ndarray:
        """Return the crop of a decoded 4:2:0 frame as (size, size, 3) RGB."""
        if frame.format.name != "yuv420p":
            raise DecodeError("not yuv420p", f"the pixel format is {frame.format.name}")
        _require_inside(crop, frame.width, frame.height)
        h, w = crop.height, crop.width
        if (h, w) != (frame.height, frame.width):
            uncropped, frame = frame, av.VideoFrame(w, h, "yuv420p")
            for source, target, step in zip(uncropped.planes, frame.planes, (1, 2, 2), strict=True):
                top, left, rows, columns = crop.top // step, crop.left // step, h // step, w // step
                _pixels(target)[:rows, :columns] = _pixels(source)[top : top + rows, left : left + columns]
        return self._scale(frame, crop, size)

    def from_rgb(self, frame_HWC: np.ndarray, crop: Crop, size: int) -> np.ndarray:
        """Return the crop of an RGB frame as (size, size, 3) RGB."""
        _require_inside(crop, frame_HWC.shape[1], frame_HWC.shape[0])
        part = frame_HWC[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return self._scale(av.VideoFrame.from_ndarray(np.ascontiguousarray(part), "rgb24"), crop, size)

    def _scale(self, frame: av.VideoFrame, crop: Crop, size: int) -> np.ndarray:
        scaled = self._reformatter.reformat(
            frame, width=size, height=size, format="rgb24", interpolation=_SCALER, threads=1
        )
        pixels_HWC = _pixels(scaled.planes[0])[:, : size * 3].reshape(size, size, 3)
        return pixels_HWC[:, ::-1] if crop.flip else pixels_HWC


def _pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """Return a view of a plane as rows of bytes, including their padding."""
    return np.frombuffer(cast(memoryview, plane), np.uint8).reshape(-1, plane.line_size)


def _require_inside(crop: Crop, width: int, height: int) -> None:
    if crop.left + crop.width > width or crop.top + crop.height > height:
        raise DecodeError("size differs", f"frames of {width}×{height} pixels do not contain {crop}")
