"""Recall over any set with captions: right answers, duplicates, draws, and what has no caption."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from eval.in_training import PeriodicMcq
from eval.recall import BENCHMARK, Captioned, main, read_captioned, retrieve
from eval.results import Result
from hiervl_train.checkpoint.open import open_checkpoint
from hiervl_train.config import EvaluationConfig
from hiervl_train.distributed import DistributedContext
from shards.dataset import open_dataset
from shards.sources import open_source
from tests.eval.small import SETTINGS, save_small_checkpoint, small_dataset
from tests.shards.coded import coded_clip, coded_dataset


def captioned(*texts: str) -> list[Captioned]:
    return [Captioned(key=f"k{i}", video_uid=f"v{i // 2}", text=text) for i, text in enumerate(texts)]


def test_captions_with_the_same_words_are_one_and_each_of_their_clips_is_right() -> None:
    samples = captioned("cuts bread", "opens door", "Cuts  bread")
    text = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    video = np.array([[0, 1], [0, 1], [1, 0]], np.float32)  # the first clip looks like the second caption
    found = retrieve(samples, text, video)
    assert found.to_video.items == 3 and found.to_text.items == 2
    # "cuts bread" finds the third clip first, which is right for both; "opens door" ties with the first clip.
    assert found.to_video.ranks().tolist() == [1, 1.5, 1]
    assert found.to_text.ranks().tolist() == [2, 1, 1]


def test_the_samples_that_are_drawn_do_not_depend_on_the_order_of_the_shards(tmp_path: Path) -> None:
    small_dataset(tmp_path / "shards")
    source = open_source(tmp_path / "shards", SETTINGS.source)
    everything = read_captioned(source, "clips", "train", limit=None, seed=0)
    some = read_captioned(source, "clips", "train", limit=5, seed=0)
    fewer = read_captioned(source, "clips", "train", limit=3, seed=0)
    assert len(everything) == 18 and len(some) == 5
    assert {s.key for s in fewer} < {s.key for s in some} < {s.key for s in everything}
    assert {s.key for s in read_captioned(source, "clips", "train", limit=5, seed=1)} != {s.key for s in some}


@pytest.mark.parametrize("set_name", ["clips", "summaries"])
def test_the_command_writes_both_directions_with_intervals(set_name: str, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    small_dataset(root)
    checkpoint = save_small_checkpoint(tmp_path / "checkpoint", root)
    arguments = ["--checkpoint", str(checkpoint), "--shards", str(root), "--set", set_name, "--split", "train"]
    options = ["sample.frames=2", "sample.windows=3", "data.workers=0", "cache=null", f"output={tmp_path / 'out'}"]
    assert main(BENCHMARK, [*arguments, *options]) == 0
    result = Result.load(tmp_path / "out")
    names = [score.name for score in result.scores]
    assert names[:4] == ["text → video R@1", "text → video R@5", "text → video R@10", "text → video median rank"]
    assert len(names) == 8 and {score.unit for score in result.scores} == {"%", "rank"}
    samples = open_dataset(root).split(set_name, "train").samples
    assert all(score.items == score.of == samples for score in result.scores)
    for score in result.scores:
        assert score.low is not None and score.low <= score.value <= score.high
        if score.unit == "%":  # R@1 is the mean of the items, which paired comparisons rest on
            group = [item.score for item in result.items if score.name.startswith(item.group)]
            assert ("R@1" in score.name.split()) == bool(np.isclose(np.mean(group), score.value)) or score.value == 100
    page = (tmp_path / "out" / "index.html").read_text()
    assert "median rank" in page and "rank " in page


def test_samples_without_a_caption_are_no_queries_and_without_any_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [coded_clip(n, video=f"video-{n // 3}") for n in range(6)]
    silent = [dataclasses.replace(c, record=dataclasses.replace(c.record, text="")) for c in clips]
    coded_dataset(tmp_path / "some", clips=[*clips[:4], *silent[4:]])
    coded_dataset(tmp_path / "none", clips=silent)
    found = read_captioned(open_source(tmp_path / "some", SETTINGS.source), "clips", "train", limit=None, seed=0)
    assert [sample.key for sample in found] == [clip.key for clip in clips[:4]]
    checkpoint = save_small_checkpoint(tmp_path / "checkpoint", tmp_path / "some")
    arguments = ["--checkpoint", str(checkpoint), "--shards", str(tmp_path / "none"), "--split", "train"]
    assert main(BENCHMARK, [*arguments, "data.workers=0", "sample.frames=2"]) == 1
    assert "clips/train: no sample has a caption" in capsys.readouterr().err


def test_a_run_measures_the_same_recall(embedded: Path, tmp_path: Path) -> None:
    checkpoint = save_small_checkpoint(tmp_path / "checkpoint", embedded)
    opened = open_checkpoint(checkpoint)
    config = EvaluationConfig(every_steps=1, questions=1, recall=10_000)
    inside = PeriodicMcq(embedded, config, SETTINGS)(opened.model, opened.tokenizer, DistributedContext())
    options = ["sample.frames=2", "sample.windows=3", "data.workers=0", "cache=null", "report=false"]
    for set_name in ("clips", "summaries"):
        arguments = ["--checkpoint", str(checkpoint), "--shards", str(embedded), "--set", set_name]
        main(BENCHMARK, [*arguments, f"output={tmp_path / set_name}", "max_missing_fraction=1", *options])
        scores = {score.name: score for score in Result.load(tmp_path / set_name).scores}
        for direction, name in (("text_to_video", "text → video"), ("video_to_text", "video → text")):
            assert inside[f"recall_{set_name}/{direction}@1"] == pytest.approx(scores[f"{name} R@1"].value)
            assert inside[f"chance/recall_{set_name}/{direction}@1"] == pytest.approx(scores[f"{name} R@1"].chance)
