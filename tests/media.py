"""Creates small videos and images for tests, most of them with a number encoded in each frame.

A coded frame shows its number in 16 large black or white fields, which survive scaling and encoding.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

_BITS, _COLUMNS = 16, 8  # two rows of eight fields


def _x264_params(gop: int, b_frames: int) -> str:
    return f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes={b_frames}:b-adapt=0:b-pyramid=none"


BUILD_OPTIONS = {"preset": "superfast", "x264-params": _x264_params(16, 7), "threads": "1"}
"""Encoder options that give GOPs like those of the build."""


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


@lru_cache(maxsize=512)
def coded_mp4(
    first: int, frames: int, *, size: tuple[int, int] = (128, 128), fps: int = 30, gop: int = 16, b_frames: int = 7
) -> bytes:
    """Return an mp4 in GOPs like those of the build, whose frame i has the number `first + i`."""
    options = BUILD_OPTIONS | {"x264-params": _x264_params(gop, b_frames)}
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(coded_frame(first + index, *size), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sink.getvalue()


@lru_cache(maxsize=64)
def make_mp4(
    frames: int = 8,
    *,
    seed: int = 0,
    width: int = 64,
    height: int = 48,
    pix_fmt: str = "yuv420p",
    audio: bool = False,
    codec: str = "libx264",
    gap: bool = False,
    headless: bool = False,
) -> bytes:
    """Return an mp4 at 10 frames/s whose first frame is a key frame; see the parameters for ways to break it.

    `gap` skips a frame time after the fourth frame, `headless` drops the first packet.
    """
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"g": "4", "bf": "0", "threads": "1", "tune": "zerolatency"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        sound = container.add_stream("aac", rate=16000) if audio else None
        ramp = np.linspace(0, 200, width, dtype=np.uint8)
        for index in range(frames):
            pixels = np.tile(ramp[None, :, None], (height, 1, 3))
            pixels[:, (index * 5 + seed) % width] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = index + (gap and index > 3), Fraction(1, 10)
            packets = stream.encode(frame)
            container.mux(packets[headless and index == 0 :])
        container.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return sink.getvalue()


@lru_cache(maxsize=64)
def make_jpg(seed: int = 0, width: int = 64, height: int = 48) -> bytes:
    """Return a JPEG of one colour."""
    sink = io.BytesIO()
    colour = tuple(60 + (seed * part) % 160 for part in (37, 71, 113))
    Image.new("RGB", (width, height), colour).save(sink, "JPEG", quality=85)
    return sink.getvalue()
