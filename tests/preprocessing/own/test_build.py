"""Own videos become shards by one command: what is in them, what a second build does, and what a dry run says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from shards.dataset import open_dataset
from shards.verify.run import verify
from tests.conftest import own_videos_command
from tests.paths import REPOSITORY

SECONDS = 8.0


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def records(root: Path, set_name: str, split: str) -> list[dict]:
    found = []
    for shard in open_dataset(root).split(set_name, split).shards:
        with tarfile.open(shard.path) as tar:
            found += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    return found


def test_every_caption_becomes_a_sound_sample_that_names_its_file(own_videos: Path) -> None:
    root = own_videos / "shards"
    clips = records(root, "clips", "train") + records(root, "clips", "val")
    summaries = records(root, "summaries", "train") + records(root, "summaries", "val")
    names = {str(p.relative_to(own_videos / "videos")) for p in (own_videos / "videos").rglob("*") if p.is_file()}
    assert len(names) == 20
    assert {record["video_uid"].replace(":", "/") for record in clips} == names
    assert len(clips) == 80 and len(summaries) == 20
    assert all(len(record["narrations"]) == 4 for record in summaries)
    assert all(record["text"].startswith("a ") and "extra" not in record for record in clips)
    taxonomy = open_dataset(root).provenance["taxonomy"]
    assert "move left" in taxonomy["verbs"] and {"red", "circle"} <= set(taxonomy["nouns"])
    for record in clips:
        word = record["text"].split()[1]
        assert taxonomy["nouns"].index(word) in record["tag_noun"]
    result = verify(root)
    assert not result.findings


def test_a_rotated_video_is_upright_and_an_overrun_is_cut(own_videos: Path) -> None:
    root = own_videos / "shards"
    clips = records(root, "clips", "train") + records(root, "clips", "val")
    (size,) = {(r["width"], r["height"]) for r in clips if r["video_uid"] == "rotated 07.mov"}
    assert size == (160, 120)
    last = max(r["clip_end"] for r in clips if r["video_uid"] == "My holiday 02.mp4")
    assert last == pytest.approx(SECONDS, abs=0.1)
    assert open_dataset(root).provenance["clamped_captions"] == 1


def test_a_video_is_in_one_split_with_all_of_its_captions(own_videos: Path) -> None:
    split: dict[str, set[str]] = {}
    for set_name in ("clips", "summaries"):
        for name in ("train", "val"):
            for record in records(own_videos / "shards", set_name, name):
                split.setdefault(record["video_uid"], set()).add(name)
    assert all(len(names) == 1 for names in split.values())
    assert {"train"} in split.values() and {"val"} in split.values()


def test_the_same_command_again_does_nothing(own_videos: Path) -> None:
    before = (own_videos / "shards" / "dataset.json").read_bytes()
    done = run(own_videos_command(own_videos))
    assert done.returncode == 0 and "is up to date: nothing to build" in done.stdout
    assert (own_videos / "shards" / "dataset.json").read_bytes() == before


def test_a_changed_text_is_refused_and_the_remedy_that_is_named_works(own_videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("shards", "work"):
        shutil.copytree(own_videos / name, folder / name)
    (folder / "videos").symlink_to(own_videos / "videos")
    text = (own_videos / "captions.csv").read_text(encoding="utf-8")
    (folder / "captions.csv").write_text(text.replace("a red square moves", "a RED square moves"), encoding="utf-8")
    refused = run(own_videos_command(folder))
    assert refused.returncode == 2
    assert re.search(r"\d captions have changed .* such as 'a red square moves \w+', now 'a RED", refused.stderr)
    work = re.search(r"work=(\S+?),", refused.stderr)
    assert work is not None
    done = run(own_videos_command(folder, f"output={folder / 'again'}", f"work={work[1]}"))
    assert done.returncode == 0, done.stderr
    texts = {record["text"] for record in records(folder / "again", "clips", "train")}
    assert any("RED" in text for text in texts) and not any("red square" in text for text in texts)


def test_a_dry_run_probes_the_videos_and_writes_nothing(own_videos: Path, tmp_path: Path) -> None:
    done = run(own_videos_command(own_videos, f"output={tmp_path / 'x'}", "--dry-run"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"hours\s+│ 0\.04", done.stdout), done.stdout
    assert "20 of 20" in done.stdout and not list(tmp_path.iterdir())
