"""Reads the sample tables and the edit list of a video track in an mp4 or mov, without reading its media data.

The tables say where every packet lies and when it is shown; libav's own timestamps are not needed for that and are
wrong where a track has several edits. Sources: ISO/IEC 14496-12, 8.6 (time), 8.7 (data layout), and Apple's QuickTime
File Format Specification (edit atoms).

Shapes in names: P packets, in decoding order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

_MAX_MOOV = 1 << 29  # bytes; the tables of a day of video at 60 frames/s take 150 MB
_MAX_PACKETS = 1 << 25  # three days at 120 frames/s
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")


class TablesError(ValueError):
    """Tables that are absent, damaged or of a kind that is not read here, as those of fragmented files."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One entry of an edit list."""

    duration: int  # ticks of the movie; 0: to the end of the media
    media_time: int  # ticks of the track at which it begins; −1: nothing is shown
    rate: float  # 1: normal speed; 0: a single frame is held


@dataclass(frozen=True, kw_only=True)
class TrackTables:
    """The packets of one track."""

    timescale: int  # ticks of the track per second
    movie_timescale: int  # ticks of the movie per second
    pts_P: np.ndarray  # int64, ticks of the track, before edits
    duration_P: np.ndarray  # int64, ticks
    key_P: np.ndarray  # bool
    pos_P: np.ndarray  # int64, byte offset in the file
    size_P: np.ndarray  # int64, bytes
    edits: tuple[Edit, ...]


def read_tables(path: Path, track_id: int) -> TrackTables:
    """Return the tables of the track `track_id` of the file at `path`.

    Raises `TablesError` where they cannot be read, and `OSError` where the file cannot.
    """
    with path.open("rb") as file:
        moov = _moov(file)
    try:
        return _track(moov, track_id)
    except (struct.error, IndexError, OverflowError, MemoryError) as error:
        raise TablesError(f"damaged tables: {error}") from error


def _moov(file: BinaryIO) -> bytes:
    """Return the contents of the movie box of a file."""
    end = file.seek(0, 2)
    at = 0
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16)
        size, length = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, length = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:
            size = end - at
        if head[4:8] == b"moov":
            if not length <= size <= min(_MAX_MOOV, end - at):
                raise TablesError(f"the movie box of {size} bytes does not fit the file")
            file.seek(at + length)
            return file.read(size - length)
        if size < length:
            break
        at += size
    raise TablesError("no movie box")


def _track(moov: bytes, track_id: int) -> TrackTables:
    boxes = list(_boxes(moov, 0, len(moov)))
    if any(name == b"mvex" for name, _, _ in boxes):
        raise TablesError("a fragmented file")
    (_, start, _) = _only(boxes, b"mvhd")
    movie_timescale = _header_number(moov, start)
    for name, start, end in boxes:
        if name != b"trak":
            continue
        inside = dict(_tree(moov, start, end))
        (at, _) = _need(inside, b"tkhd")
        (number,) = struct.unpack_from(">I", moov, at + (20 if moov[at] == 1 else 12))
        if number == track_id:
            return _tables(moov, inside, movie_timescale)
    raise TablesError(f"no track {track_id}")


def _tables(data: bytes, boxes: dict[bytes, tuple[int, int]], movie_timescale: int) -> TrackTables:
    timescale = _header_number(data, _need(boxes, b"mdhd")[0])
    size_P = _sizes(data, *_need(boxes, b"stsz"))
    count = len(size_P)
    duration_P = _runs(data, *_need(boxes, b"stts"), count)
    pts_P = np.cumsum(duration_P) - duration_P
    if b"ctts" in boxes:
        pts_P = pts_P + _runs(data, *boxes[b"ctts"], count)
    key_P = np.ones(count, bool)
    if b"stss" in boxes:
        keys = _numbers(data, *boxes[b"stss"], ">u4", 1)
        if len(keys) and (keys.min() < 1 or keys.max() > count):
            raise TablesError("a key frame lies outside the track")
        key_P[:] = False
        key_P[keys - 1] = True
    return TrackTables(
        timescale=timescale,
        movie_timescale=movie_timescale,
        pts_P=pts_P,
        duration_P=duration_P,
        key_P=key_P,
        pos_P=_offsets(data, boxes, size_P),
        size_P=size_P,
        edits=tuple(_edits(data, *boxes[b"elst"])) if b"elst" in boxes else (),
    )


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of the contents of the boxes in a range of bytes."""
    at = start
    while at + 8 <= end:
        size, length = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, length = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = end - at
        if size < length or at + size > end:
            raise TablesError(f"a box of {size} bytes does not fit")
        yield data[at + 4 : at + 8], at + length, at + size
        at += size


def _tree(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield (name, (start, end)) of a track's boxes at every depth."""
    for name, inner, stop in _boxes(data, start, end):
        if name in _CONTAINERS:
            yield from _tree(data, inner, stop)
        else:
            yield name, (inner, stop)


