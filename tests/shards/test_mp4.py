"""The packet table of an mp4 equals the one that libavformat reads; other kinds of mp4 are refused by name."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from shards.mp4 import Mp4Error, UnsupportedMp4Error, read_packets
from tests.media import coded_mp4
from tests.paths import shared


def test_unreferenced_and_unwanted_packets_are_not_needed() -> None:
    mp4 = coded_mp4(0, 48)
    table = read_packets(mp4)
    assert table.key_at.tolist() == [0, 16, 32]
    shown = [int(table.frame_P[packet]) for packet in table.needed(mp4, np.array([20]))]
    assert shown[0] == 16 and shown[-1] == 20 and len(shown) == 3  # key frame, the next anchor, the frame itself
    everything = table.needed(mp4, np.arange(48))
    assert everything == list(range(48))


def test_packet_tables_equal_what_libavformat_reads() -> None:
    for frames, gop, b_frames in ((1, 16, 7), (17, 16, 7), (48, 16, 7), (30, 5, 0), (33, 12, 3)):
        mp4 = coded_mp4(0, frames, gop=gop, b_frames=b_frames)
        table = read_packets(mp4)
        with av.open(io.BytesIO(mp4)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
            assert bytes(stream.codec_context.extradata) == table.extradata
        order = np.argsort(np.argsort([packet.pts for packet in packets]))
        assert (order == table.frame_P).all()
        assert [bytes(packet) for packet in packets] == [
            mp4[at : at + size] for at, size in zip(table.offset_P, table.size_P, strict=True)
        ]
        assert np.flatnonzero([packet.is_keyframe for packet in packets]).tolist() == table.key_at.tolist()


@pytest.mark.parametrize("mp4", [b"", b"\0" * 7, b"\0\0\0\x08moov", coded_mp4(0, 3)[:-200]])
def test_bytes_that_are_not_an_mp4_are_refused(mp4: bytes) -> None:
    with pytest.raises(Mp4Error):
        read_packets(mp4)


def edit(mp4: bytes, *, start: int = 0, frames: float = 0.0, rate: float = 1.0, count: int = 1) -> bytes:
    """Return a clip of `coded_mp4` whose edit list starts `start` media units later and is `frames` shorter."""
    data, at = bytearray(mp4), mp4.index(b"elst") + 4
    duration, begin = struct.unpack_from(">Ii", data, at + 8)
    media = struct.unpack_from(">I", data, mp4.index(b"mdhd") + 16)[0]
    movie = struct.unpack_from(">I", data, mp4.index(b"mvhd") + 16)[0]
    struct.pack_into(">I", data, at + 4, count)
    shorter = duration - round(frames * movie / 30)
    struct.pack_into(">Iii", data, at + 8, shorter, begin + start, round(rate * (1 << 16)))
    assert media % 30 == 0
    return bytes(data)


@pytest.mark.parametrize("b_frames", [0, 7])
@pytest.mark.parametrize(
    "change",
    [
        {"start": 512},  # one frame at 15,360 units per second
        {"start": 512 * 20},
        {"start": 1},
        {"start": -10_000},  # an empty edit: -1 and below are not times
        {"frames": 1.05},
        {"frames": 2.0},
        {"frames": 20.0},
        {"rate": 2.0},
        {"rate": 0.0},  # a still frame
        {"count": 2},
    ],
)
def test_edit_lists_that_hide_frames_are_refused(b_frames: int, change: dict[str, float]) -> None:
    mp4 = coded_mp4(0, 30, b_frames=b_frames)
    assert (read_packets(edit(mp4)).frame_P == read_packets(mp4).frame_P).all()
    with pytest.raises(UnsupportedMp4Error, match=r"edit list .* encode it again"):
        read_packets(edit(mp4, **change))


@pytest.mark.parametrize("b_frames", [0, 7])
def test_edit_lists_that_show_every_frame_are_read(b_frames: int) -> None:
    mp4 = coded_mp4(0, 30, b_frames=b_frames)
    expected = read_packets(mp4).frame_P
    begin = struct.unpack_from(">i", mp4, mp4.index(b"elst") + 16)[0]
    assert bool(begin) == bool(b_frames)  # the delay by which B-frames are decoded before they are presented
    without = mp4.replace(b"edts", b"free")
    for same in (edit(mp4, start=-begin, frames=-1.0), edit(mp4, frames=-3.0), edit(mp4, frames=0.5), without):
        assert (read_packets(same).frame_P == expected).all()


def test_a_cut_without_encoding_is_refused_and_not_read_from_its_hidden_start() -> None:
    with pytest.raises(UnsupportedMp4Error, match="edit list"):
        read_packets(shared("field/trimmed_at_7s.mp4").read_bytes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-f", "lavfi", "-i", "sine=duration=1", "-c:v", "copy", "-c:a", "aac"), r"2 tracks: vide, soun; copy"),
        (("-c", "copy", "-movflags", "+frag_keyframe+empty_moov"), "fragmented; copy"),
        (("-c", "copy", "-movflags", "+dash"), "fragmented; copy"),
        (("-c:v", "libx265"), "hev1, not H.264"),
        (("-c:v", "mpeg4"), "mp4v, not H.264"),
        (("-c:v", "copy", "-tag:v", "avc3"), "avc3, not H.264"),
        (("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=8:min-keyint=4:bframes=3:b-adapt=0"), "open GOPs"),
        (("-vn", "-f", "lavfi", "-i", "sine=duration=1", "-map", "1:a"), r"1 tracks: soun"),
    ],
)
def test_other_kinds_of_mp4_are_refused_by_name(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMp4Error, match=message):
        read_packets(ffmpeg(tmp_path, options=options))


@pytest.mark.parametrize("turn", [("-display_rotation", "90"), ("-display_hflip",), ("-display_rotation", "180")])
def test_a_rotated_track_is_refused(turn: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMp4Error, match="rotated or mirrored"):
        read_packets(ffmpeg(tmp_path, before=turn, options=("-c", "copy")))


def test_the_remedies_of_the_messages_work(tmp_path: Path) -> None:
    fragmented = ffmpeg(tmp_path, options=("-c", "copy", "-movflags", "+frag_keyframe+empty_moov"))
    copied = ffmpeg(tmp_path, mp4=fragmented, options=("-map", "0:v:0", "-c", "copy"))
    assert (read_packets(copied).frame_P == read_packets(coded_mp4(0, 40)).frame_P).all()
    hidden = edit(coded_mp4(0, 40), start=512 * 4)
    encoded = ffmpeg(tmp_path, mp4=hidden, options=("-map", "0:v:0", "-c:v", "libx264", "-pix_fmt", "yuv420p"))
    assert len(read_packets(encoded).frame_P) == 36


def test_frame_times_that_contradict_the_rate_are_refused() -> None:
    mp4 = coded_mp4(0, 30)
    at = mp4.index(b"ctts") + 12
    for row in (0, 1, 5):
        for bit in (8, 9, 10, 12, 20):
            data = bytearray(mp4)
            value = struct.unpack_from(">I", data, at + 8 * row + 4)[0]
            struct.pack_into(">I", data, at + 8 * row + 4, value ^ 1 << bit)
            with pytest.raises(Mp4Error, match=r"table of times|same time|edit list|open GOPs"):
                read_packets(bytes(data))


def test_a_frame_that_is_listed_as_a_key_frame_but_is_none_is_an_error() -> None:
    mp4 = coded_mp4(0, 30, b_frames=0)
    at = mp4.index(b"stss") + 16
    assert struct.unpack_from(">I", mp4, at) == (17,)
    table = read_packets(mp4[:at] + struct.pack(">I", 20) + mp4[at + 4 :])
    with pytest.raises(Mp4Error, match="packet 19 is listed as a key frame"):
        table.needed(mp4, np.array([25]))


def ffmpeg(
    folder: Path, *, mp4: bytes | None = None, before: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> bytes:
    """Return what ffmpeg makes of an mp4 with options for the output, and for the input `before` it."""
    (folder / "in.mp4").write_bytes(mp4 or coded_mp4(0, 40))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *before, "-i", "in.mp4", *options, "out.mp4"]
    subprocess.run(command, check=True, cwd=folder)
    return (folder / "out.mp4").read_bytes()
