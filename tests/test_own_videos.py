"""Own videos end to end: one command builds them, one trains, one scores, one searches."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.recall import BENCHMARK
from eval.recall import main as recall
from eval.results import Result
from eval.search import main as search
from hiervl_train.monitor.metrics import read_metrics
from tests.browser import Browser, serve
from tests.hiervl_train.runs import FIRST_VERSION
from tests.paths import REPOSITORY


@pytest.fixture(scope="module")
def run(own_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of configs/pretrain/custom.yaml from an own checkpoint."""
    folder = tmp_path_factory.mktemp("own") / "run"
    command = [sys.executable, str(REPOSITORY / "hiervl_train" / "pretrain.py")]
    command += [f"--config={REPOSITORY / 'configs' / 'pretrain' / 'custom.yaml'}", f"data.root={own_videos / 'shards'}"]
    command += [f"init_from={FIRST_VERSION}", f"run.folder={folder}", "sizing.steps=4", "data.workers=1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ clips and \d+ summaries: 1 epochs of 4 steps", done.stdout)
    return folder


def test_the_run_evaluates_itself_on_the_val_split(run: Path) -> None:
    evaluated = {name for row in read_metrics(run) for name in row if name.startswith("eval/")}
    assert {"eval/recall_clips/text_to_video@1", "eval/recall_clips/video_to_text@5", "eval/mcq/inter"} <= evaluated


def test_recall_is_measured_over_videos(run: Path, own_videos: Path, tmp_path: Path) -> None:
    root = str(own_videos / "shards")
    arguments = ["--checkpoint", str(run), "--shards", root, f"output={tmp_path}", "cache=null", "data.workers=0"]
    assert recall(BENCHMARK, arguments) == 0
    result = Result.load(tmp_path)
    assert result.scores[0].name == "text → video R@1" and result.scores[0].low is not None


def test_a_search_shows_the_files_by_their_names(
    run: Path,
    own_videos: Path,
    tmp_path: Path,
    browser: Browser,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = [str(own_videos / "shards"), "a red square moves left", "--checkpoint", str(run), "--top", "4"]
    assert search([*arguments, f"--output={tmp_path / 'page'}", "cache=null", "data.workers=0"]) == 0
    out = capsys.readouterr().out
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    names = [path.name for path in (own_videos / "videos").rglob("*.*")]
    shown = [name for name in names if name in out]
    assert len(shown) >= 2 and all(name in page for name in shown)
    assert all(re.search(rf"{re.escape(name)} 0:0\d", out) for name in shown)
    with serve(tmp_path / "page") as url:
        report = browser.open_page(f"{url}/index.html")
    assert report.console_errors == [] and report.videos
