"""Encoded videos: frame rates, and the flaws of the special ones."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import pytest

from preprocessing.demo import DemoDataset
from tests.preprocessing.demo.conftest import CONFIG
from tests.preprocessing.demo.demo_files import decode

pytestmark = pytest.mark.medium


def test_one_video_is_damaged_in_the_middle_and_decodes_elsewhere(
    dataset: DemoDataset, truth: dict[str, Any], videos: dict[str, dict[str, Any]]
) -> None:
    (uid,) = truth["special_videos"]["damaged"]
    good, errors = set(), 0
    with av.open(str(dataset.videos / f"{uid}.mp4")) as container:
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                errors += 1
                continue
            good |= {frame.pts * frame.time_base * CONFIG.fps for frame in frames if not frame.is_corrupt}
    total = videos[uid]["video_metadata"]["num_frames"]
    assert errors > 3
    assert 0.5 * total < len(good) < 0.97 * total
    assert set(range(total // 3)) <= good


def test_one_video_cannot_be_opened(dataset: DemoDataset, truth: dict[str, Any]) -> None:
    (uid,) = truth["special_videos"]["truncated"]
    assert (dataset.videos / f"{uid}.mp4").stat().st_size > 10_000
    with pytest.raises(av.FFmpegError):
        next(decode(dataset.videos / f"{uid}.mp4"))


def test_one_video_has_the_ntsc_frame_rate(dataset: DemoDataset, truth: dict[str, Any]) -> None:
    (odd,) = truth["special_videos"]["odd_rate"]
    rates = {}
    for path in dataset.videos.iterdir():
        if path.stem not in truth["special_videos"]["truncated"]:
            with av.open(str(path)) as container:
                rates[path.stem] = container.streams.video[0].average_rate
    assert rates.pop(odd) == Fraction(30000, 1001)
    assert set(rates.values()) == {Fraction(30)}
