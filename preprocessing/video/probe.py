"""Probes a source video: its stream, size, colour, rate and clock. Only its first frames are decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import simplejpeg
from av.container import InputContainer
from av.video.stream import VideoStream

from preprocessing.errors import TransientError
from preprocessing.video.clock import (
    MAX_SECONDS,
    ClockError,
    VideoClock,
    load_clock,
    same_packets,
    save_clock,
    source_identity,
)
from preprocessing.video.decode import DecodedFrame, SentPacket, decode
from preprocessing.video.frame_folder import FrameFolder, FrameFolderError, folder_clock, list_frame_folder
from preprocessing.video.index import open_source, read_clock
from preprocessing.video.picture import Colour, colour_of

_FIRST_FRAMES = 32  # decoded to compare the order of output with the times
_WITHOUT_INDEX = ("mpegts", "mpeg", "asf", "flv", "ogg")  # formats in which nothing lists frames that were cut off


class UnreadableError(ValueError):
    """A source from which no frame can be decoded; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ProbedVideo:
    """The properties of a source video."""

    path: Path  # a video file or a folder of numbered frames
    size: int  # bytes; of a folder, the number of its frames
    mtime_ns: int
    inode: int
    ctime_ns: int  # of its last change of any kind, also of permissions
    container: str  # libavformat's name of the format
    codec: str
    stream: int  # index of the video stream within the container
    width: int  # px as displayed: after rotation and with square pixels
    height: int  # px
    fps: float  # mean rate; 0 where the container does not state it
    duration: float  # s from the first frame to the end of the last, as its packets show
    stated_duration: float  # s; what the container or metadata state, where that is longer
    colour: Colour
    is_interlaced: bool  # a frame near the start is interlaced
    metadata_duration: float | None = None  # s; what metadata state
    notes: tuple[str, ...] = ()  # what was found out of the ordinary
    frame_folder: FrameFolder | None = None  # where `path` is a folder of numbered frames

    @property
    def identity(self) -> tuple[int, int, int]:
        """What changes when the source does: size, modification time and inode."""
        return self.size, self.mtime_ns, self.inode

    def frames(self, fps: int) -> int:
        """Return the number of frames of the video at a constant `fps`, at least one."""
        return max(1, round(self.duration * fps))


def probe(path: Path, *, stated_seconds: float | None = None, clock_file: Path | None = None) -> ProbedVideo:
    """Return the properties of the video file at `path`; keep its clock in `clock_file`.

    `stated_seconds` is its duration according to metadata: nothing much later is believed, and what is missing from it
    is reported as lost. Raises `UnreadableError` where no frame can be decoded, and `OSError` where the file cannot be
    read (permission, a lost mount).
    """
    source, clock = _probed(path, stated_seconds)
    if clock_file is not None:
        _keep(clock_file, clock, source.identity)
    return source


def _probed(path: Path, stated_seconds: float | None) -> tuple[ProbedVideo, VideoClock]:
    """Return the properties and the clock of a video file; raise as `probe` does."""
    if path.stat().st_size == 0:
        raise UnreadableError("the file is empty (0 bytes)")
    with path.open("rb"):  # raises the OSError that av would replace by its own error
        pass
    identity, ctime_ns = source_identity(path), path.stat().st_ctime_ns
    try:
        with open_source(path) as container:
            stream = _video_stream(container)
            clock = read_clock(path, container, stream, limit=_limit(stated_seconds))
            first, clock = _start(path, container, stream, clock)
            width, height = _display_size(first, stream)
            source = ProbedVideo(
                path=path,
                size=identity[0],
                mtime_ns=identity[1],
                inode=identity[2],
                ctime_ns=ctime_ns,
                container=container.format.name,
                codec=stream.codec_context.name,
                stream=stream.index,
                width=width,
                height=height,
                fps=1 / clock.step,
                duration=clock.end,
                stated_duration=max(clock.stated_end, min(stated_seconds or 0.0, MAX_SECONDS)),
                colour=colour_of(first),
                is_interlaced=bool(first.interlaced_frame),
                metadata_duration=stated_seconds,
                notes=clock.notes,
            )
            return source, clock
    except ClockError as error:
        raise UnreadableError(str(error)) from None
    except av.FFmpegError as error:
        if isinstance(error, OSError) and not isinstance(error, ValueError):
            path.stat()  # raises the OSError of a lost mount
        raise UnreadableError(f"not a video that libav can read: {error.strerror}") from error


def _keep(clock_file: Path, clock: VideoClock, identity: tuple[int, int, int]) -> None:
    """Save a clock; raise `TransientError` where it cannot be written, which says nothing about the video."""
    try:
        save_clock(clock_file, clock, identity)
    except OSError as error:
        raise TransientError(f"{clock_file.parent}: {error.strerror or error}") from error


def _limit(stated_seconds: float | None) -> float:
    """Return the latest time (s) that is believed of a video of a stated length."""
    return MAX_SECONDS if not stated_seconds else min(MAX_SECONDS, 2 * stated_seconds + 60)


