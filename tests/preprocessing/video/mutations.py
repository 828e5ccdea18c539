"""Seeded mutations of video files: headers, indexes, packets, cuts, splices."""

from __future__ import annotations

import random
from collections.abc import Callable

Mutation = Callable[[bytearray, random.Random, bytes], bytearray]
_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def flipped_bits(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Flip up to 16 bits anywhere."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        _flip(data, rng.randrange(len(data)), rng)
    return data


def flipped_header(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Flip up to 4 bits of the first KiB."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        _flip(data, rng.randrange(min(1024, len(data))), rng)
    return data


def flipped_tail(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Flip up to 4 bits of the last 2 KiB, where most containers keep their index."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        _flip(data, len(data) - 1 - rng.randrange(min(2048, len(data))), rng)
    return data


def other_number(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Replace a number of 1, 2, 4 or 8 bytes in the first or last 2 KiB by an extreme or a neighbouring one."""
    size = rng.choice((1, 2, 4, 4, 4, 8))
    reach = min(2048, len(data) - size)
    at = rng.randrange(reach) if rng.random() < 0.5 else len(data) - size - rng.randrange(reach)
    old = int.from_bytes(data[at : at + size], "big")
    new = rng.choice((*_VALUES, old + 1, old - 1, old * 2, old // 2))
    data[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "big")
    return data


def overwritten(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Overwrite a part with zeros or noise."""
    at, size = rng.randrange(len(data)), rng.choice((8, 64, 512, 2048))
    size = min(size, len(data) - at)
    data[at : at + size] = bytes(size) if rng.random() < 0.5 else rng.randbytes(size)
    return data


def truncated(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Cut the end off."""
    return data[: rng.randrange(1, len(data))]


def cut_out(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Remove a part; half of the time whole packets of MPEG-TS."""
    at, size = rng.randrange(len(data)), rng.choice((1, 3, 188, 1000, 5000))
    if rng.random() < 0.5:
        at, size = at // 188 * 188, max(188, size // 188 * 188)
    return data[:at] + data[at + size :]


def repeated(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Repeat a part."""
    at, size = rng.randrange(len(data)), rng.choice((188, 1880, 4096))
    return data[: at + size] + data[at:]


def inserted(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Insert noise."""
    at = rng.randrange(len(data))
    return data[:at] + bytearray(rng.randbytes(rng.choice((1, 4, 188, 1000)))) + data[at:]


def exchanged(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Exchange two parts of equal size."""
    size = rng.choice((16, 188, 1024))
    a, b = sorted(rng.randrange(max(1, len(data) - size)) for _ in range(2))
    if b - a < size:
        return data
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return data


def spliced(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Go on with another video of the same kind, from anywhere or from its start."""
    at = rng.randrange(len(data))
    since = rng.choice((0, at, rng.randrange(len(other))))
    return data[:at] + bytearray(other[since:])


MUTATIONS: tuple[Mutation, ...] = (
    flipped_bits, flipped_header, flipped_tail, other_number, overwritten, truncated, cut_out, repeated, inserted,
    exchanged, spliced,
)  # fmt: skip


def mutate(data: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return the name of a mutation and the mutated bytes."""
    mutation = rng.choice(MUTATIONS)
    return mutation.__name__, bytes(mutation(bytearray(data), rng, other))
