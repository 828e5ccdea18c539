"""Creates the mp4s and JPEGs of samples for tests; `tests.preprocessing.coded_video` creates source videos."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from PIL import Image

from tests.preprocessing.coded_video import coded_frame


def _x264_params(gop: int, b_frames: int) -> str:
    return f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes={b_frames}:b-adapt=0:b-pyramid=none"


BUILD_OPTIONS = {"preset": "superfast", "x264-params": _x264_params(16, 7), "threads": "1"}
"""Encoder options that give GOPs like those of the build."""


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
    fps: int = 10,
) -> bytes:
    """Return an mp4 at `fps` frames/s whose first frame is a key frame; see the parameters for ways to break it.

    `gap` skips a frame time after the fourth frame, `headless` drops the first packet.
    """
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"g": "4", "bf": "0", "threads": "1", "tune": "zerolatency"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        sound = container.add_stream("aac", rate=16000) if audio else None
        ramp = np.linspace(0, 200, width, dtype=np.uint8)
        for index in range(frames):
            pixels = np.tile(ramp[None, :, None], (height, 1, 3))
            pixels[:, (index * 5 + seed) % width] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = index + (gap and index > 3), Fraction(1, fps)
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


@lru_cache(maxsize=512)
def key_frame_jpg(mp4: bytes, middle: float) -> bytes:
    """Return the key frame of an mp4 that is nearest to frame `middle` as a JPEG, as the build stores it."""
    with av.open(io.BytesIO(mp4)) as container:
        frames = {number: frame for number, frame in enumerate(container.decode(video=0)) if frame.key_frame}
        nearest = frames[min(frames, key=lambda number: abs(number - middle))]
        sink = io.BytesIO()
        nearest.to_image().save(sink, "JPEG", quality=85)
    return sink.getvalue()
