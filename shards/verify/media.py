"""Decodes a sample's image and all frames of its video, and compares them with its record."""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
import av.logging
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError

from shards.decode import DecodeError, PyAVDecoder
from shards.mp4 import Mp4Error, read_packets
from shards.sampling import Crop
from shards.schema import MediaRecord

MAX_PIXELS = 1 << 26  # per frame; larger frames are not decoded
MAX_WORK = 1 << 38  # pixels of all frames of a sample: a quarter of an hour of decoding
_RATE_TOLERANCE = Fraction(1, 10**6)  # relative, since the record's fps is a float
_FRAMES_AT_ONCE = 4096
_THUMBNAIL = 16  # pixels of the sides to which image and video are reduced before they are compared
# Greatest differences of the thumbnails, of 255: of a pixel, and on average. JPEG, rounding and clipped colours give at
# most 9 and 1.5 on the videos of the tests.
_MAX_DIFFERENCE, _MAX_MEAN_DIFFERENCE = 24.0, 4.0


def jpg_problems(jpg: bytes, record: MediaRecord) -> Iterator[str]:
    """Yield problems of a sample's JPEG: damage, or a size or kind other than the record's and the build's."""
    try:
        with _open_jpg(jpg) as image:
            if image.size != (record.width, record.height):
                yield f"the image is {_size(*image.size)}; in the record {_size(record.width, record.height)}"
                return
            if image.width * image.height > MAX_PIXELS:
                yield f"the image has {image.width * image.height} pixels, too many to decode"
                return
            if image.mode != "RGB" or image.info.get("progressive") or image.info.get("progression"):
                yield f"the image is a {image.mode} JPEG, perhaps progressive; expected a baseline JPEG in colour"
                return
            image.load()
    except _IMAGE_ERRORS as error:
        yield f"the image cannot be decoded: {error}"


_IMAGE_ERRORS = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    Image.DecompressionBombWarning,
    Image.DecompressionBombError,
)


@contextmanager
def _open_jpg(jpg: bytes) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # JPEG only, so that no file in a tar can reach another of Pillow's decoders.
        with Image.open(io.BytesIO(jpg), formats=["JPEG"]) as image:
            yield image


def mp4_problems(mp4: bytes, record: MediaRecord, jpg: bytes | None = None) -> Iterator[str]:
    """Yield problems of a sample's video: structure, format, frame size, rate, key frames, number of frames.

    With the sample's `jpg`, also whether that shows the video's key frame nearest the middle of the clip.
    """
    av.logging.set_level(None)  # problems are reported here with the sample's key; libav's messages have none
    try:
        table = read_packets(mp4)
        if len(table.frame_P) != record.num_frames:
            yield f"the packet table has {len(table.frame_P)} frames; in the record {record.num_frames}"
        encoding = table.encoding
        if (encoding.width, encoding.height) != (record.width, record.height):
            stated = _size(encoding.width, encoding.height)
            yield f"its sample description says {stated}; in the record {_size(record.width, record.height)}"
        if encoding.pixel_aspect not in (None, 1):
            yield f"its pixels are {encoding.pixel_aspect} times as wide as high; the build stores square ones"
        yield from _loader_problems(mp4, record)
    except Mp4Error as error:
        yield f"the loader cannot read it: {error}"
    try:
        with av.open(io.BytesIO(mp4), "r", format="mp4", metadata_errors="replace") as container:
            streams = container.streams
            if [stream.type for stream in streams] != ["video"]:
                types = ", ".join(stream.type for stream in streams) or "none"
                yield f"the streams are {types}; expected a single video stream"
            if not streams.video:
                return
            yield from _video_problems(container, streams.video[0], record, jpg)
    except (av.FFmpegError, EOFError, ValueError, OverflowError, MemoryError) as error:
        yield f"the video cannot be decoded: {error}"


def encoding_digest(mp4: bytes) -> int:
    """Return a number, not 0, for the decoder configuration of a video; 0 if it cannot be read."""
    try:
        extradata = read_packets(mp4).extradata
    except Mp4Error:
        return 0
    return int.from_bytes(hashlib.blake2b(extradata, digest_size=8).digest(), "big") or 1


