"""The embedded dataset and its files, rendered once per test run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocessing.demo import DemoConfig, DemoDataset, generate
from tests.preprocessing.demo.demo_files import read_table

CONFIG = DemoConfig(size="tiny", frame_code=True)


@pytest.fixture(scope="session")
def dataset(make_once: Callable[[str, Callable[[Path], DemoDataset]], DemoDataset]) -> DemoDataset:
    """The smallest preset with frame codes; not to be modified."""
    return make_once("demo", lambda folder: generate(CONFIG, folder / "embedded", workers=1))


@pytest.fixture(scope="session")
def clips(dataset: DemoDataset) -> list[dict[str, Any]]:
    """The rows of egoclip.csv."""
    return read_table(dataset.egoclip)


@pytest.fixture(scope="session")
def summaries(dataset: DemoDataset) -> list[dict[str, Any]]:
    """The rows of egosummary_full.csv."""
    return read_table(dataset.egosummary)


@pytest.fixture(scope="session")
def truth(dataset: DemoDataset) -> dict[str, Any]:
    """The content of activities.json."""
    tree: dict[str, Any] = json.loads(dataset.activities.read_text(encoding="utf-8"))
    return tree


@pytest.fixture(scope="session")
def videos(dataset: DemoDataset) -> dict[str, dict[str, Any]]:
    """The videos of ego4d.json by uid."""
    return {video["video_uid"]: video for video in json.loads(dataset.ego4d.read_text(encoding="utf-8"))["videos"]}
