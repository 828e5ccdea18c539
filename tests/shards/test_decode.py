"""Decoders return exactly the wanted frames in the right colours; a damaged clip is an error and never a frame."""

from __future__ import annotations

import io
import itertools
import resource
import subprocess
import time
from collections import Counter
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.video.clips import Cutter, read_packet_span
from shards.decode import DecodeError, DecoderName, PyAVDecoder, open_decoder
from shards.mp4 import read_packets
from shards.sampling import Crop, centre_crop
from tests.media import BUILD_OPTIONS, coded_mp4
from tests.paths import shared
from tests.preprocessing.coded_video import read_number, steady, write_video
from tests.shards import colours
from tests.shards.coded import SIDE

WHOLE = Crop(top=0, left=0, height=SIDE, width=SIDE)
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def _loads(name: DecoderName) -> bool:
    try:
        open_decoder(name)
    except ImportError:
        return False
    return True


DECODERS: list[DecoderName] = [name for name in ("pyav", "decord", "torchcodec") if _loads(name)]


def reference(mp4: bytes, crop: Crop, size: int, *, matrix: int = colours.UNSPECIFIED, limits: int = 1) -> np.ndarray:
    """Return all frames of an mp4, each decoded, cropped and scaled without the code under test."""
    return np.stack(
        [
            colours.expected_rgb(planes, crop, size, matrix=matrix, limits=limits)
            for planes in colours.decoded_planes(mp4)
        ]
    )


@given(
    frames=st.integers(1, 50),
    gop=st.sampled_from([1, 4, 16]),
    b_frames=st.integers(0, 7),
    wanted=st.lists(st.integers(0, 49), min_size=1, max_size=8),
    crop=st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(10, 36), st.integers(10, 36), st.booleans()),
)
@settings(max_examples=40, deadline=None)
def test_frames_equal_those_of_decoding_everything(
    frames: int, gop: int, b_frames: int, wanted: list[int], crop: tuple[int, int, int, int, bool]
) -> None:
    mp4 = coded_mp4(100, frames, gop=gop, b_frames=b_frames)
    part = Crop(top=2 * crop[0], left=2 * crop[1], height=2 * crop[2], width=2 * crop[3], flip=crop[4])
    numbers = np.array([number % frames for number in wanted])
    found = PyAVDecoder().decode(mp4, numbers, [part] * len(numbers), 64)
    assert np.abs(found - reference(mp4, part, 64)[numbers]).max() < 2


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_returns_the_wanted_frames(name: str) -> None:
    mp4 = coded_mp4(500, 41)
    numbers = np.array([40, 3, 3, 17, 0, 25])
    found = open_decoder(name).decode(mp4, numbers, [WHOLE] * 6, 112)
    assert found.shape == (6, 112, 112, 3) and found.dtype == np.uint8
    assert [read_number(frame) for frame in found] == (500 + numbers).tolist()


def test_decoders_agree_up_to_rounding() -> None:
    mp4 = coded_mp4(500, 41)
    crop = Crop(top=10, left=6, height=70, width=84, flip=True)
    a, b = (open_decoder(name).decode(mp4, np.arange(0, 41, 9), [crop] * 5, 112) for name in ("pyav", "decord"))
    assert np.abs(a.astype(int) - b.astype(int)).mean() < 3


