"""Turns decoded frames into the planes of stored ones: deinterlaced, cropped, scaled, upright, of one colour space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

# Without the last two flags, the result of swscale depends on the processor.
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_DEINTERLACE = "mode=send_frame:deint=interlaced"  # one frame per frame; progressive frames pass unchanged
_RGB, _UNSPECIFIED, _SMPTE170M, _BT2020_NCL, _BT2020_CL = 0, 2, 6, 9, 10  # matrix coefficients, ITU-T H.273 table 4
_BT601 = 5  # what readers take unspecified coefficients for
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics, ITU-T H.273 table 3
_UPRIGHT = np.eye(2, dtype=np.int64)
_LIMITED, _FULL = 1, 2  # libav's colour ranges


@dataclass(frozen=True, kw_only=True)
class Colour:
    """The colour space of a video, in the numbers of ITU-T H.273."""

    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED
    matrix: int = _UNSPECIFIED

    @property
    def hdr(self) -> str:
        """The name of the HDR transfer function; empty for standard dynamic range."""
        return _HDR.get(self.transfer, "")


def colour_of(frame: av.VideoFrame) -> Colour:
    """Return the colour space in which a frame is stored; RGB becomes BT.601."""
    is_rgb = frame.colorspace == _RGB or frame.format.is_rgb or frame.format.has_palette
    return Colour(
        primaries=frame.color_primaries,
        transfer=frame.color_trc,
        matrix=_SMPTE170M if is_rgb else int(frame.colorspace),
    )


@dataclass(frozen=True, kw_only=True)
class StoredPicture:
    """The form of stored frames."""

    width: int  # px
    height: int  # px
    pixels: str  # libav's name: yuv420p, or yuv420p10le where HDR is tone-mapped afterwards
    colour: Colour
    is_stereo: bool  # only the left half of a source frame is stored


class Painter:
    """Turns decoded frames into stored ones, whatever size, format and colour each of them has."""

    def __init__(self, stored: StoredPicture) -> None:
        self._stored = stored
        self._reformatter = VideoReformatter()
        self._crop: _Graph | None = None

    def paint(self, frame: av.VideoFrame) -> bytes:
        """Return the planes of the stored frame, one row after another without padding, in limited range."""
        stored, matrix = self._stored, display_matrix(frame)
        is_turned = bool(matrix[0, 0] == 0)
        if stored.is_stereo and not is_turned:
            self._crop = self._crop or _Graph("crop", "iw/2:ih:0:0")
            (frame,) = self._crop.push(frame)
        height, width = (stored.width, stored.height) if is_turned else (stored.height, stored.width)
        source_is_full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
        scaled = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=stored.pixels,
            src_colorspace=_coefficients(int(frame.colorspace)),
            dst_colorspace=_coefficients(stored.colour.matrix),
            src_color_range=_FULL if source_is_full else _LIMITED,
            dst_color_range=_LIMITED,
            interpolation=_SCALER,
            threads=1,
        )
        planes = _planes(scaled, np.dtype(np.uint16 if "10le" in stored.pixels else np.uint8))
        if not np.array_equal(matrix, _UPRIGHT):
            planes = (_upright(plane, matrix) for plane in planes)
        return b"".join(plane.tobytes() for plane in planes)


def display_matrix(frame: av.VideoFrame) -> np.ndarray:
    """Return how a frame is turned or mirrored for display, (2, 2): one of the eight matrices of 0, 1 and −1."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _UPRIGHT
    rows = np.frombuffer(bytes(data)[:36], np.int32).astype(np.int64).reshape(3, 3)[:2, :2]
    is_turned = abs(rows[0, 1]) + abs(rows[1, 0]) > abs(rows[0, 0]) + abs(rows[1, 1])
    mask = np.array([[0, 1], [1, 0]]) if is_turned else _UPRIGHT
    signs: np.ndarray = np.where(rows < 0, -1, 1) * mask
    return signs


def _upright(plane: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return a plane (H, W) as `matrix` displays it: point (x, y) goes to (x, y) · matrix."""
    if matrix[0, 0] == 0:
        plane = plane.T
        right, down = matrix[1, 0], matrix[0, 1]
    else:
        right, down = matrix[0, 0], matrix[1, 1]
    return plane[:: int(down), :: int(right)]


def _planes(frame: av.VideoFrame, dtype: np.dtype[Any]) -> Iterable[np.ndarray]:
    """Yield the planes (H, W) of a frame, as views of its memory."""
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
        yield rows[: plane.height, : plane.width]


def _coefficients(matrix: int) -> int:
    """Return swscale's number of matrix coefficients; everything that it does not know is BT.601, as for readers."""
    if matrix in (_BT2020_NCL, _BT2020_CL):
        return _BT2020_NCL
    return matrix if matrix in (1, 4, 7) else _BT601


class Deinterlacer:
    """Deinterlaces the frames that their stream calls interlaced and passes on all others unchanged, in order."""

    def __init__(self) -> None:
        self._graph = _Graph("bwdif", _DEINTERLACE)
        self._numbers: dict[int, tuple[int, float]] = {}
        self._sent = 0

    def push(self, number: int, time: float, frame: av.VideoFrame | None) -> Iterator[tuple[int, float, av.VideoFrame]]:
        """Take a frame (None: there are no more); yield the number and time of each finished one, and the frame."""
        if frame is None:
            finished = self._graph.flush()
        else:
            self._numbers[self._sent] = (number, time)
            frame.pts, frame.time_base, self._sent = self._sent, Fraction(1), self._sent + 1
            finished = self._graph.push(frame)
        for out in finished:
            assert out.pts is not None and out.time_base is not None
            yield (*self._numbers.pop(round(out.pts * out.time_base)), out)


class _Graph:
    """One filter, set up again whenever the size or format of its frames changes."""

    def __init__(self, name: str, arguments: str) -> None:
        self._name, self._arguments = name, arguments
        self._format: tuple[int, int, str] | None = None
        self._graph: av.filter.Graph | None = None

    def push(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """Return the frames that come out for one that goes in."""
        form = (frame.width, frame.height, frame.format.name)
        finished = self.flush() if form != self._format else []
        if self._graph is None:
            self._graph = graph = av.filter.Graph()
            graph.threads = 1
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
            )
            middle, sink = graph.add(self._name, self._arguments), graph.add("buffersink")
            source.link_to(middle)
            middle.link_to(sink)
            graph.configure()
            self._format = form
        self._graph.vpush(frame)
        return [*finished, *self._pull()]

    def flush(self) -> list[av.VideoFrame]:
        """Return the frames that still wait for a successor, and take the filter down."""
        if self._graph is None:
            return []
        self._graph.vpush(None)
        finished = self._pull()
        self._graph = self._format = None
        return finished

    def _pull(self) -> list[av.VideoFrame]:
        assert self._graph is not None
        frames = []
        while True:
            try:
                frames.append(self._graph.vpull())
            except (av.BlockingIOError, av.EOFError):
                return frames
