"""Invalid loader configurations are refused, naming the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.loading import ConfigError, from_dict
from shards.config import LoaderConfig, SourceConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "lanes = 3: must divide global_batch = 4"),
        ({"crop_scale": (0.9, 0.5)}, r"crop_scale = \(0.9, 0.5\)"),
        ({"clip_seconds": (0.0, 1.0)}, r"clip_seconds = \(0.0, 1.0\)"),
        ({"frames": 0}, "frames = 0"),
        ({"flip": 1.5}, "flip = 1.5"),
    ],
)
def test_values_constructed_in_code_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**{"global_batch": 4, **changes})  # type: ignore[arg-type]


def test_values_from_yaml_are_converted_and_checked() -> None:
    config = from_dict(LoaderConfig, {"crop_scale": [0.4, 1.0], "source": {"cache": "/x"}})
    assert (config.crop_scale, config.source.cache) == ((0.4, 1.0), Path("/x"))
    with pytest.raises(ConfigError, match=r"unknown key source.cash.*did you mean source.cache"):
        from_dict(LoaderConfig, {"source": {"cash": "/x"}})


def test_the_cache_budget_is_in_bytes() -> None:
    assert SourceConfig(cache_gib=0.5).cache_bytes == 2**29