def _only(boxes: list[tuple[bytes, int, int]], name: bytes) -> tuple[bytes, int, int]:
    found = [box for box in boxes if box[0] == name]
    if len(found) != 1:
        raise TablesError(f"{len(found)} boxes {name.decode()}")
    return found[0]


def _need(boxes: dict[bytes, tuple[int, int]], name: bytes) -> tuple[int, int]:
    if name not in boxes:
        raise TablesError(f"missing {name.decode()} box")
    return boxes[name]


def _header_number(data: bytes, at: int) -> int:
    """Return the timescale in a movie or media header."""
    (value,) = struct.unpack_from(">I", data, at + (20 if data[at] == 1 else 12))
    if not value:
        raise TablesError("a timescale of 0")
    return int(value)


def _numbers(data: bytes, start: int, end: int, kind: str, columns: int) -> np.ndarray:
    """Return the table that follows a version, flags and a count, as int64 (rows, columns), or (rows,) for one."""
    (rows,) = struct.unpack_from(">I", data, start + 4)
    if rows > _MAX_PACKETS or start + 8 + rows * columns * np.dtype(kind).itemsize > end:
        raise TablesError(f"a table of {rows} rows does not fit its box")
    table = np.frombuffer(data, kind, rows * columns, start + 8).astype(np.int64)
    return table if columns == 1 else table.reshape(rows, columns)


def _sizes(data: bytes, start: int, end: int) -> np.ndarray:
    uniform, count = struct.unpack_from(">II", data, start + 4)
    if not 0 < count <= _MAX_PACKETS:
        raise TablesError(f"{count} packets")
    return np.full(count, uniform, np.int64) if uniform else _numbers(data, start + 4, end, ">u4", 1)


def _runs(data: bytes, start: int, end: int, count: int) -> np.ndarray:
    """Return the `count` values of a run-length encoded table of times (stts, ctts), int64."""
    pairs = _numbers(data, start, end, ">i4", 2)
    if (pairs[:, 0] < 0).any() or pairs[:, 0].sum() < count:
        raise TablesError("a table of times does not cover all packets")
    lengths = np.minimum(pairs[:, 0], count)
    return np.repeat(pairs[:, 1], lengths)[:count]


def _offsets(data: bytes, boxes: dict[bytes, tuple[int, int]], size_P: np.ndarray) -> np.ndarray:
    """Return the byte offset of each packet from those of chunks (stco, co64) and their numbers of packets (stsc)."""
    if b"co64" in boxes:
        chunk_at = _numbers(data, *boxes[b"co64"], ">i8", 1)
    else:
        chunk_at = _numbers(data, *_need(boxes, b"stco"), ">u4", 1)
    runs = _numbers(data, *_need(boxes, b"stsc"), ">u4", 3)
    if not len(runs) or runs[0, 0] != 1 or (np.diff(runs[:, 0]) <= 0).any() or runs[-1, 0] > len(chunk_at):
        raise TablesError("the chunk table is damaged")
    per_chunk = np.repeat(runs[:, 1], np.diff(np.append(runs[:, 0], len(chunk_at) + 1)))
    if per_chunk.min() < 1 or per_chunk.sum() < len(size_P):
        raise TablesError("the chunk table does not cover all packets")
    stop = np.minimum(np.cumsum(per_chunk), len(size_P))
    per_chunk = np.diff(stop, prepend=0)
    before = np.cumsum(size_P) - size_P
    first = np.minimum(stop - per_chunk, len(size_P) - 1)
    offset_P: np.ndarray = np.repeat(chunk_at - before[first], per_chunk) + before
    return offset_P


def _edits(data: bytes, start: int, end: int) -> Iterator[Edit]:
    version = data[start]
    (count,) = struct.unpack_from(">I", data, start + 4)
    entry = struct.Struct(">Qqhh" if version == 1 else ">Iihh")
    if start + 8 + count * entry.size > end:
        raise TablesError(f"an edit list of {count} entries does not fit its box")
    for number in range(count):
        duration, media_time, rate, fraction = entry.unpack_from(data, start + 8 + number * entry.size)
        yield Edit(duration=duration, media_time=media_time, rate=rate + fraction / 65536)
