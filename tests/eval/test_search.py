"""Search shows the nearest samples in a page that plays in a real browser, and reports what it does not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval.search import main
from hiervl_train.models import AggregatorConfig, HierVL, storage
from hiervl_train.tokenizer import Tokenizer
from shards.dataset import Dataset
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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def search(*arguments: str) -> int:
        return main([str(dataset.root), "--checkpoint", str(checkpoint), "data.workers=0", *arguments])

    return search


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
def test_a_sample_finds_others_and_not_itself(run, tmp_path: Path, kind: str) -> None:
    key = coded_clip(5, video="video-001").key if kind == "clip" else coded_summary(1, seconds=6, narrations=2).key
    assert run("--key", key, "--output", "page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count(f'src="media/{key}.mp4#') == 1, "shown once, above what was found"
    assert page.count("<figure>") == CLIPS + SUMMARIES - 1


def test_the_query_need_not_be_in_a_searched_set(run, tmp_path: Path) -> None:
    key = coded_summary(1, seconds=6, narrations=2).key
    assert run("--key", key, "--sets", "clips", "--output", "page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert f"media/{key}.mp4" in page and "Nearest in summaries" not in page


def test_hostile_queries_are_shown_as_text(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(NASTY, "--top", "1") == 0
    (page,) = (tmp_path / "runs" / "search").glob("*/index.html")
    with Browser() as browser:
        report = browser.open_page(page.as_uri(), max_videos=0, ask={"h1": "document.querySelector('h1').textContent"})
    assert report.console_errors == [] and report.answers["h1"] == NASTY
    assert "wrote runs/search/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--key", "video-001_c1_00000x"), "the most similar key is video-001_c1_00000"),
        (("text", "--sets", "egomcq"), "no 'egomcq'"),
        (("text", "--checkpoint", "absent"), "absent"),
        (("text", "tokenizer.source=/absent/tokenizer"), "/absent/tokenizer"),
        (("text", "frame=3"), "frames"),
    ],
)
def test_a_wrong_request_is_reported(
    run, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("text", "--key", "k"), ("  ",), ("text", "--top", "0")])
def test_wrong_usage_is_refused(run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2


@pytest.mark.medium
def test_the_script_has_help() -> None:
    shown = subprocess.run(
        [sys.executable, "eval/search.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0 and "--key" in shown.stdout
