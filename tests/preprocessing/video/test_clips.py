"""Cuts contain exactly the grid frames that they state."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.config import ChunkConfig
from preprocessing.video.chunks import chunk_path
from preprocessing.video.clips import CutError, Cutter, PacketSpan, read_packet_span
from tests.preprocessing.chunking import CONFIG, FFMPEG, make_chunks
from tests.preprocessing.coded_video import numbers, read_number, steady, write_video

FPS, PER_CHUNK, FRAMES = CONFIG.fps, CONFIG.seconds * CONFIG.fps, 330


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    make_chunks(write_video(folder / "v.mp4", steady(FRAMES / 30)), folder)
    return folder


def packet_span(work: Path, first: int, stop: int) -> PacketSpan:
    wanted = range(first // PER_CHUNK, (stop - 1) // PER_CHUNK + 1)
    return read_packet_span(
        [(chunk_path(work, "video", i, "full"), i * PER_CHUNK) for i in wanted], fps=FPS, first=first, stop=stop
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, FRAMES - 1), length=st.integers(1, 200))
def test_stored_frames_are_those_of_the_grid(first: int, length: int, work: Path) -> None:
    stop = min(first + length, FRAMES)
    with Cutter(packet_span(work, first, stop)) as cutter:
        cut = cutter.cut(first, stop)
    assert numbers(io.BytesIO(cut.mp4)) == list(range(cut.first, cut.first + cut.frames))
    assert cut.first <= first and cut.first + cut.frames >= stop
    # No more than a GOP before, no more than the frames up to the next anchor after.
    assert first - cut.first < CONFIG.gop and cut.first + cut.frames - stop <= CONFIG.b_frames
    with av.open(io.BytesIO(cut.mp4)) as container:
        stream = container.streams.video[0]
        times = [packet.pts * stream.time_base for packet in container.demux(stream) if packet.pts is not None]
        assert sorted(float(t) for t in times) == pytest.approx([i / FPS for i in range(cut.frames)])
        assert stream.average_rate == FPS and stream.frames == cut.frames


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, FRAMES - 60), length=st.integers(1, 60))
def test_the_jpeg_is_the_stored_key_frame_nearest_to_the_middle(first: int, length: int, work: Path) -> None:
    with Cutter(packet_span(work, first, first + length)) as cutter:
        cut = cutter.cut(first, first + length)
    shown = read_number(np.asarray(Image.open(io.BytesIO(cut.jpg))))
    middle = first + (length - 1) / 2
    keys = [n for n in range(cut.first, cut.first + cut.frames) if (n % PER_CHUNK) % CONFIG.gop == 0]
    assert abs(shown - middle) == min(abs(key - middle) for key in keys)


def test_a_cut_does_not_depend_on_its_packet_span(work: Path) -> None:
    with Cutter(packet_span(work, 0, FRAMES)) as wide, Cutter(packet_span(work, 100, 150)) as narrow:
        assert wide.cut(100, 150) == narrow.cut(100, 150)
        assert wide.cut(100, 150) == wide.cut(100, 150)


def test_chunks_with_different_encoding_are_not_joined(work: Path, tmp_path: Path) -> None:
    make_chunks(work / "v.mp4", tmp_path, config=ChunkConfig(seconds=4, short_side=64))
    mixed = [(chunk_path(work, "video", 0, "full"), 0), (chunk_path(tmp_path, "video", 1, "full"), PER_CHUNK)]
    with pytest.raises(CutError, match="cannot be joined"):
        read_packet_span(mixed, fps=FPS, first=110, stop=130)


def test_frames_outside_the_chunks_are_an_error(work: Path) -> None:
    with Cutter(packet_span(work, 200, 240)) as cutter, pytest.raises(CutError, match="ends before frame 299"):
        cutter.cut(210, 300)


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
def test_the_jpeg_has_the_colours_of_the_video(matrix: str, tmp_path: Path) -> None:
    source = ["-f", "lavfi", "-i", "smptebars=size=320x240:rate=30:duration=1"]
    convert = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p,setparams=colorspace={matrix}:range=tv"
    video = [str(tmp_path / "v.mp4"), "-c:v", "libx264", "-crf", "5"]
    subprocess.run([FFMPEG, "-v", "error", *source, "-vf", convert, *video[1:], video[0]], check=True)
    make_chunks(tmp_path / "v.mp4", tmp_path)
    with Cutter(packet_span(tmp_path, 0, 10)) as cutter:
        jpg = np.asarray(Image.open(io.BytesIO(cutter.cut(0, 10).jpg))).astype(int)
    with av.open(str(tmp_path / "v.mp4")) as container:
        frame = next(container.decode(video=0)).reformat(width=jpg.shape[1], height=jpg.shape[0], format="rgb24")
    inside = np.s_[10:60, 5:120:9]  # within the bars: edges blur
    assert np.abs(jpg[inside] - frame.to_ndarray().astype(int)[inside]).mean() < 4
