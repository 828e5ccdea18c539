"""Inspect shows what is in a dataset, whatever the captions hold, and writes a page that plays."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from shards import schema
from shards.index import write_dataset
from shards.inspect.__main__ import main
from tests.browser import Browser
from tests.shards import samples

EVIL = "</p><script>alert(1)</script><img src=x onerror=alert(2)> [bold]\"'&"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    dataset = samples.make_dataset(root)
    samples.write_shard(root, [samples.clip(0, video="evil", text=EVIL)], number=3)
    write_dataset(root, config={}, toolchain=dataset.toolchain, provenance=dataset.provenance)
    return root


def test_the_tables_add_up(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"clips/train +3 +9 +2 +3 +6\.3 s +7\.2 s", printed)
    assert re.search(r"summaries/train +1.00", printed)
    assert re.search(r"clips +failed +decode_error +1", printed)
    assert re.search(r"failed +damaged +20\.0 s", printed)
    assert "x264" in printed


def test_one_sample_is_shown_with_its_place_and_record(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = samples.clip(1, tags=(1, 2))
    assert main([str(root), "--key", sample.key]) == 0
    printed = capsys.readouterr().out
    assert f"{sample.key} in clips/train/00000.tar" in printed
    assert json.loads(printed[printed.index("\n{") :]) == schema.to_json(sample.record)


def test_what_is_not_there_is_an_error_that_says_what_to_do(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(root), "--key", "nobody_c1_000000"]) == 1
    assert "no sample has the key 'nobody_c1_000000'" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert "dataset.json: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([str(root), "--samples", "0"])
    assert caught.value.code == 2


def test_the_page_plays_from_a_folder_beside_it_and_no_caption_gets_out_of_its_place(
    root: Path, tmp_path: Path, browser: Browser
) -> None:
    command = [sys.executable, "-m", "shards.inspect", root, "--html", tmp_path / "my page.html"]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "my page.html").read_text()
    assert len(page) < 60_000, "no image is in the page itself"
    assert page.count("<script") == 1 and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page and "人参を切る 🥕" in page
    media = {quote(path.relative_to(tmp_path).as_posix()) for path in (tmp_path / "my page.html.media").iterdir()}
    named = {name.partition("#")[0] for name in re.findall(r'(?:src|poster)="([^"]*)"', page)}
    assert named == media and len(media) > 20
    assert page.count("<figure>") == 12
    assert page.count('<section class="item">') == 4
    report = browser.open_page((tmp_path / "my page.html").as_uri(), width=390, max_videos=3, play_seconds=10)
    assert report.console_errors == [] and report.width == 390
    assert len(report.videos) == 3 and all(video.problem is None and video.width for video in report.videos)
    assert report.images and all(image.width > 0 for image in report.images)


def test_a_page_has_a_bounded_number_of_videos_and_no_withdrawn_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.inspect.page._MAX_VIDEOS", 10_000)
    copy = shutil.copytree(root, tmp_path / "shards")
    (copy / "denylist.txt").write_text("evil\n")
    assert main([str(copy), "--html", str(tmp_path / "page.html")]) == 0
    videos = list((tmp_path / "page.html.media").glob("*.mp4"))
    assert videos and sum(path.stat().st_size for path in videos) <= 10_000
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 11 and "alert(1)" not in page
    assert page.count("<video") == len(videos)


def test_the_page_shows_as_many_samples_as_asked_for(root: Path, tmp_path: Path) -> None:
    main([str(root), "--html", str(tmp_path / "page.html"), "--samples", "2"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 4
    assert "2 of 9 samples" in page
