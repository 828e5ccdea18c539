"""Decoders return exactly the wanted frames; a damaged clip is an error and never a frame."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.video.clips import Cutter, read_packet_span
from shards.decode import DecodeError, PyAVDecoder, open_decoder
from shards.mp4 import read_packets
from shards.sampling import Crop, centre_crop
from tests.media import BUILD_OPTIONS, coded_mp4
from tests.paths import shared
from tests.preprocessing.coded_video import read_number, steady, write_video
from tests.shards.coded import SIDE

WHOLE = Crop(top=0, left=0, height=SIDE, width=SIDE)
DECODERS = ["pyav", "decord"] + (["torchcodec"] if importlib.util.find_spec("torchcodec") else [])


def reference(mp4: bytes, crop: Crop, size: int) -> np.ndarray:
    """Return all frames of an mp4, each decoded, cropped and scaled without the code under test."""
    out = []
    with av.open(_io(mp4)) as container:
        for frame in container.decode(video=0):
            planes = frame.to_ndarray(format="yuv420p")
            cropped = crop_yuv(planes, frame.width, frame.height, crop)
            scaled = cropped.reformat(
                width=size, height=size, format="rgb24", interpolation=Interpolation.BILINEAR | Interpolation.BITEXACT
            ).to_ndarray()
            out.append(scaled[:, ::-1] if crop.flip else scaled)
    return np.stack(out)


def crop_yuv(planes: np.ndarray, width: int, height: int, crop: Crop) -> av.VideoFrame:
    flat, at, parts = planes.reshape(-1), 0, []
    for step in (1, 2, 2):
        w, h = width // step, height // step
        plane = flat[at : at + w * h].reshape(h, w)
        at += w * h
        top, left = crop.top // step, crop.left // step
        parts.append(plane[top : top + crop.height // step, left : left + crop.width // step].reshape(-1))
    return av.VideoFrame.from_ndarray(np.concatenate(parts).reshape(crop.height * 3 // 2, crop.width), "yuv420p")


@given(
    frames=st.integers(1, 50),
    gop=st.sampled_from([1, 4, 16]),
    b_frames=st.integers(0, 7),
    wanted=st.lists(st.integers(0, 49), min_size=1, max_size=8),
    crop=st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(10, 36), st.integers(10, 36), st.booleans()),
)
@settings(max_examples=40, deadline=None)
def test_frames_are_bit_identical_to_decoding_everything(
    frames: int, gop: int, b_frames: int, wanted: list[int], crop: tuple[int, int, int, int, bool]
) -> None:
    mp4 = coded_mp4(100, frames, gop=gop, b_frames=b_frames)
    part = Crop(top=2 * crop[0], left=2 * crop[1], height=2 * crop[2], width=2 * crop[3], flip=crop[4])
    numbers = np.array([number % frames for number in wanted])
    found = PyAVDecoder().decode(mp4, numbers, [part] * len(numbers), 64)
    assert (found == reference(mp4, part, 64)[numbers]).all()


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
    numbers = np.array([5, 130, 131, 400, 719])
    crop = centre_crop(854, 480)
    found = PyAVDecoder().decode(mp4, numbers, [crop] * 5, 224)
    with av.open(_io(mp4)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in numbers:
                expected = crop_yuv(frame.to_ndarray(format="yuv420p"), 854, 480, crop).reformat(
                    width=224, height=224, format="rgb24", interpolation=Interpolation.BILINEAR | Interpolation.BITEXACT
                )
                assert (found[numbers.tolist().index(index)] == expected.to_ndarray()).all()


def _io(mp4: bytes) -> object:
    import io

    return io.BytesIO(mp4)
