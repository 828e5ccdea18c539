"""Sample tables and edit lists of mp4 and mov: every sample at its place and time, damaged ones refused."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.video.mp4_tables import Edit, TablesError, TrackTables, read_tables
from tests.preprocessing.video.containers import box, kinds, remux, rewritten, video, with_edits


def libav_packets(path: Path) -> list[tuple[int, int, int, bool]]:
    """Return (place, size, presentation time, is key) of the packets of a video's first track, as libav reads them."""
    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        stream = container.streams.video[0]
        return [(p.pos, p.size, p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]


def rows(tables: TrackTables) -> list[tuple[int, int, int, bool]]:
    columns = (tables.pos_P, tables.size_P, tables.pts_P, tables.key_P)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def wide(path: Path) -> Path:
    """Rewrite an mp4 with 64-bit times, offsets and sizes."""

    def change(name: bytes, content: bytes) -> bytes | None:
        if name in (b"mvhd", b"mdhd"):
            made, changed, scale, length = struct.unpack_from(">IIII", content, 4)
            return box(name, b"\1\0\0\0" + struct.pack(">QQIQ", made, changed, scale, length) + content[20:])
        if name == b"tkhd":
            made, changed, number, reserved, length = struct.unpack_from(">IIIII", content, 4)
            head = b"\1" + content[1:4] + struct.pack(">QQIIQ", made, changed, number, reserved, length)
            return box(name, head + content[24:])
        if name == b"stco":
            (count,) = struct.unpack_from(">I", content, 4)
            offsets = struct.unpack_from(f">{count}I", content, 8)
            return box(b"co64", content[:8] + struct.pack(f">{count}Q", *offsets))
        return None

    rewritten(path, change)
    data = bytearray(path.read_bytes())
    at = data.index(b"free")  # the 8 bytes that muxers leave for this
    size = int.from_bytes(data[at + 4 : at + 8], "big")
    data[at - 4 : at + 12] = struct.pack(">I4sQ", 1, b"mdat", size + 8)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_samples_have_the_place_size_time_and_key_that_libav_reads(suffix: str, b_frames: str, tmp_path: Path) -> None:
    path = video(tmp_path / f"v.{suffix}", 2, gop=11, options={"bf": b_frames})
    assert rows(read_tables(path, 1)) == libav_packets(path)


def test_tables_of_a_file_with_sound_are_those_of_the_video(tmp_path: Path) -> None:
    sound = ["-f", "lavfi", "-i", "sine=duration=2"]
    path = remux(video(tmp_path / "w.mp4", 2), tmp_path / "v.mp4", "-c:a", "aac", "-map", "0:a", "-map", "1:v",
                 before=sound)  # fmt: skip
    assert rows(read_tables(path, 2)) == libav_packets(path)
    assert len(rows(read_tables(path, 2))) == 60


def test_64_bit_times_offsets_and_sizes_are_read(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", 2)
    before = rows(read_tables(path, 1))
    wide(path)
    assert b"co64" in path.read_bytes() and path.read_bytes().count(b"mdat") == 1
    assert rows(read_tables(path, 1)) == before == libav_packets(path)


@pytest.mark.parametrize("is_wide", [False, True])
def test_edit_lists_are_read_in_both_forms(is_wide: bool, tmp_path: Path) -> None:
    edits = [(0.5, -1, 1), (1.0, 0.5, 1), (0.25, 1.75, 1)]
    tables = read_tables(with_edits(video(tmp_path / "v.mp4", 2), edits, wide=is_wide), 1)
    movie, track = tables.movie_timescale, tables.timescale
    assert tables.edits == (
        Edit(duration=movie // 2, media_time=-1, rate=1),
        Edit(duration=movie, media_time=track // 2, rate=1),
        Edit(duration=movie // 4, media_time=track * 7 // 4, rate=1),
    )


def test_samples_of_one_size_need_no_table_of_sizes(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", 1)
    count = len(rows(read_tables(path, 1)))
    rewritten(path, lambda name, _: box(name, struct.pack(">III", 0, 77, count)) if name == b"stsz" else None)
    assert read_tables(path, 1).size_P.tolist() == [77] * count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"stsz", lambda c: struct.pack(">III", 0, 9, 1 << 31)), "packets"),
        ((b"stts", lambda c: c[:8] + struct.pack(">II", 3, 512)), "cover"),
        ((b"ctts", lambda c: struct.pack(">II", 0, 1 << 30) + c[8:]), "fit"),
        ((b"stss", lambda c: c[:8] + struct.pack(">I", 1 << 20) + c[12:]), "outside"),
        ((b"stsc", lambda c: struct.pack(">IIIII", 0, 1, 1, 1, 1)), "cover"),
        ((b"stsc", lambda c: struct.pack(">IIIII", 0, 1, 2, 1, 1)), "damaged"),
        ((b"mdhd", lambda c: c[:12] + bytes(4) + c[16:]), "timescale"),
        ((b"stco", lambda c: b""), "damaged|fit"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(change: tuple, message: str, tmp_path: Path) -> None:
    name, alter = change
    path = video(tmp_path / "v.mp4", 1)
    rewritten(path, lambda found, content: box(name, alter(content)) if found == name else None)
    with pytest.raises(TablesError, match=message):
        read_tables(path, 1)


@pytest.mark.parametrize("kind", ["mp4, fragmented", "mkv", "ts"])
def test_files_without_tables_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(TablesError):
        read_tables(kinds()[kind](tmp_path), 1)


def test_mutated_tables_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    path = with_edits(video(tmp_path / "v.mp4", 2), [(0.5, 0.5, 1), (0.5, 1.2, 1)])
    data, rng = path.read_bytes(), random.Random(0)
    since, outcomes = data.index(b"moov"), {"read": 0, "refused": 0}
    for _ in range(600):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(since, len(data) - 4)
            mutated[at : at + 4] = rng.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)])
        path.write_bytes(mutated)
        try:
            tables = read_tables(path, 1)
        except TablesError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        columns = (tables.pts_P, tables.duration_P, tables.key_P, tables.pos_P, tables.size_P)
        assert len({len(column) for column in columns}) == 1 and len(tables.pts_P)
        assert all(column.dtype == np.int64 for column in columns if column is not tables.key_P)
    assert min(outcomes.values()) > 50, outcomes
