"""Stored pictures: upright, deinterlaced, cropped, of one colour space, whatever each source frame is like."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from preprocessing.video.picture import (
    Colour,
    Deinterlacer,
    Painter,
    StoredPicture,
    colour_of,
    display_matrix,
)
from tests.preprocessing.coded_video import coded_frame

EIGHT = {
    "upright": ((1, 0), (0, 1)),
    "mirrored": ((-1, 0), (0, 1)),
    "upside down": ((1, 0), (0, -1)),
    "half a turn": ((-1, 0), (0, -1)),
    "transposed": ((0, 1), (1, 0)),
    "a quarter clockwise": ((0, 1), (-1, 0)),
    "a quarter anticlockwise": ((0, -1), (1, 0)),
    "transposed along the other diagonal": ((0, -1), (-1, 0)),
}


def stored(width: int, height: int, **changes: object) -> StoredPicture:
    base = {"pixels": "yuv420p", "colour": Colour(matrix=6), "is_stereo": False}
    return StoredPicture(width=width, height=height, **{**base, **changes})  # type: ignore[arg-type]


def planes(data: bytes, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    samples = np.frombuffer(data, np.uint8)
    luma, chroma = np.split(samples, [width * height])
    u, v = chroma.reshape(2, height // 2, width // 2)
    return luma.reshape(height, width), u, v


class Turned:
    """A frame with a display matrix, which PyAV reads and cannot write."""

    def __init__(self, frame: av.VideoFrame, matrix: tuple[tuple[int, int], tuple[int, int]]) -> None:
        (a, b), (c, d) = matrix
        rows = np.array([[a << 16, b << 16, 0], [c << 16, d << 16, 0], [0, 0, 1 << 30]], np.int32)
        self.side_data = {"DISPLAYMATRIX": rows.tobytes()}
        self._frame = frame


@pytest.mark.parametrize("name", EIGHT)
def test_each_of_the_eight_matrices_is_read(name: str) -> None:
    frame = Turned(av.VideoFrame(32, 16, "yuv420p"), EIGHT[name])
    assert display_matrix(frame).tolist() == [list(row) for row in EIGHT[name]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pixels", "limits"),
    [("yuv420p", 1), ("yuvj420p", 2), ("yuv422p", 1), ("yuv444p", 2), ("yuv420p10le", 1), ("nv12", 1)],
)
@pytest.mark.parametrize("matrix", [1, 5, 6, 7, 9])
def test_matrix_and_values_are_kept_and_the_range_becomes_limited(pixels: str, limits: int, matrix: int) -> None:
    rgb = np.full((32, 48, 3), (200, 40, 90), np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format=pixels, dst_colorspace=matrix, dst_color_range=limits, src_color_range=2
    )
    frame.colorspace, frame.color_range = matrix, limits
    painted = Painter(stored(48, 32, colour=colour_of(frame))).paint(frame)
    made = av.VideoFrame.from_ndarray(np.frombuffer(painted, np.uint8).reshape(48, 48), "yuv420p")
    made.colorspace, made.color_range = matrix, 1
    back = made.reformat(format="rgb24", src_colorspace=matrix, src_color_range=1, dst_color_range=2).to_ndarray()
    assert np.abs(back.astype(int) - rgb).max() <= 4


def test_frames_of_changing_size_format_and_range_look_alike() -> None:
    painter = Painter(stored(64, 48, colour=Colour(matrix=1)))
    seen = []
    for size, pixels, limits in (((320, 240), "yuv420p", 1), ((160, 120), "yuvj420p", 2), ((640, 480), "yuv444p", 1),
                                 ((64, 48), "yuv422p10le", 1), ((320, 240), "yuv420p", 2)):  # fmt: skip
        rgb = coded_frame(0b1010_0110_0011_0101, *size)
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format=pixels, dst_colorspace=1, dst_color_range=limits, src_color_range=2
        )
        frame.colorspace, frame.color_range = 1, limits
        seen.append(planes(painter.paint(frame), 64, 48)[0].astype(int))
    for other in seen[1:]:
        assert (np.abs(other - seen[0]) > 40).mean() < 0.05  # edges of fields and the ripple differ with the size


def test_colours_of_rgb_become_bt601_and_hdr_is_named() -> None:
    assert colour_of(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")).matrix == 6
    assert [Colour(transfer=t).hdr for t in (1, 2, 16, 18)] == ["", "", "PQ", "HLG"]


@pytest.mark.parametrize("height", [240, 720, 1080])
def test_unspecified_colours_stay_unspecified_at_any_size(height: int) -> None:
    """libswscale, and with it ffmpeg, decord and torchcodec, reads them as BT.601, in sources as in stored clips."""
    rgb = np.full((height, 64, 3), (210, 30, 60), np.uint8)
    untagged = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p", dst_colorspace=5)
    untagged.colorspace = 2
    before = untagged.to_ndarray()
    colour = colour_of(untagged)
    assert colour.matrix == 2
    painted = Painter(stored(64, height, colour=colour)).paint(untagged)
    assert np.abs(np.frombuffer(painted, np.uint8).reshape(before.shape).astype(int) - before).max() <= 1
    as_ffmpeg_reads_it = untagged.reformat(format="rgb24").to_ndarray()
    assert np.abs(as_ffmpeg_reads_it.astype(int) - rgb).max() <= 4


def test_one_eye_is_the_left_half() -> None:
    both = np.concatenate([coded_frame(5, 64, 48), coded_frame(9, 64, 48)], axis=1)
    frame = av.VideoFrame.from_ndarray(both, format="rgb24").reformat(format="yuv420p")
    luma, _, _ = planes(Painter(stored(64, 48, is_stereo=True)).paint(frame), 64, 48)
    one = av.VideoFrame.from_ndarray(coded_frame(5, 64, 48), format="rgb24").reformat(format="yuv420p")
    assert np.abs(luma.astype(int) - one.to_ndarray()[:48]).mean() < 2


def test_progressive_frames_pass_the_deinterlacer_unchanged_and_in_order() -> None:
    deinterlacer, out = Deinterlacer(), []
    for n in range(12):
        size = (64, 48) if n < 6 else (32, 24)  # a change of size in between
        frame = av.VideoFrame.from_ndarray(coded_frame(n, *size), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = n, Fraction(1, 30)
        out += [(k, t, f.to_ndarray()) for k, t, f in deinterlacer.push(n, n / 30, frame)]
    out += [(k, t, f.to_ndarray()) for k, t, f in deinterlacer.push(-1, float("nan"), None)]
    assert [(k, t) for k, t, _ in out] == [(n, n / 30) for n in range(12)]
    for n, _, picture in out:
        size = (64, 48) if n < 6 else (32, 24)
        whole = av.VideoFrame.from_ndarray(coded_frame(n, *size), format="rgb24").reformat(format="yuv420p")
        assert np.array_equal(picture, whole.to_ndarray())


def test_names_of_matrices_are_those_of_the_scaler() -> None:
    assert (int(Colorspace.ITU709), int(Colorspace.ITU601), int(Colorspace.SMPTE240M)) == (1, 5, 7)
    assert (int(ColorRange.MPEG), int(ColorRange.JPEG)) == (1, 2)
