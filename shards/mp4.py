"""Parses the packet table of an H.264 mp4: where each packet is, and which frame it shows.

It handles only the mp4 files in shards, unfragmented with a single video track, in a tenth of the 1.4 ms in which
libavformat opens one. Whatever would make frame n of a player another one than frame n of the table is refused: an edit
list that hides frames, a second track, fragments, rotation. Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 14496-15 (avcC,
length-prefixed NAL units) and ITU-T H.264 7.4.1 (nal_ref_idc, nal_unit_type).

Shapes in names: P packets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_MAX_PACKETS = 1 << 20  # per sample: ten hours at 30 frames/s
_SLICES = (1, 5)  # NAL unit types of slices: of non-IDR and of IDR frames
_IDR = 5
_UPRIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)  # the identity as a transformation matrix
_COPY = "copy the video alone into a new file: ffmpeg -i IN -map 0:v:0 -c copy OUT.mp4"
_ENCODE = "encode it again: ffmpeg -i IN -map 0:v:0 -c:v libx264 -pix_fmt yuv420p OUT.mp4"

Span = tuple[int, int]  # first byte and end of a box's contents
Boxes = list[tuple[bytes, Span]]


class Mp4Error(ValueError):
    """Bytes that are not an mp4 as shards store it: truncated, damaged, or of another kind."""


class UnsupportedMp4Error(Mp4Error):
    """A sound mp4 that shards do not store: not exactly one upright H.264 track of which every frame is shown."""


@dataclass(frozen=True)
class ContainerColour:
    """Colours as the container states them (`colr` box), by the code points of ITU-T H.273."""

    matrix: int
    full_range: bool | None  # None where the box does not say


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a track is encoded, as its sample description states it."""

    extradata: bytes  # avcC box: the decoder configuration
    width: int  # px
    height: int  # px
    colour: ContainerColour | None
    pixel_aspect: Fraction | None  # width / height of a pixel (`pasp` box)

    @property
    def nal_length(self) -> int:
        """The bytes of the length prefix of a NAL unit."""
        return (self.extradata[4] & 3) + 1


@dataclass(frozen=True, kw_only=True)
class PacketTable:
    """The packets of one track in decoding order."""

    encoding: Encoding
    offset_P: np.ndarray  # int64, bytes from the start of the mp4
    size_P: np.ndarray  # int64, bytes
    frame_P: np.ndarray  # int64, number of the packet's frame in presentation order, from 0
    key_at: np.ndarray  # int64, packet numbers of the key frames, ascending; the first is 0

    @property
    def extradata(self) -> bytes:
        """The contents of the avcC box."""
        return self.encoding.extradata

    def needed(self, mp4: bytes, frames: np.ndarray) -> list[int]:
        """Return the numbers of the packets, in decoding order, that must be decoded to obtain `frames`.

        These are, from each GOP with a wanted frame, the packets up to the last wanted one, without unwanted frames
        that no other frame references. Raises `Mp4Error` where a packet is damaged or a GOP has no IDR frame.
        """
        packet_of = np.empty(len(self.frame_P), np.int64)
        packet_of[self.frame_P] = np.arange(len(self.frame_P))
        wanted = np.unique(packet_of[frames])
        gop_of = np.searchsorted(self.key_at, wanted, side="right") - 1
        wanted_set = set(wanted.tolist())
        needed: list[int] = []
        for gop in np.unique(gop_of).tolist():
            key, last = int(self.key_at[gop]), int(wanted[gop_of == gop][-1])
            if (self._slice_header(mp4, key) or 0) & 0x1F != _IDR:
                raise Mp4Error(f"packet {key} is listed as a key frame, but is not an IDR frame")
            for packet in range(key, last + 1):
                if self.is_referenced(mp4, packet) or packet in wanted_set:
                    needed.append(packet)
        return needed

    def is_referenced(self, mp4: bytes, packet: int) -> bool:
        """Return whether other frames may reference a packet's frame, by `nal_ref_idc` of its first slice."""
        header = self._slice_header(mp4, packet)
        return header is None or bool(header & 0x60)

    def _slice_header(self, mp4: bytes, packet: int) -> int | None:
        """Return the first byte of a packet's first slice; None without any. Raises `Mp4Error` for wrong lengths."""
        at = int(self.offset_P[packet])
        end = at + int(self.size_P[packet])
        prefix, header = self.encoding.nal_length, None
        while at < end:
            start = at + prefix
            at = start + int.from_bytes(mp4[at:start], "big")
            if not start < at <= end:
                raise Mp4Error(f"packet {packet}: its NAL units do not add up to its {self.size_P[packet]} bytes")
            if header is None and mp4[start] & 0x1F in _SLICES:
                header = mp4[start]
        return header


