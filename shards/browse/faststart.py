"""Presents an mp4 whose table of packets (`moov`) comes last as one that begins with it, without copying the video.

A player that reads a file from its start then needs one request, not two. The stored bytes stay as they are: the result
is a list of pieces, some new, some ranges of the stored file. Source: ISO/IEC 14496-12, boxes `moov`, `stco`, `co64`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

_MAX_MOOV = 16 << 20  # bytes
_MAX_BOXES = 64  # of a file
_PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})

Read = Callable[[int, int], bytes]  # offset, size → bytes
Piece = bytes | tuple[int, int]  # new bytes, or first byte and size of a range of the stored file


def pieces(read: Read, size: int) -> list[Piece]:
    """Return the pieces of an mp4 of `size` bytes with `moov` before the media.

    Where it is there already, or the file is not understood, the only piece is the whole file.
    """
    whole: list[Piece] = [(0, size)]
    boxes = _top_level(read, size)
    names = [name for name, _, _ in boxes]
    if names.count(b"moov") != 1 or b"mdat" not in names or names.index(b"moov") < names.index(b"mdat"):
        return whole
    _, moov_at, moov_size = boxes[names.index(b"moov")]
    if moov_size > _MAX_MOOV:
        return whole
    moov = bytearray(read(moov_at, moov_size))
    target = next(at for name, at, _ in boxes if name == b"mdat")  # where it goes: before the first media
    try:
        _shift_offsets(moov, range(target, moov_at), moov_size)
    except (struct.error, ValueError):
        return whole
    after = moov_at + moov_size
    parts: list[Piece] = [(0, target), bytes(moov), (target, moov_at - target), (after, size - after)]
    return [piece for piece in parts if isinstance(piece, bytes) or piece[1]]


def slices(parts: Sequence[Piece], begin: int, end: int) -> Iterator[Piece]:
    """Yield the pieces of the bytes `begin` … `end` − 1 of what `parts` are together."""
    at = 0
    for part in parts:
        length = len(part) if isinstance(part, bytes) else part[1]
        low, high = max(begin - at, 0), min(end - at, length)
        if low < high:
            yield part[low:high] if isinstance(part, bytes) else (part[0] + low, high - low)
        at += length


def _top_level(read: Read, size: int) -> list[tuple[bytes, int, int]]:
    """Return name, offset and size of the boxes of a file; an empty list if they do not tile it."""
    boxes: list[tuple[bytes, int, int]] = []
    at = 0
    while at + 8 <= size and len(boxes) < _MAX_BOXES:
        head = read(at, min(16, size - at))
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:
            length = size - at
        if length < 8 or at + length > size:
            return []
        boxes.append((head[4:8], at, length))
        at += length
    return boxes if at == size else []


def _shift_offsets(moov: bytearray, moved: range, by: int) -> None:
    """Add `by` to all chunk offsets in `moved`; raise `ValueError` or `struct.error` where that is not possible."""
    todo = [(0, len(moov))]
    while todo:
        at, end = todo.pop()
        while at + 8 <= end:
            length, name = int.from_bytes(moov[at : at + 4], "big"), bytes(moov[at + 4 : at + 8])
            if length < 8 or at + length > end:
                raise ValueError(f"a box of {length} bytes does not fit")
            if name in _PARENTS:
                todo.append((at + 8, at + length))
            elif name in (b"stco", b"co64"):
                (count,) = struct.unpack_from(">I", moov, at + 12)
                layout = f">{count}{'I' if name == b'stco' else 'Q'}"
                if 16 + struct.calcsize(layout) > length:
                    raise ValueError(f"{count} offsets do not fit into {length} bytes")
                offsets = struct.unpack_from(layout, moov, at + 16)
                struct.pack_into(layout, moov, at + 16, *(o + by if o in moved else o for o in offsets))
            at += length
