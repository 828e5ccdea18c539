"""Labelled videos without an embedding are listed with a reason; without any embedding there is no score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import charades_ego
from tests.eval.conftest import Run
from tests.shards.manifests import sign_anew


def test_videos_that_are_not_packed_are_missing(run: Run, own_shards: Path) -> None:
    path = own_shards / "charades_ego" / "test" / "labels.json"
    labels = json.loads(path.read_bytes())
    absent = {**labels["videos"][0], "key": "nobody_a0_whole"}
    path.write_text(json.dumps({**labels, "videos": [absent, *labels["videos"]]}))
    sign_anew(own_shards)
    done = run(charades_ego.BENCHMARK, "max_missing_fraction=0.5", shards=own_shards)
    assert done.code == 0
    result = done.result()
    assert [(missing.item, missing.reason) for missing in result.missing] == [("nobody_a0_whole", "not in the shards")]
    assert (result.scores[0].items, result.scores[0].of) == (len(labels["videos"]), len(labels["videos"]) + 1)


def test_if_no_video_is_embedded_the_benchmark_fails_with_the_first_reason(
    run: Run, own_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_shards / "charades_ego" / "test" / "labels.json"
    labels = json.loads(path.read_bytes())
    path.write_text(json.dumps({**labels, "videos": [{**labels["videos"][0], "key": "nobody_a0_whole"}]}))
    sign_anew(own_shards)
    done = run(charades_ego.BENCHMARK, shards=own_shards)
    assert done.code == 1 and not done.out.exists()
    errors = " ".join(capsys.readouterr().err.split())
    assert "charades_ego: none of 1 videos could be embedded: not in the shards" in errors
