"""Every single bit of a clip's packet table: what a flipped one changes is named, though all hashes are correct."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from shards import schema
from shards.decode import DecodeError, PyAVDecoder
from shards.sampling import Crop
from shards.verify.media import encoding_digest, mp4_problems
from tests.shards.samples import clip
from tests.shards.verify import forgery
from tests.shards.verify.damage import findings_text
from tests.shards.verify.forgery import CLIPS

_SHOWN = list[object]


def shown(mp4: bytes, record: schema.MediaRecord) -> _SHOWN:
    """Return all that the loader and a player show of a video: pixels, times, colours, shape and rotation."""
    crop = Crop(top=0, left=0, height=record.height, width=record.width)
    numbers = np.arange(record.num_frames)
    out: _SHOWN = []
    try:
        out.append(PyAVDecoder().decode(mp4, numbers, [crop] * len(numbers), 48).tobytes())
    except DecodeError as error:
        out.append(error.reason)
    try:
        with av.open(io.BytesIO(mp4), format="mp4", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                time = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
                out.append((time, frame.width, frame.height, frame.rotation, frame.colorspace, frame.color_range))
                out.append(frame.to_ndarray().tobytes())
            out.append(stream.sample_aspect_ratio or 1)
    except (av.FFmpegError, ValueError, IndexError) as error:
        out.append(type(error).__name__)
    return out


def flip_bits(made: schema.Sample, step: int) -> Counter[str]:
    """Flip every `step`th bit of the moov box alone; return how many are named, harmless and missed."""
    moov = made.mp4.index(b"moov") - 4
    size = int.from_bytes(made.mp4[moov : moov + 4], "big")
    before, encoding = shown(made.mp4, made.record), encoding_digest(made.mp4)
    counts: Counter[str] = Counter()
    for bit in range(0, 8 * size, step):
        mp4 = bytearray(made.mp4)
        mp4[moov + bit // 8] ^= 1 << bit % 8
        data = bytes(mp4)
        if list(mp4_problems(data, made.record, made.jpg)) or encoding_digest(data) != encoding:
            counts["named"] += 1
        else:
            counts["harmless" if shown(data, made.record) == before else f"missed: bit {bit}"] += 1
    return counts


def test_some_bits() -> None:
    counts = flip_bits(clip(1), 17)
    assert set(counts) == {"named", "harmless"} and counts["named"] > 150, counts


@pytest.mark.slow
def test_every_bit() -> None:
    counts = flip_bits(clip(1), 1)
    print(dict(counts))
    assert set(counts) == {"named", "harmless"} and counts["named"] > 2500, counts


def test_another_decoder_configuration_than_the_other_clips_of_the_video_have(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    forgery.make(root)

    def change(made: list[dict[str, bytes]]) -> None:
        mp4 = bytearray(made[2]["mp4"])
        mp4[mp4.index(b"avcC") + 20] ^= 1  # of the sequence parameters
        made[2]["mp4"] = bytes(mp4)

    forgery.records(root, CLIPS, change)
    text = findings_text(root)
    assert f"{CLIPS}.tar [video-a_c1_000002] mp4: its decoder configuration differs" in text, text
    shutil.rmtree(root)
