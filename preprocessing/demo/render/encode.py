"""Encodes the frames of a script as H.264 in MP4, and damages the files of flawed videos."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from preprocessing.demo.config import DemoConfig
from preprocessing.demo.render.frames import Renderer
from preprocessing.demo.script import Flaw, VideoScript

# One thread, so that the bytes do not depend on the machine; B-frames, as in real recordings.
_X264 = {"preset": "ultrafast", "bf": "2", "crf": "22", "g": "48", "threads": "1"}


def make_video(config: DemoConfig, script: VideoScript, folder: Path) -> Path | None:
    """Write `<video_uid>.mp4` into `folder` and return its path; None for the video whose file is missing."""
    if script.flaw is Flaw.MISSING:
        return None
    path = folder / f"{script.video_uid}.mp4"
    stop = script.num_frames // 4 if script.flaw is Flaw.TRUNCATED else None  # saves time: the file is cut anyway
    _encode(config, script, path, stop)
    if script.flaw is Flaw.DAMAGED:
        damage(path, seed=script.index)
    elif script.flaw is Flaw.TRUNCATED:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def damage(path: Path, *, seed: int, start: float = 0.45, end: float = 0.55) -> None:
    """Overwrite the part from `start` to `end` (fractions) of an MP4 file's media data with noise."""
    data = bytearray(path.read_bytes())
    offset, size = _find_box(data, b"mdat")
    first, last = offset + int(size * start), offset + int(size * end)
    data[first:last] = np.random.default_rng(seed).bytes(last - first)
    path.write_bytes(data)


def _encode(config: DemoConfig, script: VideoScript, path: Path, stop: int | None) -> None:
    renderer = Renderer(script, config.width, config.height, with_frame_code=config.frame_code)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=script.fps, options=dict(_X264))
        stream.width, stream.height, stream.pix_fmt = config.width, config.height, "nv12"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for number, nv12 in enumerate(renderer.frames(stop)):
            frame = av.VideoFrame.from_ndarray(nv12, format="nv12")
            frame.pts = number
            frame.time_base = 1 / script.fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _find_box(data: bytes | bytearray, name: bytes) -> tuple[int, int]:
    """Return the offset and the size (bytes) of the content of a top-level MP4 box; raise `ValueError` without one."""
    at = 0
    while at + 8 <= len(data):
        size, header = int.from_bytes(data[at : at + 4]), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16]), 16
        if data[at + 4 : at + 8] == name:
            return at + header, size - header
        at += max(size, header)
    raise ValueError(f"no {name.decode()} box in an MP4 file of {len(data)} bytes")
