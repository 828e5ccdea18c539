"""An mp4 shown with its table first has the same packets and frames, whatever part of it is asked for."""

from __future__ import annotations

import io
import struct

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.browse.faststart import Piece, pieces, slices
from shards.mp4 import read_packets
from tests.media import coded_mp4, make_mp4

STORED = make_mp4(12, seed=3)


def laid_out(stored: bytes, parts: list[Piece]) -> bytes:
    return b"".join(part if isinstance(part, bytes) else stored[part[0] : part[0] + part[1]] for part in parts)


def rearranged(stored: bytes) -> bytes:
    return laid_out(stored, pieces(lambda at, size: stored[at : at + size], len(stored)))


def frames_of(mp4: bytes) -> list[bytes]:
    with av.open(io.BytesIO(mp4)) as container:
        return [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]


@pytest.mark.parametrize("stored", [STORED, coded_mp4(0, 70), coded_mp4(5, 3, fps=2, gop=8)])
def test_the_table_comes_first_and_every_frame_is_the_same(stored: bytes) -> None:
    shown = rearranged(stored)
    assert stored.index(b"mdat") < stored.index(b"moov"), "as shards store it"
    assert shown.index(b"moov") < shown.index(b"mdat") and len(shown) == len(stored)
    assert frames_of(shown) == frames_of(stored)
    before, after = read_packets(stored), read_packets(shown)
    for a, b, size in zip(before.offset_P, after.offset_P, before.size_P, strict=True):
        assert stored[a : a + size] == shown[b : b + size]


def test_a_file_that_begins_with_its_table_stays() -> None:
    first = rearranged(STORED)
    assert rearranged(first) == first


@given(st.integers(0, len(STORED)), st.integers(0, len(STORED)))
def test_any_range_is_that_of_the_whole(begin: int, end: int) -> None:
    parts = pieces(lambda at, size: STORED[at : at + size], len(STORED))
    assert laid_out(STORED, list(slices(parts, begin, end))) == laid_out(STORED, parts)[begin:end]


@given(st.data())
def test_damaged_bytes_are_served_as_they_are_or_rearranged_but_never_lost(data: st.DataObject) -> None:
    damaged = bytearray(STORED)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    assert len(rearranged(cut)) == len(cut)


def test_offsets_of_64_bits_are_shifted_and_those_that_would_overflow_are_not() -> None:
    def box(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + name + content

    def file(table: bytes) -> bytes:
        inner = box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", table)))))
        return box(b"ftyp", b"isom") + box(b"mdat", b"0123456789") + inner

    large = file(box(b"co64", struct.pack(">IIQQ", 0, 2, 20, 25)))
    shown = rearranged(large)
    offsets = struct.unpack_from(">QQ", shown, shown.index(b"co64") + 12)
    assert [shown[offset : offset + 1] for offset in offsets] == [large[20:21], large[25:26]]
    wrong = file(box(b"stco", struct.pack(">III", 0, 9, 20)))  # states more offsets than it has
    assert rearranged(wrong) == wrong
