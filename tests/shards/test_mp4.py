"""The packet table of an mp4 equals the one that libavformat reads."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from shards.mp4 import Mp4Error, read_packets
from tests.media import coded_mp4


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