def _video_problems(
    container: av.container.InputContainer, stream: av.VideoStream, record: MediaRecord, jpg: bytes | None
) -> Iterator[str]:
    context: VideoCodecContext | None = stream.codec_context  # None for a codec that libav does not know
    if context is None:
        yield "the video is of an unknown codec; expected h264"
        return
    if context.name != "h264" or context.pix_fmt != "yuv420p":
        yield f"the video is {context.name}, {context.pix_fmt}; expected h264, yuv420p"
        if context.name != "h264":
            return
    if (context.width, context.height) != (record.width, record.height):
        expected = _size(record.width, record.height)
        yield f"the video is {_size(context.width, context.height)}; in the record {expected}"
    if stream.sample_aspect_ratio not in (None, 0, 1):
        yield f"its pixels are {stream.sample_aspect_ratio} times as wide as high; the build stores square ones"
    pixels = max(record.width * record.height, context.width * context.height)
    if pixels > MAX_PIXELS or pixels * record.num_frames > MAX_WORK:
        yield f"not decoded: {record.num_frames} frames of {pixels} pixels are too many"
        return
    context.thread_count = 1
    context.options = {"err_detect": "explode", "max_pixels": str(2 * pixels + (1 << 16))}
    packets = container.demux(stream)
    first = next(packets, None)
    if first is None or not first.is_keyframe:
        yield "the first packet is not a key frame"
    middle = record.first_frame + (record.clip_frames - 1) / 2
    count, sizes, times, nearest = 0, set(), [], None
    for frame in (frame for packet in itertools.chain([first] if first else [], packets) for frame in packet.decode()):
        if count == 0 and not frame.key_frame:
            yield "the first decoded frame is not a key frame"
        if frame.is_corrupt:
            yield f"frame {count} is corrupt"
        if frame.key_frame and (nearest is None or abs(count - middle) < abs(nearest[0] - middle)):
            nearest = count, frame
        sizes.add((frame.width, frame.height))
        times.append(frame.pts)
        count += 1
        if count > record.num_frames:
            break  # bounds the work by the record; further frames would not change the result
    if count != record.num_frames:
        more = "more than " if count > record.num_frames else ""
        yield f"the video has {more}{min(count, record.num_frames)} frames; in the record {record.num_frames}"
    if len(sizes) > 1 or sizes - {(record.width, record.height)}:
        yield f"decoded frames are {', '.join(_size(*size) for size in sorted(sizes))}"
    if times and times[0] not in (0, None):
        yield f"the first frame is shown at {times[0]} / {1 / stream.time_base if stream.time_base else 0} s, not at 0"
    yield from _rate_problems(times, stream.time_base, record)
    if nearest is not None and jpg is not None:
        yield from _image_problems(nearest[0], nearest[1], jpg)


def _loader_problems(mp4: bytes, record: MediaRecord) -> Iterator[str]:
    """Yield why the loader cannot decode some frame: it reads the packet table by itself, from any key frame."""
    if record.width * record.height > MAX_PIXELS or record.width * record.height * record.num_frames > MAX_WORK:
        return  # reported by _video_problems
    side = min(_THUMBNAIL, record.width // 2 * 2, record.height // 2 * 2)
    decoder, crop = PyAVDecoder(), Crop(top=0, left=0, height=side, width=side)  # small: only errors count
    for first in range(0, record.num_frames, _FRAMES_AT_ONCE):
        frames = np.arange(first, min(first + _FRAMES_AT_ONCE, record.num_frames))
        try:
            decoder.decode(mp4, frames, [crop] * len(frames), _THUMBNAIL)
        except DecodeError as error:
            yield f"the loader cannot decode frames {first} … {frames[-1]}: {error}"
            return


def _image_problems(number: int, frame: av.VideoFrame, jpg: bytes) -> Iterator[str]:
    """Yield a difference between the JPEG and the stored key frame that it should show."""
    try:
        with _open_jpg(jpg) as image:
            if image.size != (frame.width, frame.height):
                return  # reported by jpg_problems
            shown_HWC = _thumbnail(image)
    except _IMAGE_ERRORS:
        return  # reported by jpg_problems
    rgb = VideoReformatter().reformat(frame, format="rgb24", threads=1)
    stored_HWC = _thumbnail(Image.fromarray(rgb.to_ndarray()))
    differences_HWC = np.abs(shown_HWC - stored_HWC)
    if differences_HWC.max() > _MAX_DIFFERENCE or differences_HWC.mean() > _MAX_MEAN_DIFFERENCE:
        by = f"{differences_HWC.max():.0f} at most, {differences_HWC.mean():.1f} on average"
        yield f"the jpg does not show frame {number}, the key frame nearest the middle: they differ by {by}"


def _thumbnail(image: Image.Image) -> np.ndarray:
    reduced = image.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(reduced, np.float32)


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
