"""A strip of black and white blocks at the bottom of a frame that encodes the frame number and the video number."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

FRAME_BITS = 14
VIDEO_BITS = 7
CHECK_BITS = 3
_BLOCKS = FRAME_BITS + VIDEO_BITS + CHECK_BITS
_STRIP = 12  # frame height / strip height


def draw(luma_HW: NDArray[np.uint8], chroma_HW: NDArray[np.uint8], frame: int, video: int) -> None:
    """Draw the code into an NV12 frame: luma (H, W), interleaved chroma (H/2, W), limited range."""
    height, width = luma_HW.shape
    strip = height // _STRIP // 2 * 2
    edges = np.linspace(0, width, _BLOCKS + 1).astype(int)
    row = np.repeat(np.where(_bits(frame, video), 235, 16).astype(np.uint8), np.diff(edges))
    luma_HW[height - strip :] = row
    chroma_HW[(height - strip) // 2 :] = 128


def read_frame_code(rgb_HWC: NDArray[np.uint8]) -> int:
    """Return the frame number, modulo 2¹⁴, encoded in a frame, which may be scaled and recompressed but not cropped.

    Raises `ValueError` where there is no valid code.
    """
    return _read(rgb_HWC)[0]


def read_video_code(rgb_HWC: NDArray[np.uint8]) -> int:
    """Return the video number, modulo 128, encoded in a frame; raise `ValueError` where there is no valid code."""
    return _read(rgb_HWC)[1]


def _bits(frame: int, video: int) -> NDArray[np.bool_]:
    frame, video = frame % (1 << FRAME_BITS), video % (1 << VIDEO_BITS)
    value = (frame << VIDEO_BITS | video) << CHECK_BITS | _check(frame, video)
    return (value >> np.arange(_BLOCKS - 1, -1, -1) & 1).astype(bool)


def _check(frame: int, video: int) -> int:
    # The offset makes all-black and all-white strips invalid.
    return (frame + frame // 7 + 3 * video + 5) % (1 << CHECK_BITS)


def _read(rgb_HWC: NDArray[np.uint8]) -> tuple[int, int]:
    height, width = rgb_HWC.shape[:2]
    top, bottom = height - 0.7 * height / _STRIP, height - 0.3 * height / _STRIP
    strip = rgb_HWC[int(top) : max(int(top) + 1, round(bottom))].astype(np.float32).mean(axis=(0, 2))
    edges = np.linspace(0, width, _BLOCKS + 1)
    middles = [
        strip[int(a + 0.25 * (b - a)) : max(int(a + 0.25 * (b - a)) + 1, round(b - 0.25 * (b - a)))]
        for a, b in itertools.pairwise(edges)
    ]
    levels = np.array([middle.mean() for middle in middles])
    value = int(sum(1 << i for i, bit in enumerate((levels > 127)[::-1]) if bit))
    frame, video = value >> (VIDEO_BITS + CHECK_BITS), value >> CHECK_BITS & ((1 << VIDEO_BITS) - 1)
    blurred = bool((np.abs(levels - 127) < 30).any())
    if blurred or value & ((1 << CHECK_BITS) - 1) != _check(frame, video):
        raise ValueError(f"no frame code at the bottom of this {width}x{height} frame: levels {levels.round()}")
    return frame, video
