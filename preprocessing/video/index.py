"""Reads the clock of a video file from its container, without decoding a frame.

An mp4 or mov is read from its own tables and edit list: libav's view of several edits is wrong, and a truncated file
still says where its packets should be. Everything else is demultiplexed once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from preprocessing.video.clock import (
    MAX_SECONDS,
    NO_TIME,
    ClockError,
    LostSpan,
    Packets,
    VideoClock,
    clock_of,
    finish,
)
from preprocessing.video.mp4_tables import Edit, TablesError, TrackTables, read_tables

# libav may open local media containers only. Otherwise a playlist disguised as a video could make it read other files
# or network addresses. Edit lists are applied by this project's own clock.
SAFE_INPUT = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,h264,hevc,m4v,mjpeg,gif,ivf",
}
_OWN_EDITS = {"ignore_editlist": "1"}
_ELEMENTARY = {"h264", "hevc", "m4v", "mpegvideo", "mjpeg"}  # streams of frames without a container, so without times
_HEADER_STATES_LENGTH = ("matroska", "avi", "flv")  # formats whose duration libav does not estimate from packets
_REMEDY = "export the video with its edits applied, as with: ffmpeg -i IN -c:v libx264 OUT.mp4"
_WITHOUT_PTS = ("avi",)  # what libav reports there are guesses


def open_source(path: Path, *, own_edits: bool = True) -> InputContainer:
    """Open a video file with libav, all of its packets and none of its edits applied.

    Bytes in tags that are not UTF-8 are ignored.
    """
    options = {**SAFE_INPUT, **(_OWN_EDITS if own_edits else {})}
    return av.open(str(path), options=options, metadata_errors="ignore")


def read_clock(path: Path, container: InputContainer, stream: VideoStream, *, limit: float = MAX_SECONDS) -> VideoClock:
    """Return the clock of `stream` in the open `container`, whose packets are read unless the file has tables.

    Nothing later than `limit` (s) is believed. Raises `ClockError` where its frames have no usable times.
    """
    name = container.format.name
    if name in _ELEMENTARY:
        codec = stream.codec_context.name
        raise ClockError(
            f"a bare {codec} stream without a container, whose frames have no times; wrap it, as with: ffmpeg "
            f"-framerate 30 -i {path.name} -c:v libx264 {path.stem}.mp4 (give its true rate)"
        )
    if "mp4" in name:
        try:
            tables = read_tables(path, stream.id)
        except TablesError:
            pass  # fragmented, or of a kind that only libav reads: demultiplexed below
        else:
            return _tables_clock(tables, path.stat().st_size, limit=limit)
    packets, end_of_all = _demultiplexed(container, stream)
    stated = 0.0
    if container.duration and any(word in name for word in _HEADER_STATES_LENGTH):
        stated = container.duration / 1e6
        if stated - end_of_all < 1.0:
            stated = 0.0  # as long as its packets, of whichever stream
    clock = clock_of(
        packets,
        trusts_pts=name not in _WITHOUT_PTS,
        rate=float(stream.average_rate or stream.guessed_rate or 0),
        stated_seconds=stated,
        limit=limit,
    )
    return _with_earlier_cues(clock, packets, container, stream) if "matroska" in name else clock


def _demultiplexed(container: InputContainer, stream: VideoStream) -> tuple[Packets, float]:
    """Return the packets of a stream, and when the last packet of any stream ends (s on the container's clock)."""
    assert stream.time_base is not None
    rows: list[tuple[int, int, int, bool, int, int]] = []
    latest: dict[int, tuple[int, float]] = {}
    packets = container.demux()
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError:
            break  # damaged or truncated here: what was read counts, the header says what is lost
        if packet.time_base is not None and packet.pts is not None:
            known = latest.get(packet.stream_index)
            if known is None or packet.pts > known[0]:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                latest[packet.stream_index] = (packet.pts, end)
        if packet.stream_index != stream.index or not packet.size:
            continue
        pts = NO_TIME if packet.pts is None else packet.pts
        dts = NO_TIME if packet.dts is None else packet.dts
        pos = -1 if packet.pos is None else packet.pos
        rows.append((pts, dts, packet.duration or 0, packet.is_keyframe, pos, packet.size))
    columns = np.array(rows, np.int64).reshape(-1, 6).T
    read = Packets(
        pts_P=columns[0],
        dts_P=columns[1],
        duration_P=columns[2],
        key_P=columns[3].astype(bool),
        pos_P=columns[4],
        size_P=columns[5],
        tick=float(stream.time_base),
    )
    return read, max((end for _, end in latest.values()), default=0.0)


def _with_earlier_cues(
    clock: VideoClock, packets: Packets, container: InputContainer, stream: VideoStream
) -> VideoClock:
    """Return the clock of a Matroska file, counted from its earliest cue where the packets before that are lost."""
    try:
        container.seek(0, stream=stream)  # only then does libav read the cues
    except av.FFmpegError:
        return clock
    cues = [entry.timestamp for entry in stream.index_entries if entry.timestamp is not None]
    first = int(packets.pts_P[packets.pts_P != NO_TIME].min()) if len(packets) else 0
    if clock.by_order or not cues or min(cues) >= first:
        return clock
    gap = (first - min(cues)) * packets.tick
    reason = "no packets where the index of the file names some"
    return replace(clock.moved(-gap), lost=(LostSpan(start=0.0, end=gap, reason=reason),))


def _tables_clock(tables: TrackTables, file_size: int, *, limit: float) -> VideoClock:
    """Return the clock of an mp4 or mov from its tables."""
    tick = 1 / tables.timescale
    time_P, end, notes = _edited(tables)
    start = float(np.nanmin(time_P)) if np.isfinite(time_P).any() else 0.0
    time_P = time_P - start
    packets = Packets(
        pts_P=tables.pts_P,
        dts_P=tables.pts_P,
        duration_P=tables.duration_P,
        key_P=tables.key_P,
        pos_P=tables.pos_P,
        size_P=tables.size_P,
        tick=tick,
    )
    clock = finish(
        time_P,
        np.maximum(tables.duration_P, 0) * tick,
        packets=packets,
        end=None if end is None else end - start,
        limit=limit,
        notes=notes,
    )
    absent = (tables.pos_P + tables.size_P > file_size) & np.isfinite(clock.time_P)
    if not absent.any():
        return clock
    if absent.sum() == np.isfinite(clock.time_P).sum():
        raise ClockError(f"the file is truncated: none of its frames lie within its {file_size} bytes")
    # Frames need what was decoded before them: nothing after the first absent packet of its group is of use.
    since = float(clock.time_P[absent].min())
    whole = int((tables.pos_P + tables.size_P).max())
    reason = f"the file is truncated: {file_size} of {whole} bytes"
    return replace(clock, lost=(LostSpan(start=since, end=clock.end, reason=reason),))


def _edited(tables: TrackTables) -> tuple[np.ndarray, float | None, list[str]]:
    """Return when each packet is shown (s on the movie's clock; NaN: hidden), the end (s; None: of the media), notes.

    Raises `ClockError` for edits that hold, repeat or reorder frames.
    """
    pts_P, tick = tables.pts_P, 1 / tables.timescale
    if not tables.edits:
        return pts_P * tick, None, []
    time_P = np.full(len(pts_P), np.nan)
    movie = _timed_edits(tables)
    notes, last_stop, end = [], -(2**62), None
    for edit, start, length in movie:
        if edit.media_time < 0:
            continue
        if edit.rate != 1:
            what = "holds a frame" if edit.rate == 0 else f"plays at {edit.rate:g} times its speed"
            raise ClockError(f"its edit list {what}; {_REMEDY}")
        if edit.media_time < last_stop:
            raise ClockError(f"its edit list repeats or reorders frames; {_REMEDY}")
        stop = 2**62 if length is None else edit.media_time + round(length * tables.timescale)
        shown = (pts_P >= edit.media_time) & (pts_P < stop)
        time_P[shown] = start + (pts_P[shown] - edit.media_time) * tick
        last_stop = stop
        end = None if length is None else start + length
    hidden = int(np.isnan(time_P).sum())
    if hidden:
        notes.append(f"its edit list hides {hidden} of {len(time_P)} frames")
    return time_P, end, notes


def _timed_edits(tables: TrackTables) -> list[tuple[Edit, float, float | None]]:
    """Return each edit with its start on the movie's clock and its length (s); None for the rest of the media."""
    at, rows = 0, []
    for number, edit in enumerate(tables.edits):
        is_open = edit.duration == 0 and number == len(tables.edits) - 1 and edit.media_time >= 0
        length = None if is_open else edit.duration / tables.movie_timescale
        rows.append((edit, at / tables.movie_timescale, length))
        at += edit.duration
    return rows
