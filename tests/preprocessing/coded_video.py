"""Creates videos in which each frame carries its number, and reads the numbers back.

A coded frame shows its number in 16 large black or white fields, which survive scaling and encoding.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_BITS, _COLUMNS = 16, 8  # two rows of eight fields


def coded_frame(number: int, width: int, height: int) -> np.ndarray:
    """Return a coded frame, (H, W, 3) uint8, whose background changes with the number, too."""
    bits = np.array([(number >> bit) & 1 for bit in range(_BITS)]).reshape(-1, _COLUMNS)
    rows = np.arange(height) * bits.shape[0] // height
    columns = np.arange(width) * _COLUMNS // width
    grey = np.where(bits[rows][:, columns], 215, 30)
    ripple = 12 * np.sin((np.arange(width) + 3 * number) / 9)[None, :]
    return np.repeat((grey + ripple)[..., None], 3, axis=2).astype(np.uint8)


def read_number(rgb: np.ndarray) -> int:
    """Return the number of a coded frame of any size."""
    height, width = rgb.shape[:2]
    rows = _BITS // _COLUMNS
    number = 0
    for bit in range(_BITS):
        row, column = divmod(bit, _COLUMNS)
        field = rgb[
            int((row + 0.25) * height / rows) : int((row + 0.75) * height / rows),
            int((column + 0.25) * width / _COLUMNS) : int((column + 0.75) * width / _COLUMNS),
        ]
        number |= int(field.mean() > 122) << bit
    return number


def write_video(
    path: Path,
    times: Iterable[float],
    *,
    size: tuple[int, int] = (320, 240),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 40,
    start: float = 0.0,
    rate: int = 30,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video with a coded frame at each of `times` (s) + `start`; the path's extension selects the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, 90_000)
    chosen = {"preset": "ultrafast", "bf": "2"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={**chosen, **(options or {})})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.time_base = stream.codec_context.time_base = base
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(coded_frame(number, *size), format="rgb24")
            frame.pts, frame.time_base = round((time + start) / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def steady(seconds: float, fps: float | Fraction = 30) -> list[float]:
    """Return the times (s) of frames at a constant rate."""
    return [float(i / Fraction(fps)) for i in range(round(seconds * fps))]


def numbers(mp4: str | Path | object) -> list[int]:
    """Return the numbers of a video's coded frames, in order."""
    with av.open(mp4 if not isinstance(mp4, Path) else str(mp4)) as container:
        return [read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