def test_clips_cut_by_the_build_have_the_frames_of_their_records(tmp_path: Path) -> None:
    chunk = write_video(tmp_path / "chunk.mp4", steady(6), size=(SIDE, SIDE), gop=16, options=BUILD_OPTIONS)
    span = read_packet_span([(chunk, 0)], fps=30, first=0, stop=180)
    decoder = PyAVDecoder()
    with Cutter(span) as cutter:
        for first, stop in ((0, 1), (5, 30), (15, 17), (37, 100), (170, 180)):
            cut = cutter.cut(first, stop)
            stored = np.arange(cut.frames)
            shown = [read_number(frame) for frame in decoder.decode(cut.mp4, stored, [WHOLE] * len(stored), 96)]
            assert shown == list(range(cut.first, cut.first + cut.frames))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_yield_frames_or_a_decode_error(data: st.DataObject) -> None:
    mp4 = bytearray(coded_mp4(0, 20))
    if data.draw(st.booleans()):
        del mp4[data.draw(st.integers(0, len(mp4) - 1)) :]
    for _ in range(data.draw(st.integers(0, 6))):
        if mp4:
            mp4[data.draw(st.integers(0, len(mp4) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = PyAVDecoder().decode(bytes(mp4), np.array([3, 9, 19]), [WHOLE] * 3, 32)
    except DecodeError as error:
        assert error.reason
    else:
        assert found.shape == (3, 32, 32, 3)


def test_every_flipped_bit_of_the_index_gives_right_frames_or_an_error() -> None:
    mp4 = coded_mp4(100, 20, gop=8, b_frames=3)
    moov, parameters = mp4.index(b"moov") - 4, mp4.index(b"avcC") + 4
    parameter_bytes = range(parameters, parameters + len(read_packets(mp4).extradata))
    numbers, decoder = np.array([0, 5, 6, 11, 19]), PyAVDecoder()
    right = decoder.decode(mp4, numbers, [WHOLE] * 5, 64)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = Counter[str]()
    for bit in range(8 * moov, 8 * len(mp4)):
        data = bytearray(mp4)
        data[bit // 8] ^= 1 << bit % 8
        began = time.process_time()
        try:
            frames = decoder.decode(bytes(data), numbers, [WHOLE] * 5, 64)
        except DecodeError as error:
            found[error.reason] += 1
        else:
            is_right = (frames == right).all()
            found["right" if is_right else "other parameters"] += 1
            # Nothing repeats the parameter sets of H.264 (quantisation, colours): frames are as libavformat reads them.
            assert is_right or (
                bit // 8 in parameter_bytes and np.abs(frames - reference(bytes(data), WHOLE, 64)[numbers]).max() < 4
            )
        assert time.process_time() - began < 1
    assert found["right"] > 3000 and found["not an mp4"] > 2000 and found["other parameters"] < 8, found
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 * 1024  # KiB


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("damage", "numbers"),
    [("cut short", [0, 30]), ("nonsense", [0]), ("beyond the end", [41]), ("empty", [0])],
)
def test_a_clip_without_a_wanted_frame_is_an_error(name: str, damage: str, numbers: list[int]) -> None:
    whole = coded_mp4(500, 41)
    mp4 = {"cut short": whole[:3000], "nonsense": b"no video " * 400, "beyond the end": whole, "empty": b""}[damage]
    with pytest.raises(DecodeError):
        open_decoder(name).decode(mp4, np.array(numbers), [WHOLE] * len(numbers), 64)


def test_a_damaged_clip_does_not_affect_the_next_one() -> None:
    whole = coded_mp4(500, 41)
    damaged = bytearray(whole)
    table = read_packets(whole)
    at = int(table.offset_P[table.key_at[1]])
    damaged[at + 40 : at + 400] = bytes(360)
    decoder = PyAVDecoder()
    before = decoder.decode(whole, np.array([1, 20, 40]), [WHOLE] * 3, 64)
    with pytest.raises(DecodeError, match=r"damaged|frames missing"):
        decoder.decode(bytes(damaged), np.array([1, 20, 40]), [WHOLE] * 3, 64)
    assert (decoder.decode(whole, np.array([1, 20, 40]), [WHOLE] * 3, 64) == before).all()


def test_a_crop_outside_the_frame_is_an_error() -> None:
    with pytest.raises(DecodeError, match="size differs"):
        PyAVDecoder().decode(coded_mp4(0, 5), np.array([1]), [Crop(top=0, left=0, height=SIDE + 2, width=SIDE)], 32)


def test_a_real_video_is_decoded_like_libavcodec_does() -> None:
    mp4 = shared("media/sintel_30s_854x480_24fps_h264.mp4").read_bytes()
    numbers = [5, 130, 131, 400, 719]
    crop = centre_crop(854, 480)
    found = PyAVDecoder().decode(mp4, np.array(numbers), [crop] * 5, 224)
    with av.open(io.BytesIO(mp4)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in numbers:
                matrix = int(frame.colorspace)
                expected = colours.expected_rgb(colours.planes_of(frame), crop, 224, matrix=matrix, limits=1)
                difference = found[numbers.index(index)] - expected
                assert np.abs(difference).max() < 4 and np.abs(difference.mean()) < 0.05


# Crops of `colours.patches`: all of it, a part, a part scaled by 1; the sizes to which they are scaled.
CROPS = [
    (Crop(top=0, left=0, height=160, width=192), 224),
    (Crop(top=10, left=34, height=96, width=120, flip=True), 112),
    (Crop(top=32, left=2, height=128, width=128), 128),
]


def _flat(expected: np.ndarray) -> np.ndarray:
    """Return where a frame, (H, W, 3), is flat: decoders interpolate colours at borders differently."""
    reach, (height, width, _) = 5, expected.shape
    around = np.pad(expected, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    offsets = (0, reach, 2 * reach)
    shifted = [around[row : row + height, column : column + width] for row in offsets for column in offsets]
    return np.asarray(np.max([np.abs(part - expected).max(axis=-1) for part in shifted], axis=0) < 1)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("limits", [0, colours.LIMITED, colours.FULL])
@pytest.mark.parametrize(
    "matrix",
    [
        colours.BT709,
        colours.UNSPECIFIED,
        colours.FCC,
        colours.BT470BG,
        colours.SMPTE170M,
        colours.SMPTE240M,
        colours.BT2020,
    ],
)
def test_decoders_convert_colours_as_the_stream_says(name: DecoderName, matrix: int, limits: int) -> None:
    mp4 = colours.tagged_mp4(matrix, limits)
    for crop, size in CROPS:
        (found,) = open_decoder(name).decode(mp4, np.array([1]), [crop], size)
        expected = reference(mp4, crop, size, matrix=matrix, limits=limits)[1]
        inside = _flat(expected)
        assert inside.mean() > 0.3
        assert np.abs(found - expected)[inside].max() <= 3
        if name == "pyav":
            assert np.abs(found - expected).max() < 1


@pytest.mark.parametrize("limits", [colours.LIMITED, colours.FULL])
@pytest.mark.parametrize("matrix", [colours.BT709, colours.UNSPECIFIED, colours.FCC, colours.SMPTE170M, colours.BT2020])
def test_the_jpeg_has_the_colours_of_the_frames(matrix: int, limits: int, tmp_path: Path) -> None:
    mp4 = colours.tagged_mp4(matrix, limits)
    (tmp_path / "chunk.mp4").write_bytes(mp4)
    with Cutter(read_packet_span([(tmp_path / "chunk.mp4", 0)], fps=30, first=0, stop=3)) as cutter:
        cut = cutter.cut(0, 3)
    whole = Crop(top=0, left=0, height=160, width=192)
    expected = colours.expected_rgb(colours.decoded_planes(mp4)[0], whole, None, matrix=matrix, limits=limits)
    found = np.asarray(Image.open(io.BytesIO(cut.jpg))).astype(float)
    assert np.abs(found - expected)[_flat(expected)].max() <= 3
    (frame,) = PyAVDecoder().decode(cut.mp4, np.array([0]), [whole], 160)
    assert np.abs(frame - reference(mp4, whole, 160, matrix=matrix, limits=limits)[0]).max() < 1


def test_a_crop_keeps_the_position_of_chroma_samples() -> None:
    mp4 = colours.tagged_mp4(colours.BT709, colours.LIMITED)
    decoder = PyAVDecoder()
    whole = decoder.decode(mp4, np.array([0]), [Crop(top=0, left=0, height=160, width=160)], 160)[0]
    part = decoder.decode(mp4, np.array([0]), [Crop(top=20, left=16, height=120, width=120)], 120)[0]
    inner = np.s_[4:-4, 4:-4]
    assert np.abs(whole[20:140, 16:136].astype(int) - part)[inner].max() <= 1


def test_scaling_has_no_bias() -> None:
    mp4 = colours.tagged_mp4(colours.SMPTE170M, colours.LIMITED, noise=True, quality=20)
    crop = Crop(top=2, left=4, height=150, width=140)
    for size in (64, 112, 150, 200):
        found = PyAVDecoder().decode(mp4, np.arange(3), [crop] * 3, size)
        difference = found - reference(mp4, crop, size, matrix=colours.SMPTE170M)
        assert np.abs(difference.mean()) < 0.05 and np.abs(difference).mean() < 0.3


def ffmpeg_copy(mp4: bytes, folder: Path, *options: str, before: tuple[str, ...] = ()) -> bytes:
    """Return an mp4 copied by ffmpeg with options for the output, and for the input `before` it."""
    (folder / "in.mp4").write_bytes(mp4)
    command = [FFMPEG, "-v", "error", "-y", *before, "-i", "in.mp4", "-c", "copy", *options, "out.mp4"]
    subprocess.run(command, check=True, cwd=folder)
    return (folder / "out.mp4").read_bytes()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("matrix_coefficients=0", "colour: matrix coefficients 0"),  # RGB
        ("matrix_coefficients=8", "colour: matrix coefficients 8"),  # YCgCo
        ("matrix_coefficients=10", "colour: matrix coefficients 10"),  # BT.2020, constant luminance
        ("matrix_coefficients=12", "colour: matrix coefficients 12"),  # from the primaries
        ("matrix_coefficients=14", "colour: matrix coefficients 14"),  # ICtCp
        ("sample_aspect_ratio=2/1", "pixels not square"),
        ("rotate=90", "rotated"),
        ("flip=horizontal", "rotated"),
    ],
)
def test_what_decoders_would_show_differently_is_refused(
    name: DecoderName, option: str, reason: str, tmp_path: Path
) -> None:
    key = "display_orientation=insert:" if option.startswith(("rotate", "flip")) else ""
    mp4 = ffmpeg_copy(coded_mp4(0, 20), tmp_path, "-bsf:v", f"h264_metadata={key}{option}")
    with pytest.raises(DecodeError, match=reason):
        open_decoder(name).decode(mp4, np.array([3]), [WHOLE], 64)


def test_pixels_may_be_out_of_square_by_rounding(tmp_path: Path) -> None:
    mp4 = ffmpeg_copy(coded_mp4(0, 20), tmp_path, "-bsf:v", "h264_metadata=sample_aspect_ratio=5120/5123")
    assert read_number(PyAVDecoder().decode(mp4, np.array([3]), [WHOLE], 64)[0]) == 3


def test_columns_that_the_stream_cuts_off_at_the_left_are_not_shown(tmp_path: Path) -> None:
    mp4 = coded_mp4(0, 20)
    cut = ffmpeg_copy(mp4, tmp_path, "-bsf:v", "h264_metadata=crop_left=8:crop_top=4")
    with pytest.raises(DecodeError, match="size differs: frame 0 has 120×124 pixels; the mp4 says 128×128"):
        PyAVDecoder().decode(cut, np.array([3]), [WHOLE], 64)
    cut = ffmpeg_copy(cut, tmp_path)  # which writes the size of the stream into the mp4
    found = PyAVDecoder().decode(cut, np.array([3]), [Crop(top=0, left=0, height=124, width=120)], 64)
    expected = reference(mp4, Crop(top=4, left=8, height=124, width=120), 64)[3]
    assert np.abs(found[0] - expected).max() < 2
    with pytest.raises(DecodeError, match="size differs"):  # its own libavcodec shows them
        open_decoder("decord").decode(cut, np.array([3]), [Crop(top=0, left=0, height=124, width=120)], 64)


@pytest.mark.parametrize("name", DECODERS)
def test_colours_that_only_the_container_states_are_used(name: DecoderName) -> None:
    mp4 = colours.tagged_mp4(colours.UNSPECIFIED, 0)
    crop, size = CROPS[1]
    for matrix, limits in itertools.product((colours.BT709, colours.BT2020), (colours.LIMITED, colours.FULL)):
        (found,) = open_decoder(name).decode(insert_box(mp4, colr_box(matrix, limits)), np.array([0]), [crop], size)
        expected = reference(mp4, crop, size, matrix=matrix, limits=limits)[0]
        assert np.abs(found - expected)[_flat(expected)].max() <= 3


@pytest.mark.parametrize("name", DECODERS)
def test_a_container_that_contradicts_the_stream_is_refused(name: DecoderName) -> None:
    mp4 = colours.tagged_mp4(colours.BT709, colours.LIMITED)
    for box in (colr_box(colours.SMPTE170M, colours.LIMITED), colr_box(colours.BT709, colours.FULL)):
        with pytest.raises(DecodeError, match="colour: the stream says matrix 1, MPEG"):
            open_decoder(name).decode(insert_box(mp4, box), np.array([0]), [CROPS[0][0]], 64)


def colr_box(matrix: int, limits: int) -> bytes:
    """Return a box that states the colours of a track."""
    codes = b"".join(code.to_bytes(2, "big") for code in (2, 2, matrix))
    return b"\0\0\0\x13colrnclx" + codes + (b"\x80" if limits == colours.FULL else b"\0")


def insert_box(mp4: bytes, box: bytes) -> bytes:
    """Return an mp4, whose index is behind its media data, with a box added to its sample description."""
    data = bytearray(mp4)
    moov = data.index(b"moov")
    at = data.index(b"avcC", moov) - 4
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        size_at = data.index(name, moov) - 4
        size = int.from_bytes(data[size_at : size_at + 4], "big") + len(box)
        data[size_at : size_at + 4] = size.to_bytes(4, "big")
    data[at:at] = box
    return bytes(data)