def read_packets(mp4: bytes) -> PacketTable:
    """Return the packet table of a sample's mp4.

    Raises `UnsupportedMp4Error` for an mp4 of another kind than shards store, and `Mp4Error` for any other bytes.
    """
    file = list(_boxes(mp4, (0, len(mp4))))
    moov = list(_boxes(mp4, _child(file, b"moov")))
    track = _only_track(mp4, file, moov)
    media = list(_boxes(mp4, _child(track, b"mdia")))
    information = list(_boxes(mp4, _child(media, b"minf")))
    table = list(_boxes(mp4, _child(information, b"stbl")))
    encoding = _encoding(mp4, _child(table, b"stsd"))
    size_P = _sizes(mp4, _child(table, b"stsz"))
    offset_P = _offsets(mp4, table, size_P)
    _require_inside(file, offset_P, size_P, len(mp4))
    time_P = _times(mp4, table, len(size_P))
    scales = (_time_scale(mp4, _child(moov, b"mvhd")), _time_scale(mp4, _child(media, b"mdhd")))
    _require_all_shown(mp4, track, scales, int(time_P.min()), int(time_P.max()))
    order = np.argsort(time_P)
    frame_P = np.empty(len(size_P), np.int64)
    frame_P[order] = np.arange(len(size_P))
    key_at = _keys(mp4, table, frame_P)
    return PacketTable(encoding=encoding, offset_P=offset_P, size_P=size_P, frame_P=frame_P, key_at=key_at)


def _boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, Span]]:
    """Yield (name, (start, end) of the contents) of the boxes in a range of bytes."""
    at, end = span
    while at + 8 <= end:
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = end - at
        if size < head or at + size > end:
            raise Mp4Error(f"byte {at}: a box of {size} bytes does not fit: truncated, or not an mp4")
        yield data[at + 4 : at + 8], (at + head, at + size)
        at += size


def _find(boxes: Boxes, name: bytes) -> Span | None:
    """Return the contents of the box `name`, None without it; raise `Mp4Error` if there are several."""
    found = [span for other, span in boxes if other == name]
    if len(found) > 1:
        raise Mp4Error(f"{len(found)} {name.decode()} boxes in one place")
    return found[0] if found else None


def _child(boxes: Boxes, name: bytes) -> Span:
    span = _find(boxes, name)
    if span is None:
        raise Mp4Error(f"missing {name.decode()} box")
    return span


def _unpack(layout: str, data: bytes, span: Span, skip: int) -> tuple[int, ...]:
    """Return the big-endian numbers of `struct`'s `layout` in a box after `skip` bytes."""
    start = span[0] + skip
    if start + struct.calcsize(layout) > span[1]:
        raise Mp4Error(f"byte {span[0]}: a box of {span[1] - span[0]} bytes is too short")
    return struct.unpack_from(layout, data, start)


def _rows(data: bytes, span: Span, skip: int, columns: int) -> np.ndarray:
    """Return the table of a box, (rows, `columns`) int64: 32-bit numbers after `skip` bytes that end in their count."""
    (count,) = _unpack(">I", data, span, skip - 4)
    if count > _MAX_PACKETS or span[0] + skip + 4 * columns * count > span[1]:
        raise Mp4Error(f"byte {span[0]}: a table of {count} rows does not fit into {span[1] - span[0]} bytes")
    numbers = np.frombuffer(data, ">u4", count * columns, span[0] + skip)
    return numbers.astype(np.int64).reshape(count, columns)


def _only_track(mp4: bytes, file: Boxes, moov: Boxes) -> Boxes:
    """Return the boxes of the video track; raise `UnsupportedMp4Error` if it is not the only one, or not upright."""
    tracks = [list(_boxes(mp4, span)) for name, span in moov if name == b"trak"]
    kinds = [_handler(mp4, track) for track in tracks]
    if _find(moov, b"mvex") or any(name in (b"moof", b"sidx", b"styp") for name, _ in file):
        raise UnsupportedMp4Error(f"the mp4 is fragmented; {_COPY}")
    if kinds != ["vide"]:
        named = ", ".join(kinds) or "none"
        raise UnsupportedMp4Error(f"expected a single video track (vide), found {len(kinds)} tracks: {named}; {_COPY}")
    for span, at in ((_child(tracks[0], b"tkhd"), (40, 52)), (_child(moov, b"mvhd"), (36, 48))):
        (version,) = _unpack(">B", mp4, span, 0)
        start = span[0] + at[version == 1]
        if mp4[start : min(start + 36, span[1])] != _UPRIGHT:
            raise UnsupportedMp4Error(f"the video is to be shown rotated or mirrored; {_ENCODE}")
    return tracks[0]


