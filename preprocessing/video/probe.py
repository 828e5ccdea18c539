"""Looks into a source video, without decoding more than its first frame: which stream, what size, when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import simplejpeg
from av.container import InputContainer
from av.video.stream import VideoStream

from preprocessing.video.frame_folder import NoPicturesError, PictureFolder, list_pictures

# What a source may make libav open: a file of a media container. A playlist dressed up as a video would otherwise have
# other files or addresses read.
SAFE_INPUT = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,h264,hevc,m4v,mjpeg,gif,ivf",
}


class UnreadableError(ValueError):
    """A source from which no frame can be had; the message says what the file is or lacks."""


@dataclass(frozen=True, kw_only=True)
class ProbedVideo:
    """What is known of a source video. Times are seconds; `first_time` is on the container's own clock."""

    path: Path
    size: int  # bytes
    mtime_ns: int
    container: str  # libavformat's name of the format
    codec: str
    stream: int  # index of the video stream within the container
    width: int  # pixels as shown: after rotation and with square pixels
    height: int
    fps: float  # mean rate; 0 where the container does not say
    first_time: float  # of the first frame: the first key packet, whether or not it decodes
    first_pts: int  # the same in the stream's time base
    duration: float  # from the first frame to the end of the last, as far as the container knows
    pictures: PictureFolder | None = None  # where `path` is a folder of pictures rather than a video file

    def frames(self, fps: int) -> int:
        """Return how many frames the video has at a constant `fps`, at least one."""
        return max(1, round(self.duration * fps))


def probe(path: Path) -> ProbedVideo:
    """Return what is known of the video at `path`; raise `UnreadableError` where it cannot be decoded at all.

    An `OSError` (permission, a lost mount) passes through: it says something of the machine, not of the video.
    """
    stat = path.stat()
    if stat.st_size == 0:
        raise UnreadableError("the file is empty (0 bytes)")
    with path.open("rb"):  # av hides a permission error behind its own
        pass
    try:
        with av.open(str(path), options=SAFE_INPUT) as container:
            stream = _video_stream(container)
            frame, first_pts = _first_frame(container, stream)
            assert stream.time_base is not None
            width, height = _shown_size(frame, stream)
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


def probe_pictures(path: Path, fps: float | None) -> ProbedVideo:
    """Return what is known of the pictures in the folder `path`, of which `fps` make a second.

    Raise `UnreadableError` where they are no video, an `OSError` where the folder cannot be read. `size` counts the
    pictures: to add up their bytes would take longer than all else here.
    """
    if fps is None:
        raise UnreadableError("a folder of pictures whose rate nobody states; set videos.frames_fps")
    try:
        pictures = list_pictures(path, fps)
    except NoPicturesError as error:
        raise UnreadableError(str(error)) from None
    width, height = _picture_size(path, pictures)
    return ProbedVideo(
        path=path,
        size=pictures.count - sum(last - first + 1 for first, last in pictures.missing),
        mtime_ns=path.stat().st_mtime_ns,
        container="image2",
        codec="mjpeg",
        stream=0,
        width=width,
        height=height,
        fps=float(pictures.rate),
        first_time=0.0,
        first_pts=0,
        duration=float(pictures.count / pictures.rate),
        pictures=pictures,
    )


def _picture_size(path: Path, pictures: PictureFolder) -> tuple[int, int]:
    """Return width and height of the first picture that is one."""
    wanting = {number for first, last in pictures.missing for number in range(first, last + 1)}
    for number in range(pictures.first, pictures.last + 1):
        if number not in wanting:
            try:
                height, width, _, _ = simplejpeg.decode_jpeg_header((path / pictures.name(number)).read_bytes())
            except ValueError:
                continue  # a damaged one; the transcoding pass will find it and say which
            return width, height
    raise UnreadableError("none of its pictures is a JPEG that can be decoded")


def _video_stream(container: InputContainer) -> VideoStream:
    """Return the stream that ffmpeg would take for the video; cover pictures are none."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        held = ", ".join(sorted({s.type for s in container.streams})) or "no stream at all"
        raise UnreadableError(f"there is no video stream in it (it holds: {held})")
    stream.thread_type = "NONE"
    return stream


def _first_frame(container: InputContainer, stream: VideoStream) -> tuple[av.VideoFrame, int]:
    """Return the first frame that decodes, and when the video starts, in the stream's time base.

    The two differ where the very start is damaged: time still counts from the first key packet then.
    """
    first_key: int | None = None
    for packet in container.demux(stream):
        if first_key is None and packet.is_keyframe:
            first_key = packet.pts
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue  # a damaged packet; the transcoding pass will find it and say when
        for frame in frames:
            if isinstance(frame, av.VideoFrame) and frame.pts is not None:
                return frame, frame.pts if first_key is None else min(first_key, frame.pts)
    raise UnreadableError(f"no frame of its {stream.codec_context.name} stream can be decoded")


def _shown_size(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Return width and height as a player shows them: pixels made square, then rotated."""
    aspect = stream.sample_aspect_ratio
    width = max(1, round(frame.width * aspect)) if aspect and 0.1 < aspect < 10 else frame.width
    return (frame.height, width) if abs(frame.rotation) % 180 == 90 else (width, frame.height)


def _end_time(container: InputContainer, stream: VideoStream) -> float:
    """Return when the last frame ends, in seconds on the container's clock.

    The header is believed where it is an index of this very stream (mov, mp4): the data may stop sooner, and then the
    rest of the announced time is damage. Elsewhere the last packets are looked at.
    """
    assert stream.time_base is not None
    if "mp4" in container.format.name and stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    start = container.start_time or 0
    near_end = start + (container.duration or 0)
    return max(_last_end(container, stream, seek_to=near_end) or _last_end(container, stream, seek_to=start), 0.0)


def _last_end(container: InputContainer, stream: VideoStream, *, seek_to: int) -> float:
    """Return the latest end of the packets from the key frame before `seek_to` (µs) on; 0 where there are none."""
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
        return end  # not seekable, or the data ends in damage: what was read so far is what there is
    return end
