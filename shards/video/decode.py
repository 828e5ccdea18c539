"""Turns the bytes of a clip into uint8 RGB frames at training size: only what is wanted, in one thread.

Three decoders stand behind one interface (`Decoder`): `pyav` decodes only the packets that the wanted frames need and
crops, scales and converts in one pass; `decord` and `torchcodec` decode with their own readers and share the scaler.

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

from shards.sampling import Crop
from shards.video.mp4 import Mp4Error, read_packets

DecoderName = Literal["pyav", "decord", "torchcodec"]
MAX_PIXELS = 1 << 26  # of a frame; one that claims more is not decoded
_OPEN_CONTEXTS = 8  # decoders kept ready, one for each encoding that is met
# Without the last, swscale's result depends on the processor, and so would the batches.
_SCALER = Interpolation.BILINEAR | Interpolation.BITEXACT


class DecodeError(ValueError):
    """A clip that cannot give the wanted frames; `reason` is a short code, the same for all failures of a kind."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Decoder(Protocol):
    """What decodes clips; one belongs to one process and one thread, and is opened there."""

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """Return frames_NHWC, uint8 RGB, of the stored frames numbered `frames` (N,), which may repeat.

        Frame i is cut to `crops[i]` and scaled to `size` × `size` pixels. Raises `DecodeError`; a frame that is
        damaged or absent is an error, never a black or another frame.
        """
        ...


def open_decoder(name: DecoderName) -> Decoder:
    """Return a decoder; raise `ImportError` with what to install where its package is not here."""
    return _DECODERS[name]()


class PyAVDecoder:
    """Decodes with libavcodec only those packets that the wanted frames need."""

    def __init__(self) -> None:
        av.logging.set_level(None)  # damage is reported here, by key; libav's own lines name no sample
        self._contexts: OrderedDict[bytes, VideoCodecContext] = OrderedDict()
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""
        try:
            table = read_packets(mp4)
        except Mp4Error as error:
            raise DecodeError("not an mp4", str(error)) from None
        if len(frames) == 0 or frames.min() < 0 or frames.max() >= len(table.frame_P):
            raise DecodeError("frames missing", f"frames {frames.tolist()} of {len(table.frame_P)}")
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
            self._contexts.clear()  # nothing of a damaged clip may reach the next one
            raise error if isinstance(error, DecodeError) else DecodeError("damaged", str(error)) from None
        if wanted:
            raise DecodeError("frames missing", f"the decoder gave no frames {sorted(wanted)}")
        return out_NHWC

    def _context(self, extradata: bytes) -> VideoCodecContext:
        context = self._contexts.pop(extradata, None)
        if context is None:
            context = av.CodecContext.create("h264", "r")
            context.extradata = extradata
            context.thread_count = 1
            context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
            while len(self._contexts) >= _OPEN_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts[extradata] = context
        return context


class DecordDecoder:
    """Decodes with decord (the `decord2` distribution), which fails on frames of fewer than 128 pixels in width."""

    def __init__(self) -> None:
        try:
            import decord
        except ImportError as error:
            raise ImportError("decoder = decord: install the package decord2") from error
        decord.logging.set_level(decord.logging.QUIET)
        self._decord = decord
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""

        def read(numbers: list[int]) -> np.ndarray:
            return self._decord.VideoReader(io.BytesIO(mp4), num_threads=1).get_batch(numbers).asnumpy()

        errors = (self._decord.DECORDError, RuntimeError, IndexError, EOFError)
        return _from_whole_frames(read, errors, self._scaler, frames, crops, size)


class TorchcodecDecoder:
    """Decodes with torchcodec, which needs torch and the system's FFmpeg libraries."""

    def __init__(self) -> None:
        try:
            decoders = importlib.import_module("torchcodec.decoders")
        except (ImportError, RuntimeError, OSError) as error:
            raise ImportError(f"decoder = torchcodec: it or FFmpeg's libraries cannot be loaded: {error}") from error
        self._open = decoders.VideoDecoder
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""

        def read(numbers: list[int]) -> np.ndarray:
            decoder = self._open(mp4, dimension_order="NHWC", num_ffmpeg_threads=1)
            return decoder.get_frames_at(indices=numbers).data.numpy()

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
    """Return what `Decoder.decode` does from a reader of whole RGB frames; each is read once, in order."""
    numbers, place = np.unique(frames, return_inverse=True)
    try:
        whole_MHWC = read(numbers.tolist())
    except errors as error:
        raise DecodeError("damaged", str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if len(whole_MHWC) != len(numbers):
        raise DecodeError("frames missing", f"{len(whole_MHWC)} of {len(numbers)} frames came")
    out_NHWC = np.empty((len(frames), size, size, 3), np.uint8)
    for index, crop in enumerate(crops):
        out_NHWC[index] = scaler.from_rgb(whole_MHWC[place[index]], crop, size)
    return out_NHWC


class _Scaler:
    """Crops, scales and converts to RGB in one pass of swscale, which remembers its tables from call to call."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def from_video(self, frame: av.VideoFrame, crop: Crop, size: int) -> np.ndarray:
        """Return the crop of a decoded 4:2:0 frame as (size, size, 3) RGB."""
        if frame.format.name != "yuv420p":
            raise DecodeError("not yuv420p", f"the frames are {frame.format.name}")
        _require_inside(crop, frame.width, frame.height)
        h, w = crop.height, crop.width
        if (h, w) != (frame.height, frame.width):
            whole, frame = frame, av.VideoFrame(w, h, "yuv420p")
            for source, target, step in zip(whole.planes, frame.planes, (1, 2, 2), strict=True):
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
    """Return a plane's bytes as rows, padding included, without copying."""
    return np.frombuffer(cast(memoryview, plane), np.uint8).reshape(-1, plane.line_size)


def _require_inside(crop: Crop, width: int, height: int) -> None:
    if crop.left + crop.width > width or crop.top + crop.height > height:
        raise DecodeError("size differs", f"the frames are {width}×{height}, the record says otherwise")
