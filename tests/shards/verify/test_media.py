"""Samples whose image or video contradicts their record are found and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shards.verify.run import verify
from tests.media import make_jpg, make_mp4
from tests.shards.verify.damage import TAR, forge


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_frames": 20}, "mp4: the video has 8 frames; in the record 20"),
        ({"num_frames": 7, "clip_frames": 6}, "mp4: the video has more than 7 frames; in the record 7"),
        ({"fps": 12.0}, "mp4: the frame rate is 10/s; in the record 12"),
        ({"width": 66}, "mp4: the video is 64×48; in the record 66×48"),
        ({"height": 50}, "jpg: the image is 64×48; in the record 64×50"),
        ({"segment": "video-a_7"}, "json: segment is 'video-a_7'; by narration_time it should be 'video-a_0'"),
        ({"jpg": make_jpg()[:200]}, "jpg: the image cannot be decoded"),
        ({"mp4": make_mp4()[:900]}, "mp4: the video cannot be decoded"),
        ({"mp4": make_mp4(audio=True)}, "mp4: the streams are video, audio"),
        ({"mp4": make_mp4(pix_fmt="yuv444p")}, "mp4: the video is h264, yuv444p"),
        ({"mp4": make_mp4(codec="mpeg4")}, "mp4: the video is mpeg4, yuv420p"),
        ({"mp4": make_mp4(gap=True)}, "mp4: the frame rate is not constant"),
        ({"mp4": make_mp4(headless=True)}, "mp4: the first packet is not a key frame"),
    ],
)
def test_a_sample_that_contradicts_its_record(root: Path, changes: dict[str, Any], problem: str) -> None:
    forge(root, **changes)
    findings = verify(root).findings
    expected = (TAR, "video-a_c1_000001", problem)
    assert expected in [(found.file, found.key, found.problem[: len(problem)]) for found in findings], findings
    assert {finding.file for finding in findings} == {TAR}
