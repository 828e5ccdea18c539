"""A search finds what a plain sort of all embeddings finds, and embeds every split once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.config import EvalConfig
from eval.embed import aggregate_windows, embed_split
from eval.nearest import Query, Searcher, SearchError, choose_splits, find_key, run_search
from eval.run import open_configured
from hiervl_train.distributed import DistributedContext
from hiervl_train.models import AggregatorConfig, HierVL, storage
from hiervl_train.tokenizer import Tokenizer
from shards.config import SourceConfig
from shards.dataset import Dataset
from shards.search.catalog import open_catalog
from shards.sources import open_source
from tests.hiervl_train.tiny import tiny_config, tiny_text
from tests.shards.coded import coded_clip, coded_dataset, coded_summary


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    summaries = [coded_summary(number, seconds=6, narrations=2) for number in range(3)]
    return coded_dataset(tmp_path_factory.mktemp("search") / "shards", (6, 4), summaries=summaries)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    aggregator = AggregatorConfig(depth=1, num_heads=2, tokens=4, drop_path=0.0)
    storage.save(HierVL(tiny_config(text=tiny_text(), aggregator=aggregator)), folder)
    Tokenizer.build(["#C C does 0 1 2 3"], vocab_size=40, max_length=16).save(folder)
    return folder


@pytest.fixture
def searcher(dataset: Dataset, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Searcher:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, ranks = EvalConfig(checkpoint=checkpoint), DistributedContext()
    opened = open_configured(config, ranks)
    return Searcher(
        opened=opened,
        source=open_source(dataset.root, SourceConfig()),
        settings=replace(config.embedding(opened), workers=0),
        ranks=ranks,
        cache=tmp_path / "embeddings",
    )


def plain_scores(searcher: Searcher, set_name: str, query_D: np.ndarray) -> dict[str, float]:
    """Return key → cosine by embedding everything at once."""
    found = embed_split(searcher.opened.model, searcher.source, set_name, "train", searcher.settings)
    assert found is not None
    vectors = found.vectors
    if set_name == "summaries":
        vectors = aggregate_windows(searcher.opened.model, vectors, searcher.settings.speed, torch.device("cpu"))
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query_D)
    return dict(zip(found.keys, (vectors @ query_D / lengths).tolist(), strict=True))


def test_the_nearest_are_those_of_a_plain_sort(searcher: Searcher) -> None:
    query = Query(text="#C C does 3")
    found = run_search(searcher, [("clips", "train"), ("summaries", "train")], query, 5)
    assert found is not None
    result, _ = found
    query_D = searcher.query(query, None, "")
    assert query_D is not None
    for set_name, moments in result.moments.items():
        expected = plain_scores(searcher, set_name, query_D)
        best = sorted(expected.values(), reverse=True)[: len(moments)]
        assert [moment.score for moment in moments] == pytest.approx(best, abs=2e-3), "vectors are half floats"
        assert all(moment.score == pytest.approx(expected[moment.sample.key], abs=2e-3) for moment in moments)
    assert result.samples == 13


def test_a_split_is_embedded_once(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = [("clips", "train"), ("summaries", "train")]
    key = coded_clip(5, video="video-001").key
    first = run_search(searcher, splits, Query(key=key), 4)
    monkeypatch.setattr("eval.nearest.embed_split", lambda *_, **__: pytest.fail("embedded again"))
    second = run_search(searcher, splits, Query(key=key), 4)
    assert first is not None and second is not None and first[0] == second[0]
    assert first[0].own is not None and first[0].own.key == key
    assert key not in {moment.sample.key for moments in first[0].moments.values() for moment in moments}


def test_a_query_outside_the_searched_sets_reads_one_shard(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    parquet = type(searcher.source).parquet

    def noted(self, shard):
        read.append(f"{shard.path.parent.parent.name}/{shard.name}")
        return parquet(self, shard)

    run_search(searcher, [("summaries", "train")], Query(text="a"), 1)  # the catalog and the vectors are made
    monkeypatch.setattr(type(searcher.source), "parquet", noted)
    own = coded_clip(7, video="video-001").key
    found = run_search(searcher, [("summaries", "train")], Query(key=own), 3)
    assert found is not None and len(found[0].moments["summaries"]) == 3
    assert set(read) == {"clips/00001.tar"}


def test_a_video_that_is_withdrawn_is_not_found_and_found_again_when_it_returns(
    searcher: Searcher, dataset: Dataset
) -> None:
    def videos() -> set[str]:
        found = run_search(searcher, [("clips", "train")], Query(text="#C C does 3"), 20)
        assert found is not None
        return {moment.sample.video_uid for moment in found[0].moments["clips"]}

    everything, denylist = videos(), dataset.root / "denylist.txt"
    try:
        denylist.write_text("video-001\n")
        assert videos() == everything - {"video-001"}
        run_search(replace(searcher, cache=searcher.cache / "other"), [("clips", "train")], Query(text="a"), 1)
        denylist.unlink()
        other = replace(searcher, cache=searcher.cache / "other")
        found = run_search(other, [("clips", "train")], Query(text="a"), 20)
        assert found is not None
        assert {moment.sample.video_uid for moment in found[0].moments["clips"]} == everything
    finally:
        denylist.unlink(missing_ok=True)


def test_an_unknown_key_is_reported_with_the_most_similar_one(dataset: Dataset, tmp_path: Path) -> None:
    source = open_source(dataset.root, SourceConfig())
    catalog = open_catalog(source, tmp_path / "catalog.sqlite")
    key = coded_clip(5, video="video-001").key
    assert find_key(source, catalog, key).key == key
    with pytest.raises(SearchError, match=re.escape(f"no sample '{key}x'; the most similar key is {key}")):
        find_key(source, catalog, f"{key}x")


def test_sets_are_chosen_by_name_or_with_their_split(dataset: Dataset) -> None:
    assert choose_splits(dataset, "") == [("clips", "train"), ("summaries", "train")]
    assert choose_splits(dataset, "summaries") == [("summaries", "train")]
    assert choose_splits(dataset, "summaries,clips/train") == [("clips", "train"), ("summaries", "train")]
    with pytest.raises(SearchError, match="no 'clips/val'; it has clips/train, summaries/train"):
        choose_splits(dataset, "clips/val")
