"""Rendered frames change smoothly."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from preprocessing.demo import DemoDataset
from tests.preprocessing.demo.demo_files import decode

pytestmark = pytest.mark.medium


def test_frames_change_smoothly(dataset: DemoDataset, truth: dict[str, Any]) -> None:
    uid = json.loads(dataset.ego4d.read_text(encoding="utf-8"))["videos"][5]["video_uid"]
    frames = [frame.to_ndarray(format="gray")[:-30].astype(float) for frame in decode(dataset.videos / f"{uid}.mp4")]
    assert all(30 < frame.mean() < 220 and frame.std() > 15 for frame in frames)
    changes = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(frames)]
    assert max(changes) < 25  # smooth: no cut, no flash
    assert float(np.median(changes)) > 0.3
