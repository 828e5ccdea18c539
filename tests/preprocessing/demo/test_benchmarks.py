"""The benchmarks over the embedded dataset, as read by the readers of real files."""

from __future__ import annotations

from typing import Any

import pytest

from preprocessing.annotations import Annotations, AnnotationsConfig, read_annotations
from preprocessing.build_shards import benchmark_annotations
from preprocessing.demo import DemoDataset

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def annotations(dataset: DemoDataset) -> Annotations:
    return read_annotations(AnnotationsConfig(metadata=dataset.ego4d, **benchmark_annotations(dataset.benchmarks)))


def test_no_row_is_malformed(annotations: Annotations) -> None:
    assert annotations.rejects.num_rows == 0
    assert list(annotations.sets) == ["egomcq", "summarymcq", "epic_mir", "charades_ego", "howto100m"]
    assert all(table.num_rows for table in annotations.sets.values())


def test_test_splits_use_val_videos_and_train_splits_use_train_videos(
    annotations: Annotations, videos: dict[str, dict[str, Any]], truth: dict[str, Any]
) -> None:
    missing = set(truth["special_videos"]["missing"])
    for set_name, items in annotations.sets.items():
        for item in items.to_pylist():
            expected = "train" if item["split"] == "train" else "val"
            uid = item["video_uid"]
            assert videos[uid]["split_em"] == expected or (uid in missing and set_name.endswith("mcq"))


def test_a_question_has_five_choices_and_one_right_answer(
    annotations: Annotations, clips: list[dict[str, Any]]
) -> None:
    narrations = {(row["video_uid"], row["clip_start"], row["clip_end"]): row for row in clips}
    by_key = {item["key"]: item for item in annotations.sets["egomcq"].to_pylist()}
    questions = annotations.companions["egomcq/test/questions.json"]["questions"]
    assert {question["type"] for question in questions} == {"inter", "intra"}
    for question in questions:
        shown = [by_key[key] for key in question["choices"]]
        rows = [narrations[item["video_uid"], item["clip_start"], item["clip_end"]] for item in shown]
        tags = [(tuple(row["tag_verb"]), tuple(row["tag_noun"])) for row in rows]
        assert rows[question["answer"]]["clip_text"] == question["text"]
        assert tags.count(tags[question["answer"]]) == 1 and len(rows) == 5
        right, *others = (
            rows[question["answer"]]["video_uid"],
            *(row["video_uid"] for i, row in enumerate(rows) if i != question["answer"]),
        )
        if question["id"] not in ("0", "1"):  # these name a clip of the missing video
            assert all((other == right) == (question["type"] == "intra") for other in others)
