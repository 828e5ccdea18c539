"""The configuration of annotations: contradictions and unknown keys are errors, and YAML preserves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.loading import ConfigError, from_dict, load, to_yaml
from preprocessing.annotations import AnnotationsConfig
from tests.preprocessing.annotation_files import write


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"egoclip": "a", "narrations": "b"}, "give one of the two"),
        ({"egosummary": "a"}, "goes with annotations.egoclip"),
        ({"narrations": "a", "alpha": 0.0}, "alpha = 0.0: Input should be greater than 0"),
        ({"egoclip": "a", "alpha": 4.9}, "has no effect"),
        ({"narrations": "a", "split_fields": [""]}, "empty field name"),
        ({"egoclips": "a"}, "did you mean egoclip"),
    ],
)
def test_a_contradictory_configuration_is_an_error(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(AnnotationsConfig, tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"epic_mir": {"test": "a"}}, "give both or neither"),
        ({"epic_mir": {}}, "give train or test"),
        ({"charades_ego": {"classes": "c"}}, "give train or test"),
        ({"charades_ego": {"test": "t"}}, "classes"),
        ({"howto100m": {}}, "give train or val"),
        ({"howto100m": {"train": "t", "num_classes": 0}}, "num_classes = 0: .*greater than 0"),
        ({"epic_mir": {"tests": "a"}}, "did you mean epic_mir.test"),
    ],
)
def test_a_contradictory_configuration_of_a_benchmark_is_an_error(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(AnnotationsConfig, tree)


def test_the_configuration_round_trips_through_yaml(tmp_path: Path) -> None:
    config = from_dict(AnnotationsConfig, {"narrations": "n.json", "exclude": ["a", "b.json"], "alpha": 4.9})
    assert load(AnnotationsConfig, write(tmp_path / "c.yaml", to_yaml(config))) == config
