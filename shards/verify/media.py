"""Decodes a sample's picture and video to the last frame, and says in what they are not as the record says."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterator
from fractions import Fraction

import av
import av.logging
from PIL import Image, UnidentifiedImageError

from shards.schema import MediaRecord

MAX_PIXELS = 1 << 26  # of a frame; one that claims more is not decoded
_RATE_TOLERANCE = Fraction(1, 10**6)  # relative; the record's fps is a float


def jpg_problems(jpg: bytes, record: MediaRecord) -> Iterator[str]:
    """Yield what is wrong with a sample's key frame."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Only the one decoder: no other of Pillow's may be reached by what lies in a tar.
            with Image.open(io.BytesIO(jpg), formats=["JPEG"]) as image:
                if image.size != (record.width, record.height):
                    yield f"the picture is {_size(*image.size)}, the record says {_size(record.width, record.height)}"
                if image.width * image.height > MAX_PIXELS:
                    yield f"the picture claims {image.width * image.height} pixels; it was not decoded"
                    return
                image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombWarning) as error:
        yield f"the picture cannot be decoded: {error}"


def mp4_problems(mp4: bytes, record: MediaRecord) -> Iterator[str]:
    """Yield what is wrong with a sample's video: streams, format, size, rate, key frame, number of frames."""
    av.logging.set_level(None)  # damage is reported here, by key; libav's own lines name no file
    try:
        with av.open(io.BytesIO(mp4), "r", format="mp4") as container:
            streams = container.streams
            if [stream.type for stream in streams] != ["video"]:
                found = ", ".join(stream.type for stream in streams) or "none"
                yield f"the streams are {found}; one of video and no other is expected"
            if not streams.video:
                return
            yield from _video_problems(container, streams.video[0], record)
    except (av.FFmpegError, EOFError, ValueError) as error:
        yield f"the video cannot be decoded: {error}"


def _video_problems(
    container: av.container.InputContainer, stream: av.VideoStream, record: MediaRecord
) -> Iterator[str]:
    context = stream.codec_context
    if context.name != "h264" or context.pix_fmt != "yuv420p":
        yield f"the video is {context.name}, {context.pix_fmt}; h264, yuv420p is expected"
        if context.name != "h264":
            return
    if (context.width, context.height) != (record.width, record.height):
        expected = _size(record.width, record.height)
        yield f"the video is {_size(context.width, context.height)}, the record says {expected}"
    context.thread_count = 1
    context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
    packets = container.demux(stream)
    first = next(packets, None)
    if first is None or not first.is_keyframe:
        yield "the first frame is not a key frame"
    count, sizes, times = 0, set(), []
    for frame in (frame for packet in itertools.chain([first] if first else [], packets) for frame in packet.decode()):
        if count == 0 and not frame.key_frame:
            yield "the first frame that decodes is not a key frame"
        if frame.is_corrupt:
            yield f"frame {count} is corrupt"
        sizes.add((frame.width, frame.height))
        times.append(frame.pts)
        count += 1
        if count > record.num_frames:
            break  # the record decides how much work this is, and the rest would not change the verdict
    if count != record.num_frames:
        more = "more than " if count > record.num_frames else ""
        yield f"the video has {more}{min(count, record.num_frames)} frames, num_frames is {record.num_frames}"
    if len(sizes) > 1:
        yield f"the size changes within the video: {', '.join(_size(*size) for size in sorted(sizes))}"
    yield from _rate_problems(times, stream.time_base, record)


def _rate_problems(times: list[int | None], time_base: Fraction | None, record: MediaRecord) -> Iterator[str]:
    known = [time for time in times if time is not None]
    if len(known) != len(times) or time_base is None:
        yield "there are frames without a time"
        return
    steps = {after - before for before, after in itertools.pairwise(known)}
    if len(steps) > 1:
        seconds = ", ".join(f"{float(step * time_base):g}" for step in sorted(steps)[:4])
        yield f"the frame rate is not constant: steps of {seconds} s"
    elif steps:
        step = steps.pop() * time_base
        if step <= 0 or abs(1 / step - Fraction(record.fps)) > _RATE_TOLERANCE * Fraction(record.fps):
            rate = float(1 / step) if step > 0 else 0.0
            yield f"the frame rate is {rate:g}/s, the record says {record.fps:g}"


def _size(width: int, height: int) -> str:
    return f"{width}×{height}"
