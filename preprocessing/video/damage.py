"""Finds damage that ffmpeg conceals silently: frozen video, missing frames and frames that do not decode.

There are two checks. The cheap one always runs: ffmpeg reports which source frame each encoded frame shows, so a frame
that is shown for longer than the source's frame rate explains is detected. If it, or any message of ffmpeg, indicates
damage, that part of the source is decoded again packet by packet to find the exact times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import av.logging
import simplejpeg

from preprocessing.config import ChunkConfig
from preprocessing.video.chunks import Damage
from preprocessing.video.frame_folder import FrameFolder
from preprocessing.video.probe import SAFE_INPUT, ProbedVideo

_SUSPICIOUS = ("error", "corrupt", "invalid", "missing", "conceal", "non-existing", "no frame", "truncat", "partial")


def suggests_damage(messages: str) -> bool:
    """Return whether ffmpeg's messages indicate damage. A false positive costs time but no samples."""
    text = messages.lower()
    return any(word in text for word in _SUSPICIOUS)


def frozen_intervals(
    times: Sequence[float], *, start: float, fps: int, source_fps: float, config: ChunkConfig
) -> list[Damage]:
    """Return where encoded frames show one source frame for longer than the source's frame rate explains.

    `times` has, for each encoded frame, the source time (s) of the frame that it shows; encoded frame n is displayed at
    `start + n/fps`. Gaps up to `config.max_gap_seconds` are tolerated.
    """
    if not times:
        return []
    step = 1 / source_fps if source_fps else 1 / fps
    limit = max(config.max_gap_seconds, 2.5 * step)
    damage = []
    distinct = sorted(set(times))
    if distinct[0] - start > limit:  # the first frame that decodes fills the time before it
        damage.append(Damage(start=start, end=distinct[0], reason="no decodable frame"))
    ends = [*distinct[1:], start + len(times) / fps]
    for shown, following in zip(distinct, ends, strict=True):
        if following - shown > limit:
            damage.append(Damage(start=max(start, shown + step), end=following, reason="frozen video"))
    return damage


def diagnose(source: ProbedVideo, *, start: float, end: float) -> list[Damage]:
    """Decode the source between `start` and `end` (s from the first frame) and return its damage.

    Everything from the first frame that a broken packet can affect to the next key frame counts as damaged.
    """
    if source.frame_folder is not None:
        return _broken_images(source.path, source.frame_folder, start=start, end=end)
    damage: list[Damage] = []
    try:
        with av.open(str(source.path), options=SAFE_INPUT) as container:
            stream = container.streams[source.stream]
            assert isinstance(stream, av.VideoStream) and stream.time_base is not None
            stream.thread_type = "NONE"  # messages of other threads could not be attributed to a packet
            time_base = stream.time_base
            if start > 0:
                container.seek(source.first_pts + int(start / time_base), stream=stream, backward=True)
            pending = _Pending()
            previous_level = av.logging.get_level()
            av.logging.set_level(av.logging.INFO)  # the level at which error concealment is reported
            try:
                with av.logging.Capture(local=True) as messages:
                    for packet in container.demux(stream):
                        time = None
                        if packet.pts is not None:
                            time = float((packet.pts - source.first_pts) * time_base)
                        if time is not None and time > end and packet.is_keyframe:
                            break
                        damage += pending.packet(time, is_key=packet.is_keyframe)
                        is_broken = packet.is_corrupt or not _decodes(packet)
                        logged = [text for level, _, text in messages if level <= av.logging.INFO]
                        messages.clear()
                        if is_broken or suggests_damage("\n".join(logged)):
                            pending.damaged(time)
            finally:
                av.logging.set_level(previous_level)
            damage += pending.finish(end)
    except av.FFmpegError as error:
        damage.append(Damage(start=start, end=end, reason=f"unreadable: {error.strerror}"))
    return [item for item in damage if item.end > start and item.start < end]


def missing_frames(source: ProbedVideo, *, start: float, end: float) -> list[Damage]:
    """Return where a folder of frames lacks some between `start` and `end` (s); nothing for a video file."""
    frames = source.frame_folder
    if frames is None:
        return []
    return [
        Damage(start=frames.time_of(first), end=frames.time_of(last + 1), reason="frames missing")
        for first, last in frames.missing_between(frames.number_at(start), frames.number_at(end))
    ]


def _broken_images(path: Path, frames: FrameFolder, *, start: float, end: float) -> list[Damage]:
    """Decode every image of the folder `path` shown between `start` and `end` (s) and return the broken ones."""
    damage = []
    for number in frames.present_between(frames.number_at(start), frames.number_at(end)):
        try:
            simplejpeg.decode_jpeg((path / frames.name(number)).read_bytes())
        except ValueError as error:
            reason = f"broken image ({error})"
            damage.append(Damage(start=frames.time_of(number), end=frames.time_of(number + 1), reason=reason))
    return damage


class _Pending:
    """Damage that has begun and has not ended yet, while packets arrive in decoding order."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._last = 0.0

    def packet(self, time: float | None, *, is_key: bool) -> list[Damage]:
        """Take a packet's time (s) and return the damage that it ends: a key frame ends the damage before it."""
        closed = []
        if self._since is not None and time is not None:
            if is_key and time > self._since:
                closed.append(Damage(start=self._since, end=time, reason="broken frames"))
                self._since = None
            else:
                self._since = min(self._since, time)  # decoded after the broken packet, displayed before it
        if time is not None:
            self._last = time
        return closed

    def damaged(self, time: float | None) -> None:
        """Record that the packet at `time` (s) is broken."""
        at = self._last if time is None else time
        self._since = at if self._since is None else min(self._since, at)

    def finish(self, end: float) -> list[Damage]:
        """Return the damage still open at `end` (s)."""
        if self._since is None:
            return []
        return [Damage(start=self._since, end=max(end, self._since), reason="broken frames")]


def _decodes(packet: av.Packet[Any]) -> bool:
    """Return whether a packet decodes without error into intact frames."""
    try:
        return not any(frame.is_corrupt for frame in packet.decode())
    except av.FFmpegError:
        return False


def merge(damage: Iterable[Damage], *, start: float, end: float) -> tuple[Damage, ...]:
    """Return the damage within `start … end` (s), sorted; overlapping spans are joined with all their reasons."""
    clipped = [
        Damage(start=max(d.start, start), end=min(d.end, end), reason=d.reason)
        for d in damage
        if d.end > start and d.start < end
    ]
    joined: list[Damage] = []
    for d in sorted(clipped, key=lambda d: (d.start, d.end, d.reason)):
        if joined and d.start <= joined[-1].end:
            last = joined[-1]
            reasons = last.reason if d.reason in last.reason.split(", ") else f"{last.reason}, {d.reason}"
            joined[-1] = Damage(start=last.start, end=max(last.end, d.end), reason=reasons)
        else:
            joined.append(d)
    return tuple(joined)
