"""EPIC-KITCHENS retrieval, from shards to a result, agrees with embedding everything one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import epic_mir
from shards.companions import EpicLabels, read_companion
from shards.dataset import open_dataset
from tests.eval.byhand import by_hand, texts_by_hand, unit
from tests.eval.conftest import Evaluation, Run
from tests.hiervl_train.reference import dual_softmax


def relevancies(rows: Sequence, columns: Sequence) -> np.ndarray:
    """Return the relevancy matrix, pair by pair."""
    return np.array(
        [
            [
                (
                    (a.verb_class == b.verb_class)
                    + len({*a.noun_classes} & {*b.noun_classes}) / len({*a.noun_classes} | {*b.noun_classes})
                )
                / 2
                for b in columns
            ]
            for a in rows
        ]
    )


def ndcg(scores_QM: np.ndarray, relevancy_QM: np.ndarray) -> float:
    """Return the nDCG of rankings without ties between unlike items, in percent."""
    found = []
    for scores, gains in zip(scores_QM, relevancy_QM, strict=True):
        order, cut = np.argsort(-scores, kind="stable"), (gains > 0).sum()
        discount = np.log2(np.arange(2, cut + 2))
        found.append((gains[order][:cut] / discount).sum() / (np.sort(gains)[::-1][:cut] / discount).sum())
    return 100 * float(np.mean(found))


def test_retrieval_is_that_of_every_clip_and_sentence_embedded_alone(
    evaluated: Evaluation, checkpoint: Path, embedded: Path
) -> None:
    result, values = evaluated.result("epic_mir"), evaluated.values("epic_mir")
    labels = read_companion(embedded, "epic_mir", "test", EpicLabels)
    video = by_hand(checkpoint, embedded, "epic_mir", "test", [v.key for v in labels.videos])
    text = texts_by_hand(checkpoint, [s.text for s in labels.sentences])
    sim, relevancy = unit(video) @ unit(text).T, relevancies(labels.videos, labels.sentences)
    assert values["T2V nDCG"] == pytest.approx(ndcg(sim.T, relevancy.T), abs=1e-3)
    narration_ids = [v.narration_id for v in labels.videos]
    rows = [narration_ids.index(s.narration_id) for s in labels.sentences]
    all_texts = torch.from_numpy(texts_by_hand(checkpoint, [v.text for v in labels.videos]))
    dual = dual_softmax(all_texts, torch.from_numpy(video))[rows].numpy()
    assert values["T2V nDCG, dual softmax"] == pytest.approx(ndcg(dual, relevancy.T), abs=1e-3)
    assert values["nDCG"] == pytest.approx(np.mean([values["V2T nDCG"], values["T2V nDCG"]]))
    assert {score.of for score in result.scores if score.name.startswith("V2T")} == {len(labels.videos)}
    assert len(result.items) == len(labels.videos) + len(labels.sentences) and not result.missing


def test_chance_is_the_mean_score_of_random_rankings(evaluated: Evaluation, embedded: Path) -> None:
    labels = read_companion(embedded, "epic_mir", "test", EpicLabels)
    relevancy = relevancies(labels.videos, labels.sentences)
    rng = np.random.default_rng(0)
    drawn = [ndcg(rng.random(relevancy.T.shape), relevancy.T) for _ in range(300)]
    chance = {score.name: score.chance for score in evaluated.result("epic_mir").scores}
    assert chance["T2V nDCG"] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(len(drawn)))
    assert chance["T2V nDCG, dual softmax"] == chance["T2V nDCG"]
    v2t, t2v = chance["V2T mAP"], chance["T2V mAP"]
    assert v2t is not None and t2v is not None and chance["mAP"] == pytest.approx((v2t + t2v) / 2)


def test_items_are_the_queries_whose_mean_is_the_score(evaluated: Evaluation, run: Run) -> None:
    dual = run(epic_mir.BENCHMARK, "compat.dual_softmax=true")
    for done, name, suffix in ((evaluated, "epic_mir", ""), (dual, "", ", dual softmax")):
        result = done.result(name)
        for direction in ("V2T", "T2V"):
            mean = np.mean([item.score for item in result.items if item.group == direction])
            assert done.values(name)[f"{direction} mAP{suffix}"] == pytest.approx(mean)
        for item in result.items:
            assert {item.answer, item.predicted} <= {option.key for option in item.options}
            assert max(item.options, key=lambda option: option.score).score == pytest.approx(
                next(option.score for option in item.options if option.key == item.predicted)
            )


def test_the_released_channel_order_changes_the_similarities(evaluated: Evaluation, run: Run) -> None:
    rgb, bgr = evaluated.result("epic_mir"), run(epic_mir.BENCHMARK, "compat.channel_order=bgr").result()
    assert [item.options[0].score for item in rgb.items] != [item.options[0].score for item in bgr.items]
    assert bgr.settings["channel_order"] == "bgr"


def test_a_broken_clip_is_listed_as_missing_and_the_others_are_scored(run: Run, own_shards: Path) -> None:
    labels = read_companion(own_shards, "epic_mir", "test", EpicLabels)
    shard = open_dataset(own_shards).split("epic_mir", "test").shards[0]
    row = shard.rows(["key", "mp4_offset", "mp4_size"]).to_pylist()[4]
    with shard.path.open("r+b") as file:
        file.seek(row["mp4_offset"])
        file.write(bytes(row["mp4_size"]))
    (broken,) = [video for video in labels.videos if video.key == row["key"]]
    done = run(epic_mir.BENCHMARK, shards=own_shards)
    assert done.code == 3, "more than one in a hundred is missing"
    result, values = done.result(), done.values()
    assert [missing.item for missing in result.missing] == [broken.narration_id]
    assert broken.key in result.missing[0].reason
    counts = {score.name: (score.items, score.of) for score in result.scores}
    assert counts["V2T nDCG"] == (len(labels.videos) - 1, len(labels.videos))
    lenient = run(epic_mir.BENCHMARK, "max_missing_fraction=0.1", shards=own_shards)
    assert lenient.code == 0 and lenient.values() == values
