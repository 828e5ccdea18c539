"""Probes a source video (stream, size, rate, start, duration) without decoding more than its first frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import simplejpeg
from av.container import InputContainer
from av.video.stream import VideoStream

from preprocessing.video.frame_folder import FrameFolder, FrameFolderError, list_frame_folder

# libav may open local media containers only. Otherwise a playlist disguised as a video could make it read other files
# or network addresses.
SAFE_INPUT = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,h264,hevc,m4v,mjpeg,gif,ivf",
}


class UnreadableError(ValueError):
    """A source from which no frame can be decoded; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ProbedVideo:
    """The properties of a source video."""

    path: Path  # a video file or a folder of numbered frames
    size: int  # bytes; of a folder, the number of its frames
    mtime_ns: int
    container: str  # libavformat's name of the format
    codec: str
    stream: int  # index of the video stream within the container
    width: int  # px as displayed: after rotation and with square pixels
    height: int  # px
    fps: float  # mean rate; 0 where the container does not state it
    first_time: float  # s on the container's clock: time of the first key packet, whether or not it decodes
    first_pts: int  # the same in the stream's time base
    duration: float  # s from the first frame to the end of the last, according to the container
    frame_folder: FrameFolder | None = None  # where `path` is a folder of numbered frames

    def frames(self, fps: int) -> int:
        """Return the number of frames of the video at a constant `fps`, at least one."""
        return max(1, round(self.duration * fps))


def probe(path: Path) -> ProbedVideo:
    """Return the properties of the video file at `path`.

    Raises `UnreadableError` where no frame can be decoded, and `OSError` where the file cannot be read (permission, a
    lost mount).
    """
    stat = path.stat()
    if stat.st_size == 0:
        raise UnreadableError("the file is empty (0 bytes)")
    with path.open("rb"):  # raises the OSError that av would replace by its own error
        pass
    try:
        with av.open(str(path), options=SAFE_INPUT) as container:
            stream = _video_stream(container)
            frame, first_pts = _first_frame(container, stream)
            assert stream.time_base is not None
            width, height = _display_size(frame, stream)
            first_time = float(first_pts * stream.time_base)
            return ProbedVideo(
                path=path,
                size=stat.st_size,
                mtime_ns=stat.st_mtime_ns,
                container=container.format.name,
                codec=stream.codec_context.name,
                stream=stream.index,
                width=width,
                height=height,
                fps=float(stream.average_rate or stream.guessed_rate or 0),
                first_time=first_time,
                first_pts=first_pts,
                duration=max(_end_time(container, stream) - first_time, 0.0),
            )
    except av.FFmpegError as error:
        raise UnreadableError(f"not a video that libav can read: {error.strerror}") from error


def probe_frame_folder(path: Path, fps: float | None) -> ProbedVideo:
    """Return the properties of a folder of numbered frames at `fps` frames per second.

    Raises `UnreadableError` where the files are not the frames of a video, and `OSError` where the folder cannot be
    read. `size` is the number of frames: summing their bytes would dominate the time of a probe.
    """
    if fps is None:
        raise UnreadableError("a folder of frames without a known frame rate; set videos.frames_fps")
    try:
        folder = list_frame_folder(path, fps)
    except FrameFolderError as error:
        raise UnreadableError(str(error)) from None
    width, height = _image_size(path, folder)
    return ProbedVideo(
        path=path,
        size=folder.count - sum(last - first + 1 for first, last in folder.missing),
        mtime_ns=path.stat().st_mtime_ns,
        container="image2",
        codec="mjpeg",
        stream=0,
        width=width,
        height=height,
        fps=float(folder.rate),
        first_time=0.0,
        first_pts=0,
        duration=float(folder.count / folder.rate),
        frame_folder=folder,
    )


def _image_size(path: Path, folder: FrameFolder) -> tuple[int, int]:
    """Return width and height (px) of the first frame with a valid JPEG header."""
    for number in folder.present_between(folder.first, folder.last):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header((path / folder.name(number)).read_bytes())
        except ValueError:
            continue  # a damaged file, which transcoding will report
        return width, height
    raise UnreadableError("none of its frames is a JPEG that can be decoded")


def _video_stream(container: InputContainer) -> VideoStream:
    """Return the stream that ffmpeg would select for the video, which is never a cover image."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        types = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise UnreadableError(f"no video stream (streams: {types})")
    stream.thread_type = "NONE"
    return stream


def _first_frame(container: InputContainer, stream: VideoStream) -> tuple[av.VideoFrame, int]:
    """Return the first frame that decodes, and the PTS at which the video starts.

    They differ where the start is damaged: time is counted from the first key packet even if it does not decode.
    """
    first_key: int | None = None
    for packet in container.demux(stream):
        if first_key is None and packet.is_keyframe:
            first_key = packet.pts
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue  # a damaged packet, which transcoding will report
        for frame in frames:
            if isinstance(frame, av.VideoFrame) and frame.pts is not None:
                return frame, frame.pts if first_key is None else min(first_key, frame.pts)
    raise UnreadableError(f"no frame of its {stream.codec_context.name} stream can be decoded")


def _display_size(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Return width and height (px) as displayed: with square pixels, then rotated."""
    aspect = stream.sample_aspect_ratio
    width = max(1, round(frame.width * aspect)) if aspect and 0.1 < aspect < 10 else frame.width
    return (frame.height, width) if abs(frame.rotation) % 180 == 90 else (width, frame.height)


def _end_time(container: InputContainer, stream: VideoStream) -> float:
    """Return when the last frame ends, in s on the container's clock.

    The header is trusted where it is an index of this stream (mov, mp4): if the data end earlier, the rest of the
    stated time is damage. For other containers the last packets are read.
    """
    assert stream.time_base is not None
    if "mp4" in container.format.name and stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    start = container.start_time or 0
    near_end = start + (container.duration or 0)
    return max(_last_end(container, stream, seek_to=near_end) or _last_end(container, stream, seek_to=start), 0.0)


def _last_end(container: InputContainer, stream: VideoStream, *, seek_to: int) -> float:
    """Return the latest end (s) of the packets from the key frame before `seek_to` (µs) on; 0 if there are none."""
    assert stream.time_base is not None
    step = 1 / stream.average_rate if stream.average_rate else 0
    end = 0.0
    try:
        container.seek(seek_to, backward=True)
        for packet in container.demux(stream):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * stream.time_base))
                end = max(end, float(packet.pts * stream.time_base + step))
    except av.FFmpegError:
        return end  # not seekable, or damaged at the end: the packets read so far count
    return end
