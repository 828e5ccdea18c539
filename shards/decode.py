"""Decodes selected frames of an mp4 to uint8 RGB, cropped and scaled to the training size, in one thread.

Three decoders share the interface `Decoder`. `pyav` decodes only the packets that the wanted frames depend on, and
crops, scales and converts them in one pass; `decord` and `torchcodec` use their own readers and the same scaler. All
three refuse the same files: those whose frames they would number, turn or colour differently.

Shapes in names: N frames, H and W pixels (both `size`), C red, green, blue.
"""

from __future__ import annotations

import importlib
import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, Protocol, cast

import av
import av.logging
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from shards.mp4 import Encoding, Mp4Error, PacketTable, UnsupportedMp4Error, read_packets
from shards.sampling import Crop

DecoderName = Literal["pyav", "decord", "torchcodec"]
MAX_PIXELS = 1 << 26  # per frame; larger frames are not decoded
_MAX_CONTEXTS = 8  # codec contexts kept open, one for each encoding
# BITEXACT, since swscale's results would otherwise depend on the processor. FULL_CHR_H_INT, since it would otherwise
# compute colours for pairs of pixels and round them down; it does not without ACCURATE_RND where nothing is scaled.
_SCALER = Interpolation.BILINEAR | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_MAX_PIXEL_STRETCH = 1.05  # larger aspect ratios of pixels are not those that rounding a frame size gives

