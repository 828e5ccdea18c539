"""Makes small coded videos in every container, with packets placed, timed and marked as a test wants them."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av

from tests.preprocessing.chunking import FFMPEG
from tests.preprocessing.coded_video import steady, write_video

SIZE = (96, 64)  # px; small and still read after encoding
MPEG4 = ("-c:v", "mpeg4", "-q:v", "3", "-bf", "2", "-g", "15", "-threads", "1")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "3", "-bf", "2", "-g", "15", "-threads", "1")


def video(path: Path, seconds: float = 4.0, *, fps: float | Fraction = 30, gop: int = 15, **options: object) -> Path:
    """Write a small coded video at a constant rate."""
    return write_video(path, steady(seconds, fps), **{"size": SIZE, "gop": gop, **options})


def remux(source: Path, target: Path, *options: str, before: Sequence[str] = ()) -> Path:
    """Copy the packets of a video into another container with ffmpeg."""
    command = [FFMPEG, "-v", "error", "-y", *before, "-i", str(source), "-c", "copy", *options, str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def encode(source: Path, target: Path, *options: str) -> Path:
    """Encode a video again with ffmpeg."""
    command = [FFMPEG, "-v", "error", "-y", "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@dataclass(frozen=True)
class Packet:
    """A packet as it is written; times in ticks of 1/90000 s."""

    data: bytes
    pts: int | None
    dts: int | None
    is_key: bool


TICK = Fraction(1, 90_000)


def packets_of(path: Path) -> list[Packet]:
    """Return the packets of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = stream.time_base / TICK
        return [
            Packet(
                bytes(packet),
                None if packet.pts is None else round(packet.pts * base),
                None if packet.dts is None else round(packet.dts * base),
                packet.is_keyframe,
            )
            for packet in container.demux(stream)
            if packet.size
        ]


def write_packets(
    template: Path, target: Path, packets: Iterable[Packet], *, format_options: dict[str, str] | None = None
) -> Path:
    """Write packets with the stream parameters of `template` into a container."""
    with av.open(str(template)) as source, av.open(str(target), "w", options=format_options or {}) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        stream.time_base = TICK
        for item in packets:
            packet = av.Packet(item.data)
            packet.pts, packet.dts, packet.time_base = item.pts, item.dts, TICK
            packet.is_keyframe, packet.stream = item.is_key, stream
            container.mux_one(packet)
    return target


def later(packets: Iterable[Packet], seconds: float) -> list[Packet]:
    """Return packets with all times moved."""
    ticks = round(seconds / TICK)
    return [
        replace(p, pts=None if p.pts is None else p.pts + ticks, dts=None if p.dts is None else p.dts + ticks)
        for p in packets
    ]


def box(name: bytes, content: bytes) -> bytes:
    """Return a box of an mp4."""
    return struct.pack(">I", len(content) + 8) + name + content


def with_edits(
    path: Path, edits: Sequence[tuple[float, float, float]], *, wide: bool = False, fraction: int = 0
) -> Path:
    """Give the track of an mp4 or mov an edit list: (length in s, first shown media time in s or −1, rate) each.

    A length of 0 is written as 0. `wide` writes the 64-bit form.
    """
    movie, track = timescales(path)
    form = ">Qqhh" if wide else ">Iihh"
    rows = b"".join(
        struct.pack(form, round(length * movie), -1 if start < 0 else round(start * track), int(rate), fraction)
        for length, start, rate in edits
    )
    elst = box(b"elst", struct.pack(">BBHI", int(wide), 0, 0, len(edits)) + rows)

    def change(name: bytes, content: bytes) -> bytes | None:
        if name == b"edts":
            return b""
        if name == b"tkhd":
            return box(name, content) + box(b"edts", elst)
        return None

    return rewritten(path, change)


def timescales(path: Path) -> tuple[int, int]:
    """Return the ticks per second of the movie and of its first track."""
    data = path.read_bytes()
    found = []
    for name in (b"mvhd", b"mdhd"):
        at = data.index(name) + 4
        found.append(struct.unpack_from(">I", data, at + (20 if data[at] == 1 else 12))[0])
    return found[0], found[1]


def rewritten(path: Path, change: Callable[[bytes, bytes], bytes | None]) -> Path:
    """Rewrite the boxes of the movie box of an mp4 whose media data come first.

    `change(name, content)` returns the bytes in place of a box, or None to keep it.
    """
    data = path.read_bytes()
    boxes = list(_split(data))
    assert [name for name, _ in boxes][-1] == b"moov", "the movie box has to come last, so that no offset changes"
    head = data[: len(data) - len(boxes[-1][1]) - 8]
    path.write_bytes(head + box(b"moov", _changed(boxes[-1][1], change)))
    return path


def _split(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        else:
            head = 8
        yield data[at + 4 : at + 8], data[at + head : at + size]
        at += size


def _changed(content: bytes, change: Callable[[bytes, bytes], bytes | None]) -> bytes:
    out = b""
    for name, inner in _split(content):
        new = change(name, inner)
        if new is None and name in (b"trak", b"mdia", b"minf", b"stbl", b"edts"):
            new = box(name, _changed(inner, change))
        out += box(name, inner) if new is None else new
    return out


@lru_cache(maxsize=1)
def kinds() -> dict[str, Callable[[Path], Path]]:
    """Return name → what writes a video of 3 s at 30 frames/s in one container into a folder."""
    return {
        "mp4": lambda folder: video(folder / "v.mp4", 3),
        "mp4, index first": lambda folder: remux(
            video(folder / "w.mp4", 3), folder / "v.mp4", "-movflags", "+faststart"
        ),
        "mp4, fragmented": lambda folder: remux(
            video(folder / "w.mp4", 3), folder / "v.mp4", "-movflags", "frag_keyframe+empty_moov"
        ),
        "mov": lambda folder: video(folder / "v.mov", 3),
        "mkv": lambda folder: video(folder / "v.mkv", 3),
        "ts": lambda folder: video(folder / "v.ts", 3),
        "avi, MPEG-4": lambda folder: encode(video(folder / "w.mp4", 3), folder / "v.avi", *MPEG4),
        "avi, H.264": lambda folder: remux(video(folder / "w.mp4", 3), folder / "v.avi"),
        "ps": lambda folder: encode(video(folder / "w.mp4", 3), folder / "v.mpg", *MPEG2),
    }
