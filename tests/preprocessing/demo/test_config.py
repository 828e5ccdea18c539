"""The configuration of the embedded dataset: presets and bounds."""

from __future__ import annotations

from typing import Any

import pytest

from configs.loading import ConfigError, from_dict, load
from preprocessing.demo import DemoConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos": 3}, "videos = 3"),
        ({"seconds": 5.0}, "seconds = 5.0"),
        ({"width": 321}, "width = 321"),
        ({"width": 96, "height": 128}, "width = 96"),
        ({"chunk_seconds": 600.0}, "chunk_seconds = 600.0"),
        ({"activity_pairs": 9}, "activity_pairs = 9"),
        ({"fps": 0}, "fps = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_an_invalid_value_is_named_with_its_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(DemoConfig, {"size": "tiny", **changes})


def test_presets_provide_defaults() -> None:
    config = load(DemoConfig, overrides=["size=tiny", "videos=9"])
    assert (config.videos, config.seconds) == (9, 22.0)
    assert load(DemoConfig, overrides=["videos=8", "seconds=22", "activity_pairs=2"]).identity() == (
        DemoConfig(size="tiny").identity()
    )
