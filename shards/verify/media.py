"""Decodes a sample's image and all frames of its video, and compares them with its record."""

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

MAX_PIXELS = 1 << 26  # per frame; larger frames are not decoded
_RATE_TOLERANCE = Fraction(1, 10**6)  # relative, since the record's fps is a float


def jpg_problems(jpg: bytes, record: MediaRecord) -> Iterator[str]:
    """Yield problems of a sample's JPEG: damage, or a size other than the record's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # JPEG only, so that no file in a tar can reach another of Pillow's decoders.
            with Image.open(io.BytesIO(jpg), formats=["JPEG"]) as image:
                if image.size != (record.width, record.height):
                    yield f"the image is {_size(*image.size)}; in the record {_size(record.width, record.height)}"
                if image.width * image.height > MAX_PIXELS:
                    yield f"the image has {image.width * image.height} pixels, too many to decode"
                    return
                image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombWarning) as error:
        yield f"the image cannot be decoded: {error}"


def mp4_problems(mp4: bytes, record: MediaRecord) -> Iterator[str]:
    """Yield problems of a sample's video: streams, format, frame size, rate, first key frame, number of frames."""
    av.logging.set_level(None)  # problems are reported here with the sample's key; libav's messages have none
    try:
        with av.open(io.BytesIO(mp4), "r", format="mp4") as container:
            streams = container.streams
            if [stream.type for stream in streams] != ["video"]:
                types = ", ".join(stream.type for stream in streams) or "none"
                yield f"the streams are {types}; expected a single video stream"
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
        yield f"the video is {context.name}, {context.pix_fmt}; expected h264, yuv420p"
        if context.name != "h264":
            return
    if (context.width, context.height) != (record.width, record.height):
        expected = _size(record.width, record.height)
        yield f"the video is {_size(context.width, context.height)}; in the record {expected}"
    context.thread_count = 1
    context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
    packets = container.demux(stream)
    first = next(packets, None)
    if first is None or not first.is_keyframe:
        yield "the first packet is not a key frame"
    count, sizes, times = 0, set(), []
    for frame in (frame for packet in itertools.chain([first] if first else [], packets) for frame in packet.decode()):
        if count == 0 and not frame.key_frame:
            yield "the first decoded frame is not a key frame"
        if frame.is_corrupt:
            yield f"frame {count} is corrupt"
        sizes.add((frame.width, frame.height))
        times.append(frame.pts)
        count += 1
        if count > record.num_frames:
            break  # bounds the work by the record; further frames would not change the result
    if count != record.num_frames:
        more = "more than " if count > record.num_frames else ""
        yield f"the video has {more}{min(count, record.num_frames)} frames; in the record {record.num_frames}"
    if len(sizes) > 1:
        yield f"the frame size changes within the video: {', '.join(_size(*size) for size in sorted(sizes))}"
    yield from _rate_problems(times, stream.time_base, record)


def _rate_problems(times: list[int | None], time_base: Fraction | None, record: MediaRecord) -> Iterator[str]:
    known = [time for time in times if time is not None]
    if len(known) != len(times) or time_base is None:
        yield "there are frames without a PTS"
        return
    steps = {after - before for before, after in itertools.pairwise(known)}
    if len(steps) > 1:
        seconds = ", ".join(f"{float(step * time_base):g}" for step in sorted(steps)[:4])
        yield f"the frame rate is not constant: frames are {seconds} s apart"
    elif steps:
        step = steps.pop() * time_base
        if step <= 0 or abs(1 / step - Fraction(record.fps)) > _RATE_TOLERANCE * Fraction(record.fps):
            rate = float(1 / step) if step > 0 else 0.0
            yield f"the frame rate is {rate:g}/s; in the record {record.fps:g}"


def _size(width: int, height: int) -> str:
    return f"{width}×{height}"
