"""Checksums of a file's blocks, so that each read of a part is checked without reading the whole file."""

from __future__ import annotations

import zlib
from array import array

BLOCK = 1 << 14  # bytes; a clip has some ten blocks, and their CRC-32 takes about 0.03 ms


class BlockSums:
    """The CRC-32 of each block of a file, gathered while its bytes arrive in order."""

    def __init__(self) -> None:
        self._done = array("I")
        self._sum = self._filled = 0

    def update(self, data: bytes) -> None:
        """Add the next bytes of the file."""
        view = memoryview(data)
        while view:
            part = view[: BLOCK - self._filled]
            self._sum = zlib.crc32(part, self._sum)
            self._filled += len(part)
            if self._filled == BLOCK:
                self._done.append(self._sum)
                self._sum = self._filled = 0
            view = view[len(part) :]

    def table(self) -> array[int]:
        """Return the checksums of all blocks, of which the last may be shorter."""
        return self._done + array("I", [self._sum] if self._filled else [])


def pack(sums: array[int]) -> bytes:
    """Return checksums as the bytes of a file, which end in a checksum of their own."""
    data = sums.tobytes()
    return data + zlib.crc32(data).to_bytes(4, "little")


def unpack(data: bytes, size: int) -> array[int] | None:
    """Return the checksums of a file of `size` bytes; None if the data are not those of such a file."""
    if len(data) != 4 * -(-size // BLOCK) + 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    sums = array("I")
    sums.frombytes(data[:-4])
    return sums


def covering(offset: int, size: int, total: int) -> tuple[int, int]:
    """Return begin and end of the whole blocks that hold `size` bytes at `offset` of a file of `total` bytes."""
    return offset // BLOCK * BLOCK, min(-(-(offset + size) // BLOCK) * BLOCK, total)


def are_right(data: bytes, begin: int, sums: array[int]) -> bool:
    """Return whether bytes that begin at a block of the file have the checksums of its blocks."""
    view, first = memoryview(data), begin // BLOCK
    parts = range(0, len(view), BLOCK)
    return first + len(parts) <= len(sums) and all(
        zlib.crc32(view[at : at + BLOCK]) == sums[first + number] for number, at in enumerate(parts)
    )
