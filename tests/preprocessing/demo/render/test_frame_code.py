"""Frame codes are read exactly, and their absence is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from preprocessing.demo import DemoDataset, read_frame_code, read_video_code
from tests.preprocessing.demo.demo_files import decode

pytestmark = pytest.mark.medium


def test_frame_codes_are_exact_in_every_frame(
    dataset: DemoDataset, truth: dict[str, Any], videos: dict[str, dict[str, Any]]
) -> None:
    (uid,) = truth["special_videos"]["odd_rate"]
    numbers = [read_frame_code(frame.to_ndarray(format="rgb24")) for frame in decode(dataset.videos / f"{uid}.mp4")]
    assert numbers == list(range(videos[uid]["video_metadata"]["num_frames"]))


def test_frame_codes_survive_scaling_and_recompression(dataset: DemoDataset, tmp_path: Path) -> None:
    uid = json.loads(dataset.ego4d.read_text(encoding="utf-8"))["videos"][0]["video_uid"]
    small = tmp_path / "small.mp4"
    with av.open(str(small), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i, frame in enumerate(decode(dataset.videos / f"{uid}.mp4")):
            if i == 200:
                break
            container.mux(stream.encode(frame.reformat(128, 96, interpolation="BICUBIC")))
        container.mux(stream.encode(None))
    frames = [frame.to_ndarray(format="rgb24") for frame in decode(small)]
    assert [read_frame_code(frame) for frame in frames] == list(range(200))
    assert {read_video_code(frame) for frame in frames} == {0}


def test_a_frame_without_a_code_is_an_error() -> None:
    for level in (0, 128, 255):
        with pytest.raises(ValueError, match="no frame code"):
            read_frame_code(np.full((96, 128, 3), level, np.uint8))