# Matrix coefficients (ITU-T H.273, table 4) that swscale converts by a 3 × 3 matrix, and its names of them. What is
# unspecified is BT.601, as in libswscale, decord and torchcodec.
_MATRICES = {
    1: Colorspace.ITU709,
    2: Colorspace.ITU601,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
_UNSPECIFIED = 2  # matrix coefficients


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


def matrix_and_range(frame: av.VideoFrame) -> tuple[Colorspace, ColorRange]:
    """Return the matrix and range of a YCbCr frame: BT.601 where the matrix, limited where the range is unspecified.

    Raises `DecodeError` for matrix coefficients that no matrix inverts (YCgCo, ICtCp, constant luminance) or that
    depend on the primaries.
    """
    matrix = _MATRICES.get(int(frame.colorspace))
    if matrix is None:
        named = f"matrix coefficients {int(frame.colorspace)} of ITU-T H.273"
        raise DecodeError("colour", f"{named} are not supported; convert the video to BT.709 (matrix coefficients 1)")
    is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return matrix, ColorRange.JPEG if is_full else ColorRange.MPEG


def open_decoder(name: DecoderName) -> Decoder:
    """Return a decoder; raise `ImportError`, naming the package to install, if it is missing."""
    return _DECODERS[name]()


class PyAVDecoder:
    """Decodes with libavcodec, and only the packets that the wanted frames depend on."""

    def __init__(self) -> None:
        av.logging.set_level(None)  # errors are raised here with the sample's key; libav's messages have none
        self._contexts = _Contexts(unaligned=True)
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""
        table = _read_table(mp4)
        if len(frames) == 0 or frames.min() < 0 or frames.max() >= len(table.frame_P):
            raise DecodeError("frames missing", f"frames {frames.tolist()}, but {len(table.frame_P)} are stored")
        wanted: dict[int, list[int]] = {}
        for index, number in enumerate(frames.tolist()):
            wanted.setdefault(number, []).append(index)
        out_NHWC = np.empty((len(frames), size, size, 3), np.uint8)
        shown = -1
        self._scaler.new_clip()

        def take(number: int, frame: av.VideoFrame, context: VideoCodecContext) -> None:
            nonlocal shown
            if number <= shown:
                raise DecodeError("damaged", f"frame {number} follows frame {shown}: its time is wrong")
            shown = number
            if frame.key_frame or number in wanted:  # a turn may be stated for key frames only
                _require_as_described(frame, context, table.encoding)
            for index in wanted.pop(number, ()):
                out_NHWC[index] = self._scaler.from_video(frame, crops[index], size)

        self._contexts.decode(mp4, table, lambda: table.needed(mp4, frames), take)
        if wanted:
            raise DecodeError("frames missing", f"the decoder did not return frames {sorted(wanted)}")
        return out_NHWC


class _Contexts:
    """Decodes packets with codec contexts that stay open from clip to clip, one for each encoding.

    Without `unaligned`, libavcodec cuts off less than the stream says where a row would not start at an aligned
    address. `decord` and `torchcodec` decode this way.
    """

    def __init__(self, *, unaligned: bool) -> None:
        self._flags = "+unaligned" if unaligned else "+bitexact"
        self._contexts: OrderedDict[Encoding, VideoCodecContext] = OrderedDict()

    def decode(
        self,
        mp4: bytes,
        table: PacketTable,
        numbers: Callable[[], Sequence[int]],
        take: Callable[[int, av.VideoFrame, VideoCodecContext], None],
    ) -> None:
        """Decode the packets `numbers()` of `table`; call `take` with number, frame and context, in order.

        Raises `DecodeError` for damage.
        """
        context = self._open(table.encoding)
        try:
            for packet in [*(_packet(mp4, table, number) for number in numbers()), None]:
                for frame in context.decode(packet):
                    if frame.pts is None or frame.is_corrupt:
                        raise DecodeError("damaged", f"frame {frame.pts} is corrupt")
                    take(int(frame.pts), frame, context)
            context.flush_buffers()
        except (av.FFmpegError, EOFError, ValueError) as error:
            self._contexts.clear()  # no state of a damaged clip may reach the next one
            raise error if isinstance(error, DecodeError) else DecodeError("damaged", str(error)) from None

    def _open(self, encoding: Encoding) -> VideoCodecContext:
        context = self._contexts.pop(encoding, None)
        if context is None:
            context = av.CodecContext.create("h264", "r")
            context.extradata = encoding.extradata
            context.thread_count = 1
            if (colour := encoding.colour) is not None:  # which the stream's own statement replaces, as in libavformat
                context.colorspace = colour.matrix
                context.color_range = ColorRange.UNSPECIFIED if colour.full_range is None else 1 + colour.full_range
            # A stream may not claim frames much larger than the mp4 says; 64: what it may cut off at each border.
            pixels = min(MAX_PIXELS, (encoding.width + 64) * (encoding.height + 64))
            # strict: frames come in order even where the stream does not say by how much decoding precedes them
            options = {"err_detect": "explode", "max_pixels": str(pixels), "flags": self._flags, "strict": "strict"}
            context.options = options
            while len(self._contexts) >= _MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts[encoding] = context
        return context


def _read_table(mp4: bytes) -> PacketTable:
    try:
        return read_packets(mp4)
    except UnsupportedMp4Error as error:
        raise DecodeError("unsupported mp4", str(error)) from None
    except Mp4Error as error:
        raise DecodeError("not an mp4", str(error)) from None


def _packet(mp4: bytes, table: PacketTable, number: int) -> av.Packet[Stream]:
    start = int(table.offset_P[number])
    packet = av.Packet(mp4[start : start + int(table.size_P[number])])
    packet.pts = int(table.frame_P[number])
    return packet


def _require_as_described(frame: av.VideoFrame, context: VideoCodecContext, encoding: Encoding) -> None:
    """Raise `DecodeError` if size, colours, rotation or shape of pixels are not what all decoders read alike."""
    if (frame.width, frame.height) != (encoding.width, encoding.height):
        found = f"{frame.width}×{frame.height} pixels; the mp4 says {encoding.width}×{encoding.height}"
        raise DecodeError("size differs", f"frame {frame.pts} has {found}")
    matrix, limits = matrix_and_range(frame)
    if (colour := encoding.colour) is not None:
        is_other_matrix = colour.matrix != _UNSPECIFIED and _MATRICES.get(colour.matrix) != matrix
        if is_other_matrix or (colour.full_range is not None and colour.full_range != (limits == ColorRange.JPEG)):
            found = f"matrix {int(frame.colorspace)}, {limits.name}"
            raise DecodeError("colour", f"the stream says {found}, the mp4's colr box {colour}: one must be corrected")
    if SideData.DISPLAYMATRIX in frame.side_data:
        raise DecodeError("rotated", "the stream says that frames are to be turned; encode it again, upright")
    aspects = [aspect for aspect in (context.sample_aspect_ratio, encoding.pixel_aspect) if aspect]
    if any(not 1 / _MAX_PIXEL_STRETCH <= Fraction(aspect) <= _MAX_PIXEL_STRETCH for aspect in aspects):
        raise DecodeError("pixels not square", f"width / height of a pixel is {aspects[0]}; scale to square pixels")


class DecordDecoder:
    """Decodes with decord (distribution `decord2`), which fails on frames narrower than 128 pixels."""

    def __init__(self) -> None:
        try:
            import decord
        except ImportError as error:
            raise ImportError("decoder = decord: needs the package decord2 (pip install decord2)") from error
        decord.logging.set_level(decord.logging.QUIET)
        self._decord = decord
        self._check = _FirstFrameCheck()
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""

        def read(numbers: list[int]) -> np.ndarray:
            reader = self._decord.VideoReader(io.BytesIO(mp4), num_threads=1)
            return np.asarray(reader.get_batch(numbers).asnumpy())

        errors = (self._decord.DECORDError, RuntimeError, IndexError, EOFError)
        self._check(mp4)
        return _from_whole_frames(read, errors, self._scaler, frames, crops, size)


class TorchcodecDecoder:
    """Decodes with torchcodec, which needs torch and shared FFmpeg libraries."""

    def __init__(self) -> None:
        try:
            decoders = importlib.import_module("torchcodec.decoders")
        except (ImportError, RuntimeError, OSError) as error:
            raise ImportError(f"decoder = torchcodec: cannot load it or FFmpeg's libraries: {error}") from error
        self._open = decoders.VideoDecoder
        self._check = _FirstFrameCheck()
        self._scaler = _Scaler()

    def decode(self, mp4: bytes, frames: np.ndarray, crops: Sequence[Crop], size: int) -> np.ndarray:
        """See `Decoder.decode`."""

        def read(numbers: list[int]) -> np.ndarray:
            decoder = self._open(mp4, dimension_order="NHWC", num_ffmpeg_threads=1)
            return np.asarray(decoder.get_frames_at(indices=numbers).data)

        self._check(mp4)
        return _from_whole_frames(read, (RuntimeError, ValueError, IndexError), self._scaler, frames, crops, size)


_DECODERS: dict[str, Callable[[], Decoder]] = {
    "pyav": PyAVDecoder,
    "decord": DecordDecoder,
    "torchcodec": TorchcodecDecoder,
}


class _FirstFrameCheck:
    """Refuses what `PyAVDecoder` refuses, for decoders that say nothing of what they ignore: decodes one key frame."""

    def __init__(self) -> None:
        self._contexts = _Contexts(unaligned=False)

    def __call__(self, mp4: bytes) -> None:
        table = _read_table(mp4)

        def check(number: int, frame: av.VideoFrame, context: VideoCodecContext) -> None:
            _require_as_described(frame, context, table.encoding)

        self._contexts.decode(mp4, table, lambda: [0], check)


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
        self._blanks = VideoReformatter()
        self._blank: dict[tuple[object, ...], av.VideoFrame] = {}

    def new_clip(self) -> None:
        """Forget what was derived from the frames of the previous clip."""
        self._blank.clear()

    def from_video(self, frame: av.VideoFrame, crop: Crop, size: int) -> np.ndarray:
        """Return the crop of a decoded 4:2:0 frame as (size, size, 3) RGB."""
        if frame.format.name not in ("yuv420p", "yuvj420p"):
            raise DecodeError("not yuv420p", f"the pixel format is {frame.format.name}")
        _require_inside(crop, frame.width, frame.height)
        h, w = crop.height, crop.width
        matrix, limits = matrix_and_range(frame)
        if (h, w) != (frame.height, frame.width):
            uncropped, frame = frame, self._like(frame, w, h)
            for source, target, step in zip(uncropped.planes, frame.planes, (1, 2, 2), strict=True):
                top, left, rows, columns = crop.top // step, crop.left // step, h // step, w // step
                _pixels(target)[:rows, :columns] = _pixels(source)[top : top + rows, left : left + columns]
        return self._scale(frame, crop, size, src_colorspace=matrix, src_color_range=limits)

    def _like(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """Return a frame of another size with the properties of `frame`, whose pixels are undefined.

        A new `av.VideoFrame` has neither matrix nor range, position of the chroma samples nor interlacing, and not all
        of them can be set. Scaling copies them: to a crop in 0.06 ms, once for each clip.
        """
        key = (width, height, frame.format.name, frame.colorspace, frame.color_range, frame.interlaced_frame)
        blank = self._blank.get(key)
        if blank is None:
            blank = self._blanks.reformat(
                frame, width, height, frame.format.name, interpolation=Interpolation.POINT, threads=1
            )
            self._blank[key] = blank
        return blank

    def from_rgb(self, frame_HWC: np.ndarray, crop: Crop, size: int) -> np.ndarray:
        """Return the crop of an RGB frame as (size, size, 3) RGB."""
        _require_inside(crop, frame_HWC.shape[1], frame_HWC.shape[0])
        part = frame_HWC[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return self._scale(av.VideoFrame.from_ndarray(np.ascontiguousarray(part), "rgb24"), crop, size)

    def _scale(self, frame: av.VideoFrame, crop: Crop, size: int, **source: int) -> np.ndarray:
        scaled = self._reformatter.reformat(
            frame, width=size, height=size, format="rgb24", interpolation=_SCALER, threads=1, **source
        )
        pixels_HWC = _pixels(scaled.planes[0])[:, : size * 3].reshape(size, size, 3)
        return pixels_HWC[:, ::-1] if crop.flip else pixels_HWC


def _pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """Return a view of a plane as rows of bytes, including their padding."""
    return np.frombuffer(cast(memoryview, plane), np.uint8).reshape(-1, plane.line_size)


def _require_inside(crop: Crop, width: int, height: int) -> None:
    if crop.left + crop.width > width or crop.top + crop.height > height:
        raise DecodeError("size differs", f"frames of {width}×{height} pixels do not contain {crop}")