def _handler(mp4: bytes, track: Boxes) -> str:
    span = _child(list(_boxes(mp4, _child(track, b"mdia"))), b"hdlr")
    return mp4[span[0] + 8 : min(span[0] + 12, span[1])].decode("ascii", "replace")


def _encoding(mp4: bytes, stsd: Span) -> Encoding:
    entries = list(_boxes(mp4, (stsd[0] + 8, stsd[1])))
    if _unpack(">I", mp4, stsd, 4) != (1,) or len(entries) != 1:
        raise UnsupportedMp4Error(f"expected one encoding, found {len(entries)}; {_ENCODE}")
    name, span = entries[0]
    if name != b"avc1":
        raise UnsupportedMp4Error(f"the video is {name.decode('ascii', 'replace')}, not H.264 (avc1); {_ENCODE}")
    width, height = _unpack(">2H", mp4, span, 24)
    boxes = list(_boxes(mp4, (span[0] + 78, span[1])))  # after the 78 bytes of a VisualSampleEntry
    extradata = _avcc(mp4, _child(boxes, b"avcC"))
    aspect = _find(boxes, b"pasp")
    across, down = _unpack(">2I", mp4, aspect, 0) if aspect else (0, 0)
    return Encoding(
        extradata=extradata,
        width=width,
        height=height,
        colour=_colour(mp4, boxes),
        pixel_aspect=Fraction(across, down) if across and down else None,
    )


def _avcc(mp4: bytes, span: Span) -> bytes:
    """Return the decoder configuration after checking that its parameter sets are whole."""
    data, at = mp4[span[0] : span[1]], 5
    is_sound = len(data) > 6 and data[0] == 1 and data[4] & 3 != 2 and data[5] & 0x1F == 1
    for kind in (7, 8):  # sequence parameter sets, then picture parameter sets
        if not is_sound or at >= len(data):
            raise Mp4Error("the avcC box is damaged, or has not exactly one sequence parameter set")
        count, at = data[at] & 0x1F, at + 1
        for _ in range(count):
            start, at = at + 2, at + 2 + int.from_bytes(data[at : at + 2], "big")
            is_sound &= start < at <= len(data) and data[start] & 0x9F == kind
            is_sound &= kind != 7 or data[start + 1 : start + 4] == data[1:4]  # profile and level, stated twice
    if not is_sound:
        raise Mp4Error("the avcC box is damaged: its parameter sets contradict it")
    return data


def _colour(mp4: bytes, boxes: Boxes) -> ContainerColour | None:
    for name, span in boxes:
        kind = mp4[span[0] : span[0] + 4]
        if name == b"colr" and kind in (b"nclx", b"nclc"):
            matrix = _unpack(">H", mp4, span, 8)[0]
            is_full = bool(_unpack(">B", mp4, span, 10)[0] & 0x80) if kind == b"nclx" else None
            return ContainerColour(matrix, is_full)
    return None


def _sizes(mp4: bytes, stsz: Span) -> np.ndarray:
    uniform, count = _unpack(">2I", mp4, stsz, 4)
    if not 0 < count <= _MAX_PACKETS:
        raise Mp4Error(f"expected 1 … {_MAX_PACKETS} packets, found {count}")
    size_P = np.full(count, uniform, np.int64) if uniform else _rows(mp4, stsz, 12, 1)[:, 0]
    if size_P.min() < 1:
        raise Mp4Error(f"packet {size_P.argmin()} is empty")
    return size_P


def _offsets(mp4: bytes, table: Boxes, size_P: np.ndarray) -> np.ndarray:
    """Return the offset of each packet, (P,), from those of chunks (stco, co64) and their numbers of packets (stsc)."""
    if large := _find(table, b"co64"):
        halves = _rows(mp4, large, 8, 2)
        chunk_at = (halves[:, 0] << 32) + halves[:, 1]
    else:
        chunk_at = _rows(mp4, _child(table, b"stco"), 8, 1)[:, 0]
    runs = _rows(mp4, _child(table, b"stsc"), 8, 3)
    if not len(runs) or runs[0, 0] != 1 or (np.diff(runs[:, 0]) <= 0).any() or runs[-1, 0] > len(chunk_at):
        raise Mp4Error("the chunk table is damaged")
    if (runs[:, 2] != 1).any():
        raise Mp4Error("packets refer to a second sample description")
    per_chunk = np.repeat(runs[:, 1], np.diff(np.append(runs[:, 0], len(chunk_at) + 1)))
    if per_chunk.sum() != len(size_P) or per_chunk.min() < 1:
        raise Mp4Error(f"the chunks have {per_chunk.sum()} packets, but {len(size_P)} sizes are listed")
    before = np.cumsum(size_P) - size_P
    first = np.cumsum(per_chunk) - per_chunk
    offset_P: np.ndarray = np.repeat(chunk_at - before[first], per_chunk) + before
    return offset_P


