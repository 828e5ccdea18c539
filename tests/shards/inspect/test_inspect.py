"""Inspect shows what is in a dataset, whatever the captions hold, and writes a page that fetches and runs nothing."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shards import schema
from shards.index import write_dataset
from shards.inspect.__main__ import main
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


def test_the_page_holds_its_pictures_and_no_caption_gets_out_of_its_place(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shards.inspect", root, "--html", tmp_path / "page.html"]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    pictures = re.findall(r"src=\"data:image/jpeg;base64,([^\"]+)\"", page)
    assert base64.b64decode(pictures[0]).startswith(b"\xff\xd8")
    assert page.count("<figure>") == 12
    assert page.count('<section class="item">') == 4
    assert "人参を切る 🥕" in page


def test_the_page_shows_as_many_samples_as_asked_for(root: Path, tmp_path: Path) -> None:
    main([str(root), "--html", str(tmp_path / "page.html"), "--samples", "2"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 4
    assert "2 of 9 samples" in page
