"""Search ranks exactly, names what it does not know, and shows what it found in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.search import EmbeddedSet, SearchError, choose_splits, find_split, likest, main, nearest
from hiervl_train.models import AggregatorConfig, HierVL, storage
from hiervl_train.tokenizer import Tokenizer
from shards.config import SourceConfig
from shards.dataset import Dataset
from shards.sources import open_source
from tests.browser import Browser, outside, serve
from tests.hiervl_train.tiny import tiny_config, tiny_text
from tests.paths import REPOSITORY
from tests.shards.coded import coded_clip, coded_dataset, coded_summary

CLIPS, SUMMARIES = 10, 3
NASTY = "</script><img src=x onerror=alert(1)> \"quoted\" 'أهلا' \u202e& [bold]"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    summaries = [coded_summary(number, seconds=6, narrations=2) for number in range(SUMMARIES)]
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
def run(dataset: Dataset, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what runs a search in a folder of its own, and gives its exit code."""
    monkeypatch.chdir(tmp_path)

    def search(*arguments: str) -> int:
        return main([str(dataset.root), "--checkpoint", str(checkpoint), "-o", "workers=0", *arguments])

    return search


def part(set_name: str, vectors: list[list[float]], *, split: str = "train", first: int = 0) -> EmbeddedSet:
    matrix = np.asarray(vectors, np.float32).reshape(len(vectors), 3)
    matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    keys = [f"{set_name}_{number + first:03d}" for number in range(len(matrix))]
    return EmbeddedSet(set_name=set_name, split=split, keys=keys, vectors_ND=matrix)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_nearest_are_those_of_a_plain_sort(first: int, second: int, top: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(-2, 3, (first + second, 3)).astype(float).tolist()  # few values: ties, and length 0
    parts = [part("clips", rows[:first]), part("clips", rows[first:], split="val", first=first)]
    query = random.normal(size=3).astype(np.float32)
    unit = query / np.linalg.norm(query)
    scores = [-float(p.vectors_ND[i] @ unit) for p in parts for i, key in enumerate(p.keys) if key != "clips_001"]
    found = nearest(query, parts, top, leave_out="clips_001")["clips"]
    assert [-hit.score for hit in found] == pytest.approx(sorted(scores)[:top], abs=1e-6)
    assert len({hit.key for hit in found}) == len(found)
    assert "clips_001" not in {hit.key for hit in found}


def test_sets_are_ranked_apart_and_splits_of_a_set_together() -> None:
    parts = [part("clips", [[1, 0, 0]]), part("clips", [[1, 1, 0]], split="val", first=1), part("late", [[0, 1, 0]])]
    found = nearest(np.array([1.0, 0.2, 0.0], np.float32), parts, 5)
    assert [(hit.key, hit.split) for hit in found["clips"]] == [("clips_000", "train"), ("clips_001", "val")]
    assert [hit.key for hit in found["late"]] == ["late_000"]


def test_equal_ones_come_in_the_order_of_their_keys() -> None:
    found = nearest(np.array([1.0, 0.0, 0.0], np.float32), [part("clips", [[2, 0, 0]] * 9)], 4)["clips"]
    assert [hit.key for hit in found] == [f"clips_{i:03d}" for i in range(4)]


def test_the_likest_key_of_very_many_differs_least_and_from_the_end() -> None:
    keys = [f"video-{video:05d}_c1_{number:06d}" for video in range(1000) for number in range(100)]
    assert likest("video-00123_c1_00005O", keys) in [f"video-00123_c1_00005{i}" for i in range(10)]
    assert likest("anything", []) is None


def test_an_unknown_key_is_named_with_the_likest_known_one(dataset: Dataset) -> None:
    source = open_source(dataset.root, SourceConfig())
    key = coded_clip(5, video="video-001").key
    assert find_split(source, key) == ("clips", "train")
    with pytest.raises(SearchError, match=re.escape(f"no sample '{key}x'; the likest is {key}")):
        find_split(source, f"{key}x")


def test_sets_are_chosen_by_name_or_with_their_split(dataset: Dataset) -> None:
    assert choose_splits(dataset, "") == [("clips", "train"), ("summaries", "train")]
    assert choose_splits(dataset, "summaries") == [("summaries", "train")]
    assert choose_splits(dataset, "summaries,clips/train") == [("clips", "train"), ("summaries", "train")]
    with pytest.raises(SearchError, match="no 'clips/val'; it has clips/train, summaries/train"):
        choose_splits(dataset, "clips/val")


def test_a_text_finds_clips_and_summaries_that_play(
    run, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("#C C does 3", "--top", "4", "--output", "page") == 0
    printed = capsys.readouterr().out
    assert "page/index.html" in printed and "summaries" in printed
    with Browser() as browser, serve(tmp_path / "page") as url:
        for address in (f"{url}/index.html", (tmp_path / "page" / "index.html").as_uri()):
            report = browser.open_page(address, width=390)
            assert report.console_errors == [] and outside(report) == []
            assert len(report.videos) == 4 + SUMMARIES
            assert all(video.problem is None and video.advanced >= 0.15 for video in report.videos)
            assert report.images and all(image.width > 0 for image in report.images)
            assert report.width == 390
            assert "Nearest in clips" in report.text and "Nearest in summaries" in report.text


@pytest.mark.parametrize("kind", ["clip", "summary"])
def test_a_sample_finds_others_and_is_not_among_them(run, tmp_path: Path, kind: str) -> None:
    key = coded_clip(5, video="video-001").key if kind == "clip" else coded_summary(1, seconds=6, narrations=2).key
    assert run("--key", key, "--output", "page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count(f'src="media/{key}.mp4#') == 1, "shown once, above what was found"
    assert page.count("<figure>") == CLIPS + SUMMARIES - 1


def test_a_query_need_not_be_in_a_set_that_is_searched(run, tmp_path: Path) -> None:
    key = coded_summary(1, seconds=6, narrations=2).key
    assert run("--key", key, "--sets", "clips", "--output", "page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert f"media/{key}.mp4" in page and "Nearest in summaries" not in page


def test_hostile_queries_are_shown_as_they_are(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(NASTY, "--top", "1") == 0
    (page,) = (tmp_path / "runs" / "search").glob("*/index.html")
    with Browser() as browser:
        report = browser.open_page(page.as_uri(), max_videos=0, ask={"h1": "document.querySelector('h1').textContent"})
    assert report.console_errors == [] and report.answers["h1"] == NASTY
    assert "wrote runs/search/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--key", "video-001_c1_00000x"), "the likest is video-001_c1_00000"),
        (("text", "--sets", "egomcq"), "no 'egomcq'"),
        (("text", "--checkpoint", "absent"), "absent"),
        (("text", "-o", "tokenizer=/absent/tokenizer"), "/absent/tokenizer"),
        (("text", "-o", "frame=3"), "frames"),
    ],
)
def test_what_is_wrong_is_named(run, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("text", "--key", "k"), ("  ",), ("text", "--top", "0")])
def test_wrong_usage_is_refused(run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2


def test_the_script_says_how_it_is_used() -> None:
    shown = subprocess.run(
        [sys.executable, "eval/search.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0 and "--key" in shown.stdout
