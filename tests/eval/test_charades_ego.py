"""Charades-Ego's mean AP, from shards to a result, agrees with embedding everything one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eval import charades_ego
from shards.companions import CharadesLabels, read_companion
from tests.eval.byhand import by_hand, texts_by_hand, unit
from tests.eval.conftest import Evaluation, Run


def test_labels_out_of_range_are_refused_by_name(
    run: Run, own_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_shards / "charades_ego" / "test" / "labels.json"
    tree = json.loads(path.read_bytes())
    tree["videos"][0]["actions"] = [157]
    path.write_text(json.dumps(tree))
    done = run(charades_ego.BENCHMARK, shards=own_shards)
    assert done.code == 2 and not done.out.exists()
    errors = " ".join(capsys.readouterr().err.split())
    assert tree["videos"][0]["key"] in errors and "actions = [157]" in errors


def test_the_map_is_the_mean_ap_of_videos_ranked_by_each_class_sentence(
    evaluated: Evaluation, checkpoint: Path, embedded: Path
) -> None:
    labels = read_companion(embedded, "charades_ego", "test", CharadesLabels)
    video = by_hand(checkpoint, embedded, "charades_ego", "test", [v.key for v in labels.videos])
    sim = unit(video) @ unit(texts_by_hand(checkpoint, labels.classes)).T
    expected = {}
    for number in range(len(labels.classes)):
        shown = np.array([number in v.actions for v in labels.videos])
        if shown.any():
            hits = shown[np.argsort(-sim[:, number])]
            expected[f"c{number:03d}"] = 100 * (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()
    result = evaluated.result("charades_ego")
    assert {item.id: item.score for item in result.items} == pytest.approx(expected)
    assert len(set(expected.values())) > 1, "some classes are ranked better than others"
    assert evaluated.values("charades_ego") == {"mAP": pytest.approx(np.mean(list(expected.values())))}


def test_chance_is_the_expected_ap_of_random_rankings(evaluated: Evaluation, embedded: Path) -> None:
    labels = read_companion(embedded, "charades_ego", "test", CharadesLabels)
    shown = [sum(number in v.actions for v in labels.videos) for number in range(len(labels.classes))]
    videos = len(labels.videos)
    harmonic = sum(1 / rank for rank in range(1, videos + 1))
    expected = [(harmonic + (n - 1) / (videos - 1) * (videos - harmonic)) / videos for n in shown if n]
    (score,) = evaluated.result("charades_ego").scores
    assert score.chance == pytest.approx(100 * np.mean(expected))
