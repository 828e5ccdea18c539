"""Search by meaning shows the nearest samples: two annotators once, the query itself and withdrawn videos never."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.browse.embeddings import find_embeddings
from shards.browse.finding import search
from shards.browse.frame import PageError, Site
from shards.browse.sample import sample
from shards.config import SourceConfig
from shards.html.elements import join
from shards.search.catalog import open_catalog
from shards.search.vectors import finish_vectors, write_vectors
from shards.sources import open_source
from tests.shards.browse.conftest import make_root
from tests.shards.search.test_prepare import CLIP, write_features

WIDTH = 4


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A dataset of which the vectors are random, but for the two passes of one moment, which are alike."""
    folder = tmp_path_factory.mktemp("finding")
    source = open_source(make_root(folder / "shards"), SourceConfig())
    random = np.random.default_rng(1)
    for set_name, split_name, split in source.dataset.splits():
        for shard in split.shards:
            keys = shard.rows(["key"])["key"].to_pylist()
            vectors = random.normal(size=(len(keys), WIDTH)).astype(np.float32)
            vectors[[key.startswith("two-passes") for key in keys]] = [1, 0, 0, 0]
            write_vectors(folder / "mine" / set_name / split_name, shard.name, keys, vectors)
        finish_vectors(folder / "mine", set_name, split_name, split.fingerprint, checkpoint="abc")
    write_features(source.dataset, source.dataset.root / "features" / "towers", {"clips": (CLIP,)})
    embeddings = find_embeddings(source.dataset, [folder / "mine"], folder / "cache")
    catalog = open_catalog(source, folder / "catalog.sqlite")
    return Site(source=source, catalog=catalog, name="shards", embeddings=embeddings)


class Encoder:
    """Stands for a model: every text is the first axis."""

    digest = "abc"

    def __call__(self, text: str) -> np.ndarray:
        return np.array([3.0, 0, 0, 0], np.float32)


def shown(site: Site, **query: str) -> list[str]:
    return re.findall(r'src="/media/([^".]*)\.mp4', join(search(site, query).body))


def test_the_nearest_of_a_sample_are_shown_without_itself(site: Site) -> None:
    key = "video-a_c1_000001"
    first, *others = shown(site, like=key, by="mine")
    assert first == key, "the query, above"
    assert key not in others and len(others) == len(set(others)) > 8
    assert "video-a_s1_000001" in others


def test_a_summary_is_shown_with_its_narrations(site: Site) -> None:
    page = join(search(site, {"like": "video-a_c1_000001", "by": "mine"}).body)
    assert "3 narrations</summary>" in page and "人参を切る" in page


def test_two_annotators_of_one_moment_are_one_hit(site: Site) -> None:
    encoded = replace(site, encoder=Encoder())
    hits = shown(encoded, q="juggles", by="mine")
    assert hits[0] == "two-passes_c1_000005" and "two-passes_c2_000005" not in hits
    assert "also: " in join(search(encoded, {"q": "juggles", "by": "mine"}).body)


def test_feature_sets_of_the_dataset_are_opened_when_they_are_used(site: Site) -> None:
    assert site.embeddings.names == ["towers", "mine"]
    page = join(sample(site, {"key": "video-a_c1_000001"}).body)
    assert "by towers" in page and ">Similar<" in page
    assert not site.embeddings.is_open("towers")
    assert len(shown(site, like="video-a_c1_000001", by="towers")) > 3
    assert site.embeddings.is_open("towers")


def test_what_cannot_be_searched_is_said(site: Site) -> None:
    with pytest.raises(PageError, match="--checkpoint"):
        search(site, {"q": "text", "by": "mine"})
    other = replace(site, encoder=type("Other", (Encoder,), {"digest": "def"})())
    with pytest.raises(PageError, match="another checkpoint"):
        search(other, {"q": "text", "by": "mine"})
    with pytest.raises(PageError, match="no embeddings 'theirs'; there are towers, mine"):
        search(site, {"q": "text", "by": "theirs"})


def test_withdrawn_videos_are_not_among_the_hits(site: Site, tmp_path: Path) -> None:
    root = shutil.copytree(site.source.dataset.root, tmp_path / "shards")
    (root / "denylist.txt").write_text("two-passes\n")
    other = replace(site, source=open_source(root, SourceConfig()), encoder=Encoder())
    assert not [key for key in shown(other, q="juggles", by="mine") if "two-passes" in key]
