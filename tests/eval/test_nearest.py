"""The nearest samples are those of a plain sort; unknown sets and samples are reported with what exists instead."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.nearest import EmbeddedSet, SearchError, choose_splits, closest_key, find_split, nearest
from shards.config import SourceConfig
from shards.dataset import Dataset
from shards.sources import open_source
from tests.shards.coded import coded_clip, coded_dataset, coded_summary


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    summaries = [coded_summary(number, seconds=6, narrations=2) for number in range(3)]
    return coded_dataset(tmp_path_factory.mktemp("search") / "shards", (6, 4), summaries=summaries)


def embedded_set(set_name: str, vectors: list[list[float]], *, split: str = "train", first: int = 0) -> EmbeddedSet:
    matrix = np.asarray(vectors, np.float32).reshape(len(vectors), 3)
    matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    keys = [f"{set_name}_{number + first:03d}" for number in range(len(matrix))]
    return EmbeddedSet(set_name=set_name, split=split, keys=keys, vectors_ND=matrix)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_nearest_are_those_of_a_plain_sort(first: int, second: int, top: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(-2, 3, (first + second, 3)).astype(float).tolist()  # few values: ties, and length 0
    parts = [embedded_set("clips", rows[:first]), embedded_set("clips", rows[first:], split="val", first=first)]
    query = random.normal(size=3).astype(np.float32)
    unit = query / np.linalg.norm(query)
    scores = [-float(p.vectors_ND[i] @ unit) for p in parts for i, key in enumerate(p.keys) if key != "clips_001"]
    found = nearest(query, parts, top, exclude="clips_001")["clips"]
    assert [-hit.score for hit in found] == pytest.approx(sorted(scores)[:top], abs=1e-6)
    assert len({hit.key for hit in found}) == len(found)
    assert "clips_001" not in {hit.key for hit in found}


def test_sets_are_ranked_separately_and_the_splits_of_a_set_together() -> None:
    parts = [
        embedded_set("clips", [[1, 0, 0]]),
        embedded_set("clips", [[1, 1, 0]], split="val", first=1),
        embedded_set("late", [[0, 1, 0]]),
    ]
    found = nearest(np.array([1.0, 0.2, 0.0], np.float32), parts, 5)
    assert [(hit.key, hit.split) for hit in found["clips"]] == [("clips_000", "train"), ("clips_001", "val")]
    assert [hit.key for hit in found["late"]] == ["late_000"]


def test_ties_are_in_the_order_of_keys() -> None:
    found = nearest(np.array([1.0, 0.0, 0.0], np.float32), [embedded_set("clips", [[2, 0, 0]] * 9)], 4)["clips"]
    assert [hit.key for hit in found] == [f"clips_{i:03d}" for i in range(4)]


def test_the_closest_of_many_keys_differs_least_and_late() -> None:
    keys = [f"video-{video:05d}_c1_{number:06d}" for video in range(1000) for number in range(100)]
    assert closest_key("video-00123_c1_00005O", keys) in [f"video-00123_c1_00005{i}" for i in range(10)]
    assert closest_key("anything", []) is None


def test_an_unknown_key_is_reported_with_the_most_similar_one(dataset: Dataset) -> None:
    source = open_source(dataset.root, SourceConfig())
    key = coded_clip(5, video="video-001").key
    assert find_split(source, key) == ("clips", "train")
    with pytest.raises(SearchError, match=re.escape(f"no sample '{key}x'; the most similar key is {key}")):
        find_split(source, f"{key}x")


def test_sets_are_chosen_by_name_or_with_their_split(dataset: Dataset) -> None:
    assert choose_splits(dataset, "") == [("clips", "train"), ("summaries", "train")]
    assert choose_splits(dataset, "summaries") == [("summaries", "train")]
    assert choose_splits(dataset, "summaries,clips/train") == [("clips", "train"), ("summaries", "train")]
    with pytest.raises(SearchError, match="no 'clips/val'; it has clips/train, summaries/train"):
        choose_splits(dataset, "clips/val")