def read_source_clock(source: ProbedVideo, clock_file: Path) -> VideoClock:
    """Return the clock of a probed source from `clock_file`; it is read from the source again where that is missing."""
    if source.frame_folder is not None:
        return folder_clock(source.frame_folder)
    clock = load_clock(clock_file, source.identity)
    if clock is None:
        again, clock = _probed(source.path, source.metadata_duration)
        _keep(clock_file, clock, again.identity)
    return clock


def has_same_content(source: ProbedVideo, clock_file: Path) -> bool:
    """Return whether a video file still has the packets that its clock names, whatever its modification time says."""
    known = load_clock(clock_file, source.identity)
    try:
        return known is not None and same_packets(known, _probed(source.path, source.metadata_duration)[1])
    except UnreadableError:
        return False


def probe_frame_folder(path: Path, fps: float | None, *, stated_seconds: float | None = None) -> ProbedVideo:
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
    first = _first_image(path, folder)
    duration = float(folder.count / folder.rate)
    return ProbedVideo(
        path=path,
        size=folder.count - sum(last - first + 1 for first, last in folder.missing),
        mtime_ns=path.stat().st_mtime_ns,
        inode=path.stat().st_ino,
        ctime_ns=path.stat().st_ctime_ns,
        container="image2",
        codec="mjpeg",
        stream=0,
        width=first.width,
        height=first.height,
        fps=float(folder.rate),
        duration=duration,
        stated_duration=max(duration, stated_seconds or 0.0),
        colour=colour_of(first),
        is_interlaced=False,
        frame_folder=folder,
    )


def _first_image(path: Path, folder: FrameFolder) -> av.VideoFrame:
    """Return the first frame of a folder that is a JPEG with a valid header."""
    for number in folder.present_between(folder.first, folder.last):
        data = (path / folder.name(number)).read_bytes()
        try:
            simplejpeg.decode_jpeg_header(data)
            frames = av.CodecContext.create("mjpeg", "r").decode(av.Packet(data))
        except (ValueError, av.FFmpegError):
            continue  # a damaged file, which transcoding will report
        if frames and isinstance(frames[0], av.VideoFrame):
            return frames[0]
    raise UnreadableError("none of its frames is a JPEG that can be decoded")


def _video_stream(container: InputContainer) -> VideoStream:
    """Return the stream that ffmpeg would select for the video, which is never a cover image."""
    try:
        stream = container.streams.best("video")
    except IndexError:
        stream = None  # in a damaged file, libav may name a stream that does not exist
    if not isinstance(stream, VideoStream):
        types = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise UnreadableError(f"no video stream (streams: {types})")
    if stream.codec_context is None:
        raise UnreadableError("its video stream has a codec that libav cannot decode")
    return stream


def _start(
    path: Path, container: InputContainer, stream: VideoStream, clock: VideoClock
) -> tuple[av.VideoFrame, VideoClock]:
    """Return the first frame that decodes, and the clock adjusted to what the decoder puts out.

    Where the container lists its frames, time 0 stays the first of them, whether or not it decodes; elsewhere it is
    the first frame that does. Where packets are timed in decoding order, and sound frames come out in another, they are
    timed by order.
    """
    first: av.VideoFrame | None = None
    times: list[float] = []
    is_broken = False
    for event in decode(path, stream.index, clock):
        if isinstance(event, SentPacket):
            is_broken = is_broken or event.is_broken
        elif isinstance(event, DecodedFrame):
            first = first if first is not None and not event.frame.interlaced_frame else event.frame
            times.append(event.time)
            if len(times) == _FIRST_FRAMES:
                break
    if first is None:
        raise UnreadableError(f"no frame of its {stream.codec_context.name} stream can be decoded")
    if clock.by_order:
        return first, clock
    shown = np.array([t for t in times if np.isfinite(t)])
    known = clock.time_P[np.isfinite(clock.time_P)]
    if (np.diff(shown) < -1e-9).any() and (np.diff(known) >= 0).all() and not is_broken:
        if len(known) < len(clock.time_P):
            raise ClockError("the times of its frames contradict their order; remux or re-encode it")
        note = "the times of its frames contradict their order: the n-th frame is shown at the n-th time"
        notes = (*clock.notes, note)
        return first, replace(clock, time_P=np.sort(clock.time_P), by_order=True, notes=notes)
    if len(shown) and shown[0] > 0 and any(word in container.format.name for word in _WITHOUT_INDEX):
        return first, clock.moved(float(shown[0]))
    return first, clock


def _display_size(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Return width and height (px) as displayed: with square pixels, then rotated."""
    aspect = stream.sample_aspect_ratio
    width = max(1, round(frame.width * aspect)) if aspect and 0.1 < aspect < 10 else frame.width
    return (frame.height, width) if abs(frame.rotation) % 180 == 90 else (width, frame.height)
