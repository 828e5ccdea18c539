"""Checksums of blocks find every change in what is read, however the bytes arrived."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from shards.remote.sums import BLOCK, BlockSums, are_right, covering, pack, unpack


@given(st.integers(0, 5 * BLOCK), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_read_is_right_exactly_if_its_blocks_are(total: int, seed: int) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(total)
    sums, at = BlockSums(), 0
    while at < total:
        step = rng.randint(1, 2 * BLOCK)
        sums.update(data[at : at + step])
        at += step
    table = unpack(pack(sums.table()), total)
    assert table == sums.table()
    offset = rng.randint(0, total)
    size = rng.randint(0, total - offset)
    begin, end = covering(offset, size, total)
    assert begin <= offset and offset + size <= end <= total
    part = bytearray(data[begin:end])
    assert are_right(part, begin, table)
    if part:
        part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
        assert not are_right(part, begin, table)


def test_a_table_of_another_file_or_with_a_changed_byte_is_refused() -> None:
    sums = BlockSums()
    sums.update(bytes(3 * BLOCK + 5))
    packed = pack(sums.table())
    assert unpack(packed, 3 * BLOCK + 5) is not None and unpack(packed, 4 * BLOCK + 5) is None
    for at in range(len(packed)):
        assert unpack(packed[:at] + bytes([packed[at] ^ 16]) + packed[at + 1 :], 3 * BLOCK + 5) is None
        assert unpack(packed[:at], 3 * BLOCK + 5) is None
    assert not are_right(bytes(BLOCK), 4 * BLOCK, sums.table())  # beyond the end
