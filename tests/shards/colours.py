"""Creates clips tagged with a matrix and a range, and computes their frames in floating point for tests of decoders."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np

from shards.sampling import Crop
from tests.media import BUILD_OPTIONS

BT709, UNSPECIFIED, FCC, BT470BG, SMPTE170M, SMPTE240M, BT2020 = 1, 2, 4, 5, 6, 7, 9  # ITU-T H.273, table 4
LIMITED, FULL = 1, 2  # libavutil's AVColorRange, of which 0 is unspecified
PATCH = 32  # px; a multiple of a JPEG's blocks
# Red and blue weights of luma.
_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    UNSPECIFIED: (0.299, 0.114),
    FCC: (0.30, 0.11),
    BT470BG: (0.299, 0.114),
    SMPTE170M: (0.299, 0.114),
    SMPTE240M: (0.212, 0.087),
    BT2020: (0.2627, 0.0593),
}

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]  # Y (H, W), U and V (H/2, W/2)


def patches(columns: int = 6, rows: int = 5) -> Planes:
    """Return a frame of flat patches of random colours, many of them saturated."""
    rng = np.random.default_rng(709)
    drawn = (rng.integers(low, high, (rows, columns)) for low, high in ((30, 226), (60, 197), (60, 197)))
    sizes = (PATCH, PATCH // 2, PATCH // 2)
    y, u, v = (np.kron(values, np.ones((side, side))) for values, side in zip(drawn, sizes, strict=True))
    return y.astype(np.uint8), u.astype(np.uint8), v.astype(np.uint8)


@lru_cache(maxsize=64)
def tagged_mp4(
    matrix: int, limits: int, *, noise: bool = False, frames: int = 3, quality: int = 1, fps: int = 30
) -> bytes:
    """Return an mp4 as the build stores it, of flat patches or of noise, whose stream has this matrix and range."""
    y, u, v = patches()
    sink = io.BytesIO()
    rng = np.random.default_rng(2020)
    with av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=BUILD_OPTIONS | {"crf": str(quality)})
        stream.width, stream.height, stream.pix_fmt = y.shape[1], y.shape[0], "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, limits
        for index in range(frames):
            drawn = [rng.integers(16, 236, plane.shape).astype(np.uint8) if noise else plane for plane in (y, u, v)]
            frame = to_frame((drawn[0], drawn[1], drawn[2]))
            frame.pts, frame.time_base = index, Fraction(1, fps)
            frame.colorspace, frame.color_range = matrix, limits
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sink.getvalue()


def to_frame(planes: Planes) -> av.VideoFrame:
    """Return planes as an untagged 4:2:0 frame."""
    height, width = planes[0].shape
    flat = np.concatenate([plane.reshape(-1) for plane in planes])
    return av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), "yuv420p")


def decoded_planes(mp4: bytes) -> list[Planes]:
    """Return the planes of all frames of an mp4 by libavformat and libavcodec alone."""
    with av.open(io.BytesIO(mp4)) as container:
        return [planes_of(frame) for frame in container.decode(video=0)]


def planes_of(frame: av.VideoFrame) -> Planes:
    """Return the planes of a 4:2:0 frame."""
    height, width = frame.height, frame.width
    luma, chroma = np.split(frame.to_ndarray().reshape(-1), [height * width])
    u, v = chroma.reshape(2, height // 2, width // 2)
    return luma.reshape(height, width), u, v


def crop_of(planes: Planes, crop: Crop) -> Planes:
    """Return the part of the planes within a crop."""
    parts = []
    for plane, step in zip(planes, (1, 2, 2), strict=True):
        top, left, height, width = (side // step for side in (crop.top, crop.left, crop.height, crop.width))
        parts.append(plane[top : top + height, left : left + width])
    return parts[0], parts[1], parts[2]


def expected_rgb(planes: Planes, crop: Crop, size: int | None, *, matrix: int, limits: int) -> np.ndarray:
    """Return the crop of a frame as RGB, (size, size, 3) in floating point, by the formulas of ITU-T H.273.

    Planes are scaled with a triangular filter that widens with the scale; chroma samples are at the left one of two
    luma samples, as H.264 has them unless it says otherwise. Without `size` it is as large as the crop.
    """
    y, u, v = crop_of(planes, crop)
    height, width = size or crop.height, size or crop.width
    y = _resize(y, height, width, shift=0.0)
    u, v = (_resize(plane, height, width, shift=0.25) for plane in (u, v))
    if limits == FULL:
        y, u, v = y / 255, (u - 128) / 255, (v - 128) / 255
    else:
        y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = _WEIGHTS[matrix]
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    rgb: np.ndarray = np.clip(255 * np.stack([r, g, b], axis=-1), 0, 255)
    return rgb[:, ::-1] if crop.flip else rgb


def _resize(plane: np.ndarray, height: int, width: int, *, shift: float) -> np.ndarray:
    """Return a plane of another size; `shift` (px of the plane) is added to the horizontal position."""
    down, across = _weights(plane.shape[0], height, 0.0), _weights(plane.shape[1], width, shift)
    return np.asarray(down @ plane.astype(float) @ across.T)


@lru_cache(maxsize=256)
def _weights(source: int, target: int, shift: float) -> np.ndarray:
    """Return the triangular filter as a matrix, (target, source)."""
    step = source / target
    reach = max(step, 1.0)
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * step - 0.5 + shift
        for column in range(int(np.floor(centre - reach)), int(np.ceil(centre + reach)) + 1):
            weight = max(0.0, 1 - abs(column - centre) / reach)
            weights[row, min(max(column, 0), source - 1)] += weight
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