def _require_inside(file: Boxes, offset_P: np.ndarray, size_P: np.ndarray, length: int) -> None:
    """Raise `Mp4Error` unless every packet lies in a media data box."""
    inside = np.zeros(len(size_P), bool)
    for name, (start, end) in file:
        if name == b"mdat":
            inside |= (offset_P >= start) & (offset_P <= end - size_P)
    if not inside.all():
        raise Mp4Error(f"packet {inside.argmin()} is outside the media data of these {length} bytes: truncated?")


def _times(mp4: bytes, table: Boxes, count: int) -> np.ndarray:
    """Return the presentation time of each packet, (P,), in units of the media's time scale."""
    step_P = _runs(mp4, _child(table, b"stts"), count)
    time_P: np.ndarray = np.cumsum(step_P) - step_P
    if offsets := _find(table, b"ctts"):
        time_P = time_P + _runs(mp4, offsets, count)
    step = int(step_P[0])
    gaps = np.diff(np.sort(time_P))
    if (gaps == 0).any() or step_P[:-1].min(initial=1) < 1:
        raise Mp4Error("two frames have the same time")
    is_even = count > 1 and bool((step_P[:-1] == step).all())
    if is_even and (2 * np.abs(gaps - step) >= step).any():
        raise Mp4Error("packets follow each other evenly, but their frames do not: the table of times is damaged")
    return time_P


def _runs(mp4: bytes, span: Span, count: int) -> np.ndarray:
    """Return the `count` values of a run-length encoded table (stts, ctts)."""
    runs = _rows(mp4, span, 8, 2)
    if runs[:, 0].sum() != count:
        raise Mp4Error(f"a table of times covers {runs[:, 0].sum()} of {count} packets")
    signed = np.where(runs[:, 1] >= 1 << 31, runs[:, 1] - (1 << 32), runs[:, 1])
    return np.repeat(signed, runs[:, 0])


def _time_scale(mp4: bytes, span: Span) -> int:
    """Return the units per second of a movie or media header."""
    (version,) = _unpack(">B", mp4, span, 0)
    (scale,) = _unpack(">I", mp4, span, 20 if version == 1 else 12)
    if not scale:
        raise Mp4Error("the time scale is 0")
    return scale


def _require_all_shown(mp4: bytes, track: Boxes, scales: tuple[int, int], first: int, last: int) -> None:
    """Raise `UnsupportedMp4Error` unless the edit list, if any, is the identity: it shows every frame from time 0 on.

    With B-frames, frames are presented later than decoded, and the identity starts at the time `first` of the first
    frame rather than at 0; this is how libavformat writes it. `last` is the time of the last frame, `scales` are those
    of movie and media.
    """
    edits = _find(track, b"edts")
    span = _find(list(_boxes(mp4, edits)), b"elst") if edits else None
    if span is None:
        return
    (version, count) = (*_unpack(">B", mp4, span, 0), *_unpack(">I", mp4, span, 4))
    if count == 0:
        return
    duration, start, rate = _unpack(">QqI" if version == 1 else ">IiI", mp4, span, 8)
    movie, media = scales
    end = start + duration * media / movie
    if count != 1 or rate != 1 << 16 or not 0 <= start <= first or end <= last:
        raise UnsupportedMp4Error(
            f"an edit list hides, delays or repeats frames ({count} entries, the first shows media time {start} … "
            f"{end:.0f} of {first} … {last}); {_ENCODE}"
        )


def _keys(mp4: bytes, table: Boxes, frame_P: np.ndarray) -> np.ndarray:
    """Return the packets of key frames, all of which must start a closed GOP."""
    listed = _find(table, b"stss")
    key_at = _rows(mp4, listed, 8, 1)[:, 0] - 1 if listed else np.arange(len(frame_P))
    if not len(key_at) or key_at[0] != 0 or key_at.max() >= len(frame_P) or (np.diff(key_at) <= 0).any():
        raise Mp4Error("the first frame is not a key frame, or the table of key frames is damaged")
    shown_before = np.append(-1, np.maximum.accumulate(frame_P)[:-1])
    if (frame_P[key_at] != key_at).any() or (shown_before[key_at] >= key_at).any():
        raise UnsupportedMp4Error(f"a key frame is shown after frames that follow it (open GOPs); {_ENCODE}")
    return key_at
