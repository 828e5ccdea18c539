"""Finds the stretches of a source that ffmpeg conceals in silence: frozen pictures, lost and broken frames.

Two looks. The cheap one is always taken: ffmpeg says which source frame each encoded frame shows, so a picture that
stands still for longer than the source's frame rate allows is seen. Where that, or any message, raises suspicion, the
stretch is decoded once more packet by packet, and what goes wrong is pinned to times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import av.logging
import simplejpeg

from preprocessing.config import ChunkConfig
from preprocessing.video.chunks import Damage
from preprocessing.video.frame_folder import PictureFolder
from preprocessing.video.probe import SAFE_INPUT, ProbedVideo

_WORDS = ("error", "corrupt", "invalid", "missing", "conceal", "non-existing", "no frame", "truncat", "partial")


def sounds_damaged(messages: str) -> bool:
    """Return whether ffmpeg's messages give reason to look closer. Wrong suspicion costs time, never samples."""
    text = messages.lower()
    return any(word in text for word in _WORDS)


def frozen_stretches(
    times: Sequence[float], *, start: float, fps: int, source_fps: float, config: ChunkConfig
) -> list[Damage]:
    """Return where encoded frames show a source frame for longer than the source's rate explains.

    `times` are the source times (s) of the frames shown, one an encoded frame; the n-th stands at `start + n/fps`.
    """
    if not times:
        return []
    step = 1 / source_fps if source_fps else 1 / fps
    limit = max(config.max_gap_seconds, 2.5 * step)
    found = []
    distinct = sorted(set(times))
    if distinct[0] - start > limit:  # the first frame that could be had was shown backwards in time
        found.append(Damage(start=start, end=distinct[0], reason="no picture"))
    ends = [*distinct[1:], start + len(times) / fps]
    for shown, following in zip(distinct, ends, strict=True):
        if following - shown > limit:
            found.append(Damage(start=max(start, shown + step), end=following, reason="frozen picture"))
    return found


def diagnose(source: ProbedVideo, *, start: float, end: float) -> list[Damage]:
    """Decode the source between `start` and `end` (s from the first frame) and return what is broken, by time.

    From the first frame that a broken packet can touch to the next key frame, everything counts as damaged.
    """
    if source.pictures is not None:
        return _broken_pictures(source.path, source.pictures, start=start, end=end)
    found: list[Damage] = []
    try:
        with av.open(str(source.path), options=SAFE_INPUT) as container:
            stream = container.streams[source.stream]
            assert isinstance(stream, av.VideoStream) and stream.time_base is not None
            stream.thread_type = "NONE"  # messages of another thread could not be told to belong to a packet
            time_base = stream.time_base
            if start > 0:
                container.seek(source.first_pts + int(start / time_base), stream=stream, backward=True)
            pending = _Pending()
            previous_level = av.logging.get_level()
            av.logging.set_level(av.logging.INFO)  # concealment is reported at this level only
            try:
                with av.logging.Capture(local=True) as messages:
                    for packet in container.demux(stream):
                        time = None
                        if packet.pts is not None:
                            time = float((packet.pts - source.first_pts) * time_base)
                        if time is not None and time > end and packet.is_keyframe:
                            break
                        found += pending.packet(time, is_key=packet.is_keyframe)
                        broken = packet.is_corrupt or not _decodes(packet)
                        spoken = [text for level, _, text in messages if level <= av.logging.INFO]
                        messages.clear()
                        if broken or sounds_damaged("\n".join(spoken)):
                            pending.damaged(time)
            finally:
                av.logging.set_level(previous_level)
            found += pending.finish(end)
    except av.FFmpegError as error:
        found.append(Damage(start=start, end=end, reason=f"unreadable: {error.strerror}"))
    return [damage for damage in found if damage.end > start and damage.start < end]


def missing_pictures(source: ProbedVideo, *, start: float, end: float) -> list[Damage]:
    """Return where a folder of pictures lacks some between `start` and `end` (s); nothing of a video file."""
    pictures = source.pictures
    if pictures is None:
        return []
    return [
        Damage(start=pictures.time_of(first), end=pictures.time_of(last + 1), reason="pictures missing")
        for first, last in pictures.missing_between(pictures.number_at(start), pictures.number_at(end))
    ]


def _broken_pictures(folder: Path, pictures: PictureFolder, *, start: float, end: float) -> list[Damage]:
    """Decode every picture shown between `start` and `end` (s) and return which of them are broken."""
    found = []
    first, last = pictures.number_at(start), pictures.number_at(end)
    wanting = {number for a, b in pictures.missing_between(first, last) for number in range(a, b + 1)}
    for number in range(first, last + 1):
        if number in wanting:
            continue
        try:
            simplejpeg.decode_jpeg((folder / pictures.name(number)).read_bytes())
        except ValueError as error:
            reason = f"broken picture ({error})"
            found.append(Damage(start=pictures.time_of(number), end=pictures.time_of(number + 1), reason=reason))
    return found


class _Pending:
    """The damage that has begun and not yet ended, as packets go by in decoding order."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._last = 0.0

    def packet(self, time: float | None, *, is_key: bool) -> list[Damage]:
        """Note a packet's time (s); a key frame ends the damage before it."""
        closed = []
        if self._since is not None and time is not None:
            if is_key and time > self._since:
                closed.append(Damage(start=self._since, end=time, reason="broken frames"))
                self._since = None
            else:
                self._since = min(self._since, time)  # decoded after the broken one, shown before it
        if time is not None:
            self._last = time
        return closed

    def damaged(self, time: float | None) -> None:
        """Note that the packet at `time` (s) is broken."""
        at = self._last if time is None else time
        self._since = at if self._since is None else min(self._since, at)

    def finish(self, end: float) -> list[Damage]:
        """Close what is open at the end of the stretch."""
        if self._since is None:
            return []
        return [Damage(start=self._since, end=max(end, self._since), reason="broken frames")]


def _decodes(packet: av.Packet) -> bool:
    try:
        return not any(frame.is_corrupt for frame in packet.decode())
    except av.FFmpegError:
        return False


def merge(damage: Iterable[Damage], *, start: float, end: float) -> tuple[Damage, ...]:
    """Return the damage cut to `start … end` (s), sorted, overlapping stretches joined with all their reasons."""
    cut = [
        Damage(start=max(d.start, start), end=min(d.end, end), reason=d.reason)
        for d in damage
        if d.end > start and d.start < end
    ]
    joined: list[Damage] = []
    for d in sorted(cut, key=lambda d: (d.start, d.end, d.reason)):
        if joined and d.start <= joined[-1].end:
            last = joined[-1]
            reasons = last.reason if d.reason in last.reason.split(", ") else f"{last.reason}, {d.reason}"
            joined[-1] = Damage(start=last.start, end=max(last.end, d.end), reason=reasons)
        else:
            joined.append(d)
    return tuple(joined)
