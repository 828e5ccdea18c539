"""Frames of a chunk are chosen by time, whatever changes in mid-stream or is broken; also those of folders."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg

from preprocessing.config import ChunkConfig
from preprocessing.video.chunks import chunk_path
from preprocessing.video.frame_folder import folder_clock
from preprocessing.video.frames import BrokenSpans, FramesReport, FramesSpec
from preprocessing.video.probe import probe, probe_frame_folder
from preprocessing.video.transcode import TONE_MAPPER, frames_spec, make_chunk
from tests.preprocessing.chunking import CONFIG, FFMPEG, make_chunks, shown, task
from tests.preprocessing.coded_video import coded_frame, read_number
from tests.preprocessing.video.containers import (
    MPEG4,
    SIZE,
    box,
    encode,
    later,
    packets_of,
    rewritten,
    video,
    write_packets,
)
from tests.preprocessing.video.in_process import Source
from tests.preprocessing.video.player import Player, wrong_frames
from tests.preprocessing.video.test_picture import EIGHT


def own_numbers(source: Source) -> None:
    """Check that every frame of a video shows its own number, from every chunk start."""
    for seconds in (1.0, 0.4):
        for chunk in source.every_chunk(seconds):
            assert not chunk.damage
            assert chunk.numbers == list(range(chunk.first, chunk.first + len(chunk.frames)))


def parts(folder: Path, *options: dict) -> Path:
    """Return a stream whose parts of 1 s differ in size, pixel format or range, with numbers and times that go on."""
    joined, first = [], 0
    for i, changes in enumerate(options):
        path = folder / f"part{i}.ts"
        write_from(path, first, **changes)
        joined += later(packets_of(path), first / 30)
        first += 30
    return write_packets(folder / "part0.ts", folder / "v.ts", joined)


def write_from(
    path: Path, first: int, *, size: tuple[int, int] = SIZE, pix_fmt: str = "yuv420p", limits: int = 1
) -> None:
    """Write 30 coded frames from a number on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "bf": "2"})
        stream.width, stream.height = size
        stream.pix_fmt, stream.codec_context.gop_size = pix_fmt, 15
        stream.codec_context.color_range, stream.codec_context.colorspace = limits, 6
        for n in range(30):
            frame = av.VideoFrame.from_ndarray(coded_frame(first + n, *size), format="rgb24").reformat(
                format=pix_fmt, src_color_range=2, dst_color_range=limits
            )
            frame.pts, frame.time_base = n, Fraction(1, 30)
            frame.color_range, frame.colorspace = limits, 6
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def interlaced(path: Path, first: int, order: str) -> None:
    """Write 30 frames whose first field shows a coded frame and whose second shows another."""
    size, rows = (96, 96), 0 if order == "tff" else 1
    with av.open(str(path.with_suffix(".mkv")), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for n in range(30):
            rgb = coded_frame(first + n + 7, *size)
            rgb[rows::2] = coded_frame(first + n, *size)[rows::2]
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    fields = ("-vf", f"setfield={order}", "-flags", "+ilme+ildct", "-preset", "ultrafast", "-crf", "8", "-bf", "2")
    encode(path.with_suffix(".mkv"), path, "-c:v", "libx264", *fields, "-g", "15")


@pytest.mark.parametrize(
    "changes",
    [
        [{}, {"size": (128, 96)}, {"size": (64, 64)}, {}],
        [{}, {"pix_fmt": "yuv422p"}, {"pix_fmt": "yuv444p"}],
        [{"limits": 1}, {"limits": 2}, {"limits": 1}],
        [{"size": (64, 64), "pix_fmt": "yuv422p"}, {"limits": 2}],
    ],
    ids=["size", "pixel format", "range", "all"],
)
def test_a_change_in_mid_stream_moves_no_frame(changes: list[dict], tmp_path: Path) -> None:
    source = Source(parts(tmp_path, *changes), tmp_path)
    assert source.frames() == 30 * len(changes)
    own_numbers(source)


def test_a_change_of_range_changes_no_brightness(tmp_path: Path) -> None:
    source = Source(parts(tmp_path, {"limits": 1}, {"limits": 2}), tmp_path)
    chunk = source.chunk(0, 60)
    black = [np.percentile(frame.picture, 5) for frame in chunk.frames]
    assert max(black) - min(black) < 12


@pytest.mark.parametrize("name", EIGHT)
def test_frames_are_upright_for_each_display_matrix(name: str, tmp_path: Path) -> None:
    """ffmpeg turns and mirrors frames by itself: it is the reference."""
    path = video(tmp_path / "v.mp4", 1)
    (a, b), (c, d) = EIGHT[name]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    rewritten(path, lambda n, content: box(n, content[:40] + matrix + content[76:]) if n == b"tkhd" else None)
    made = Source(path, tmp_path).chunk(0, 30)
    height, width = made.frames[0].picture.shape
    assert (width, height) == ((72, 48) if a else (48, 72))
    command = [FFMPEG, "-v", "error", "-i", str(path), "-vf", f"scale={width}:{height}", "-f", "rawvideo", "-pix_fmt",
               "yuv420p", "-"]  # fmt: skip
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    right = np.frombuffer(raw, np.uint8).reshape(30, height * 3 // 2, width)[:, :height]
    for frame, reference in zip(made.frames, right, strict=True):
        assert np.abs(frame.picture.astype(int) - reference).mean() < 6


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_an_interlaced_stream_shows_the_first_field_and_says_so(order: str, tmp_path: Path) -> None:
    interlaced(tmp_path / "v.ts", 0, order)
    source = Source(tmp_path / "v.ts", tmp_path)
    assert source.probed.is_interlaced
    assert source.chunk(0, 30).numbers == list(range(30))
    (chunk,) = make_chunks(tmp_path / "v.ts", tmp_path / "work")
    assert chunk.deinterlaced and not chunk.damage and shown([chunk], tmp_path / "work", "full") == list(range(30))


def test_a_stream_that_becomes_interlaced_later_is_deinterlaced(tmp_path: Path) -> None:
    write_from(tmp_path / "a.ts", 0, size=(96, 96))
    write_from(tmp_path / "b.ts", 30, size=(96, 96))
    interlaced(tmp_path / "c.ts", 60, "tff")
    read = [packets_of(tmp_path / f"{name}.ts") for name in "abc"]
    begin = [min(p.pts or 0 for p in part) / 90_000 for part in read]
    joined = [p for i, part in enumerate(read) for p in later(part, 2 + i - begin[i])]
    source = Source(write_packets(tmp_path / "a.ts", tmp_path / "v.ts", joined), tmp_path)
    assert not source.probed.is_interlaced and source.frames() == 90
    chunk = source.chunk(40, 90)
    assert chunk.numbers == list(range(40, 90)) and not chunk.damage
    assert source.chunk(0, 50).numbers == list(range(50))
    made = [make_chunk(task(source.probed, tmp_path / "work", i, config=replace(CONFIG, seconds=2))) for i in range(2)]
    assert [chunk.deinterlaced for chunk in made] == [True, True]  # the first holds a frame after its end


def hdr(path: Path, transfer: int) -> Path:
    """Write 1 s of 10-bit video with an HDR transfer function: black, mid-grey and white fields."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=30, options={"preset": "ultrafast", "x265-params": "log-level=0"})
        stream.width, stream.height, stream.pix_fmt = 192, 96, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, transfer, 9, 1
        for n in range(30):
            frame = av.VideoFrame.from_ndarray(coded_frame(n, 192, 96), format="rgb24").reformat(
                format="yuv420p10le", dst_colorspace=9, src_color_range=2, dst_color_range=1
            )
            frame.pts, frame.time_base = n, Fraction(1, 30)
            frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range = 9, transfer, 9, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_tone_mapped_or_stored_as_it_is(transfer: int, name: str, tmp_path: Path) -> None:
    path = hdr(tmp_path / "v.mp4", transfer)
    source = probe(path)
    assert source.colour.hdr == name
    seen = {}
    for mode in ("tonemap", "as_is"):
        config = ChunkConfig(seconds=4, short_side=96, hdr=mode)  # type: ignore[arg-type]
        chunk = make_chunk(task(source, tmp_path / mode, 0, config=config))
        assert not chunk.damage and chunk.tone_mapped == (TONE_MAPPER if mode == "tonemap" else "")
        with av.open(str(chunk_path(tmp_path / mode, "video", 0, "full"))) as container:
            frames = list(container.decode(video=0))
        assert [read_number(f.to_ndarray(format="rgb24")) for f in frames] == list(range(30))
        assert {f.format.name for f in frames} == {"yuv420p"}
        tags = {(f.color_primaries, f.color_trc, int(f.colorspace)) for f in frames}
        assert tags == {(1, 1, 1) if mode == "tonemap" else (9, transfer, 9)}
        seen[mode] = frames[21].to_ndarray()[:96]
    assert np.abs(seen["tonemap"].astype(int) - seen["as_is"]).mean() > 1  # other values, not other tags alone


def broken_packet(path: Path, numbers: set[int]) -> Path:
    """Overwrite the data of packets of a video."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(p.pos, bytes(p)) for p in container.demux(video=0) if p.size]
    for n in numbers:
        at = data.index(places[n][1])
        data[at + 6 : at + len(places[n][1])] = np.random.default_rng(n).bytes(len(places[n][1]) - 6)
    path.write_bytes(data)
    return path


BROKEN = [{0}, {50}, {45}, {3, 33, 63}, {88, 89}, {1, 2, 3, 4, 5, 6}]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_packets_cost_what_depends_on_them_and_move_nothing(name: str, broken: set[int], tmp_path: Path) -> None:
    source = Source(broken_packet(video(tmp_path / name, 3), broken), tmp_path)
    for seconds in (1.0, 3.0):
        chunks = source.every_chunk(seconds)
        sound = {n: number for chunk in chunks for n, number in chunk.sound().items()}
        assert sound == {n: n for n in sound}
        assert any(chunk.damage for chunk in chunks)
        assert len(sound) >= 90 - 15 * len({n // 15 for n in broken}) - 6


@pytest.mark.parametrize("options", [MPEG4, ("-c:v", "libx264", "-bf", "2", "-g", "15")])
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_packets_of_avi_move_no_later_frame(options: tuple[str, ...], broken: set[int], tmp_path: Path) -> None:
    """Frames are counted there: one that does not come out must not move those after it."""
    path = encode(video(tmp_path / "w.mp4", 3), tmp_path / "v.avi", *options)
    source = Source(broken_packet(path, broken), tmp_path)
    assert source.clock.by_order
    for seconds in (1.0, 3.0):
        sound = {n: number for chunk in source.every_chunk(seconds) for n, number in chunk.sound().items()}
        assert sound == {n: n for n in sound}
        assert len(sound) >= 90 - 48 * len({n // 15 for n in broken})


def test_a_frame_that_is_not_coded_moves_no_other(tmp_path: Path) -> None:
    """MPEG-4 in AVI: a packet may say that the frame before it is shown once more."""
    base = encode(
        video(tmp_path / "w.mp4", 3), tmp_path / "w.avi", "-c:v", "mpeg4", "-q:v", "3", "-bf", "0", "-g", "30"
    )
    with av.open(str(base)) as source, av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            data = bytes.fromhex("000001b6") + b"\x50\x03\x7f" if packet.dts in (20, 50) else bytes(packet)
            copied = av.Packet(data)
            copied.pts = copied.dts = packet.dts
            copied.time_base, copied.stream, copied.is_keyframe = packet.time_base, stream, packet.is_keyframe
            container.mux_one(copied)
    source_of = Source(tmp_path / "v.avi", tmp_path)
    sound = {n: number for chunk in source_of.every_chunk() for n, number in chunk.sound().items()}
    assert sound == {n: n for n in sound} and len(sound) > 55


@pytest.mark.parametrize("at", [0.03, 0.2, 0.5, 0.7, 0.97])
def test_zeroed_bytes_of_a_stream_move_nothing(at: float, tmp_path: Path) -> None:
    path = video(tmp_path / "v.ts", 3)
    data = bytearray(path.read_bytes())
    first = int(len(data) * at)
    data[first : first + 600] = bytes(600)
    path.write_bytes(data)
    source = Source(path, tmp_path)
    stored = {n: frame for chunk in source.every_chunk() for n, frame in chunk.sound_frames().items()}
    player = Player.of(path, size=(72, 48))
    assert wrong_frames(stored, player, fps=30, by_order=False) == {} and len(stored) > 55


def test_a_broken_image_of_a_folder_is_damage_and_others_are_exact(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    for n in range(60):
        (folder / f"frame_{n + 1:010d}.jpg").write_bytes(simplejpeg.encode_jpeg(coded_frame(n, 96, 64), quality=90))
    whole = (folder / "frame_0000000021.jpg").read_bytes()
    (folder / "frame_0000000021.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "frame_0000000031.jpg").write_bytes(b"")
    (folder / "frame_0000000041.jpg").write_bytes(b"no image" * 100)
    (folder / "frame_0000000051.jpg").unlink()
    source = probe_frame_folder(folder, 30.0)
    chunks = [make_chunk(task(source, tmp_path / "work", i, config=replace_seconds(1))) for i in range(2)]
    damage = [d for chunk in chunks for d in chunk.damage]
    seen = shown(chunks, tmp_path / "work", "full")
    sound = {n: number for n, number in enumerate(seen) if not any(d.start < (n + 0.5) / 30 < d.end for d in damage)}
    assert sound == {n: n for n in sound} and {20, 30, 40, 50}.isdisjoint(sound) and len(sound) >= 50
    assert {"broken image", "frames missing"} <= {part for d in damage for part in d.reason.split(", ")}


def replace_seconds(seconds: int) -> ChunkConfig:
    return replace(CONFIG, seconds=seconds)


def test_a_child_process_writes_planes_and_a_report(tmp_path: Path) -> None:
    source = Source(video(tmp_path / "v.mp4", 2), tmp_path)
    whole = task(source.probed, tmp_path, 0, config=ChunkConfig(seconds=2, short_side=48))
    spec = frames_spec(whole, clock_file=source.clock_file, report=tmp_path / "report", first=0)
    assert FramesSpec.from_json(spec.to_json()) == spec
    command = [sys.executable, "-m", "preprocessing.video.frames", spec.to_json()]
    done = subprocess.run(command, check=True, capture_output=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(60, 72, 72)
    assert [read_number(planes[:48, :, None]) for planes in frames] == list(range(60))
    report = FramesReport.read(tmp_path / "report")
    assert report is not None and len(report.shown) == 60 and not report.broken
    assert not source.chunk(0, 60).damage


def test_reports_that_cannot_be_read_count_as_absent(tmp_path: Path) -> None:
    good = asdict(FramesReport(shown=[1], broken=[(0.0, 1.0)]))
    for text in ("", "[]", json.dumps({**good, "other": 1}), json.dumps({**good, "broken": [1]}), "{" * 500):
        (tmp_path / "report").write_text(text)
        assert FramesReport.read(tmp_path / "report") is None
    assert FramesReport.read(tmp_path / "absent") is None


def test_a_broken_packet_spoils_up_to_the_next_key_frame() -> None:
    spans = BrokenSpans(0.0)
    for time, is_key, is_broken in ((0.0, True, False), (0.3, False, False), (0.1, False, True), (0.2, False, False),
                                    (0.5, True, False), (0.4, False, False), (0.8, True, True)):  # fmt: skip
        spans.packet(time, is_key=is_key, is_broken=is_broken)
    assert spans.finish(2.0) == [(0.1, 0.5), (0.8, 2.0)]


def test_the_clock_of_a_folder_is_that_of_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    sink = io.BytesIO(simplejpeg.encode_jpeg(coded_frame(0, 96, 64), quality=90))
    for n in (1, 2, 4):
        (folder / f"{n}.jpg").write_bytes(sink.getvalue())
    source = probe_frame_folder(folder, 10.0)
    assert source.frame_folder is not None
    assert folder_clock(source.frame_folder).time_P.tolist() == pytest.approx([0.0, 0.1, 0.3])
