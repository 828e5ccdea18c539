"""Names of classes and scenarios are read from the files that datasets publish; anything else is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shards.browse.names import NamesError, add_scenarios, names_in, read_taxonomies
from shards.browse.queries import VideoFilter, find_videos, scenarios
from shards.config import SourceConfig
from shards.dataset import Dataset
from shards.search.catalog import open_catalog
from shards.sources import open_source


@pytest.mark.parametrize(
    "content",
    [
        ",label,group\n0,take,\n1,put,\n",  # Ego4D's, as pandas writes it
        "id,key,instances\n1,put,\"['put']\"\n0,take,[]\n",  # EPIC-KITCHENS-100's
        "\ufefflabel\ntake\nput\n",
        '["take", "put"]',
        '{"1": "put", "0": "take"}',
    ],
)
def test_names_are_read_from_lists_and_tables(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a=b.csv"
    path.write_text(content)
    assert read_taxonomies([f"tag_verb={path}"]) == {"tag_verb": {0: "take", 1: "put"}}


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", '{"x": "y"}', "[1", "id,key\nx,y\n", '"take"'])
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "names").write_text(content)
    with pytest.raises(NamesError, match="names"):
        read_taxonomies([f"tag_verb={tmp_path / 'names'}"])


def test_own_videos_bring_their_names(sample_dataset: Dataset) -> None:
    own = replace(sample_dataset, provenance={"taxonomy": {"verbs": ["cut", "pour"], "nouns": ["cup"]}})
    assert names_in(own) == {"tag_verb": {0: "cut", 1: "pour"}, "tag_noun": {0: "cup"}}
    assert names_in(sample_dataset) == {}
    assert names_in(replace(sample_dataset, provenance={"taxonomy": ["cut"]})) == {}


def test_scenarios_become_a_filter(sample_dataset: Dataset, tmp_path: Path) -> None:
    catalog = open_catalog(open_source(sample_dataset.root, SourceConfig()), tmp_path / "catalog.sqlite")
    path = tmp_path / "ego4d.json"
    listed = [
        {"video_uid": "video-a", "scenarios": ["Cooking", "Cleaning"]},
        {"video_uid": "val-video", "scenarios": ["Cooking"]},
        {"video_uid": "elsewhere", "scenarios": None},
    ]
    path.write_text(json.dumps({"version": "2", "videos": listed}))
    assert add_scenarios(catalog, path) == 2
    assert add_scenarios(catalog, path) == 2, "as often as one likes"
    assert scenarios(catalog) == [("Cleaning", 1), ("Cooking", 2)]
    found, total = find_videos(catalog, VideoFilter(scenario="Cooking"), after=(), limit=9)
    assert [video.uid for video in found] == ["val-video", "video-a"] and total == 2
    path.write_text('{"videos": [3]}')
    with pytest.raises(NamesError, match=r"not an ego4d\.json"):
        add_scenarios(catalog, path)
