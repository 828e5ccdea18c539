"""The reader of EPIC-KITCHENS-100: formats, malformed rows, labels, and frame rates."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from preprocessing.annotations import AnnotationError, Annotations
from preprocessing.annotations.config import EpicMirFiles
from preprocessing.annotations.epic_mir import frame_rate
from tests.paths import shared
from tests.preprocessing.annotation_files import companion, delimited, only_reject, read_benchmarks, write

EPIC_COLUMNS = [
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
]  # fmt: skip


def epic_row(index: int, **changes: Any) -> dict[str, Any]:
    """Return a good row of a retrieval table; `index` makes its identity."""
    return {
        "narration_id": f"P01_11_{index}", "participant_id": "P01", "video_id": "P01_11",
        "narration_timestamp": "00:00:00.560", "start_timestamp": f"00:01:{index:02d}.50",
        "stop_timestamp": f"00:01:{index + 1:02d}.00", "start_frame": int((60 + index + 0.5) * 50),
        "stop_frame": int((61 + index) * 50), "narration": f"take, \"plate\" {index}", "verb": "take",
        "verb_class": index, "noun": "plate", "noun_class": 2, "all_nouns": "['plate', 'cup']",
        "all_noun_classes": "[2, 13]", **changes,
    }  # fmt: skip


def epic(folder: Path, rows: Iterable[dict[str, Any]], names: Iterable[str], *, split: str = "test") -> Annotations:
    path = write(folder / f"EPIC_100_retrieval_{split}.csv", delimited(rows, EPIC_COLUMNS, ","))
    sentences = [{"narration_id": name, "narration": "another text"} for name in names]
    listed = write(folder / f"{split}_sentence.csv", delimited(sentences, ["narration_id", "narration"], ","))
    return read_benchmarks(epic_mir=EpicMirFiles(**{split: path, f"{split}_sentences": listed}))


def test_a_valid_row_becomes_a_typed_item(tmp_path: Path) -> None:
    annotations = epic(tmp_path, [epic_row(0), epic_row(1)], ["P01_11_1"])
    assert annotations.sets["epic_mir"].to_pylist()[1] == {
        "key": "P01__11_e0_0061500000-0062000000",
        "video_uid": "P01_11",
        "split": "test",
        "clip_start": 61.5,
        "clip_end": 62.0,
        "text": 'take, "plate" 1',
        "narration_id": "P01_11_1",
        "verb_class": 1,
        "noun_classes": [2, 13],
    }
    labels = companion(annotations, "epic_mir/test/labels.json", tmp_path)
    assert [video.key for video in labels.videos] == annotations.sets["epic_mir"]["key"].to_pylist()
    (sentence,) = labels.sentences
    assert (sentence.text, sentence.verb_class, sentence.noun_classes) == ('take, "plate" 1', 1, (2, 13)), (
        "text and classes are those of the row of its narration_id"
    )
    assert annotations.frame_rates == {"P01_11": 50.0}


def test_labels_keep_file_order_rather_than_time_order(tmp_path: Path) -> None:
    rows = [epic_row(i) for i in (5, 1, 9)]
    labels = companion(epic(tmp_path, rows, ["P01_11_9", "P01_11_5"]), "epic_mir/test/labels.json", tmp_path)
    assert [video.narration_id for video in labels.videos] == ["P01_11_5", "P01_11_1", "P01_11_9"]
    assert [sentence.narration_id for sentence in labels.sentences] == ["P01_11_9", "P01_11_5"]


def test_two_rows_with_one_clip_share_an_item_but_have_two_labels(tmp_path: Path) -> None:
    twin = epic_row(0, narration_id="P01_11_99", verb_class=7)
    annotations = epic(tmp_path, [epic_row(0), twin], [])
    reject = only_reject(annotations)
    assert (reject["status"], reject["reason"]) == ("filtered", "repeated clip")
    assert reject["video_uid"] == "P01_11" and "EPIC_100_retrieval_test.csv:2" in reject["detail"]
    labels = companion(annotations, "epic_mir/test/labels.json", tmp_path)
    assert labels.videos[0].key == labels.videos[1].key
    assert [video.verb_class for video in labels.videos] == [0, 7]


@pytest.mark.parametrize(
    ("changes", "reason", "value"),
    [
        ({"video_id": "../P01"}, "malformed video_id", "'../P01'"),
        ({"narration_id": " "}, "malformed narration_id", "' '"),
        ({"start_timestamp": "61.5"}, "malformed start_timestamp", "'61.5'; expected a time such as 00:01:59.56"),
        ({"stop_timestamp": "00:61:00.00"}, "malformed stop_timestamp", "'00:61:00.00'"),
        ({"stop_timestamp": "00:00:01.00"}, "reversed times", "stop_timestamp = 1.0"),
        ({"verb_class": "97"}, "malformed verb_class", "'97'; expected a class 0 … 96"),
        ({"verb_class": "-1"}, "malformed verb_class", "'-1'"),
        ({"all_noun_classes": "[]"}, "malformed all_noun_classes", "'[]'"),
        ({"all_noun_classes": "[300]"}, "malformed all_noun_classes", "0 … 299"),
        ({"all_noun_classes": "__import__('os')"}, "malformed all_noun_classes", "__import__"),
        ({"narration": ""}, "empty text", "narration = ''"),
    ],
)
def test_a_malformed_row_is_rejected_with_its_location(
    tmp_path: Path, changes: dict[str, Any], reason: str, value: str
) -> None:
    annotations = epic(tmp_path, [epic_row(0), epic_row(1, **changes), epic_row(2)], ["P01_11_0"])
    reject = only_reject(annotations)
    assert (reject["status"], reject["reason"]) == ("failed", reason)
    assert reject["item"] == "EPIC_100_retrieval_test.csv:3" and value in reject["detail"]
    assert annotations.sets["epic_mir"].num_rows == 2


def test_a_sentence_without_a_row_is_rejected(tmp_path: Path) -> None:
    annotations = epic(tmp_path, [epic_row(0)], ["P01_11_0", "P99_1", "P01_11_0"])
    assert [(r["item"], r["reason"]) for r in annotations.rejects.to_pylist()] == [
        ("test_sentence.csv:3", "unknown narration_id"),
        ("test_sentence.csv:4", "duplicate identity"),
    ]


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "narration_id,video_id\n")
    with pytest.raises(AnnotationError, match=r"t\.csv: missing columns start_timestamp, stop_timestamp"):
        read_benchmarks(epic_mir=EpicMirFiles(test=path, test_sentences=path))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rows_with_one_narration_id_are_all_kept_and_told_apart_by_content(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    rows = [epic_row(0), epic_row(1, narration_id="P01_11_0"), epic_row(0)]
    table = [rows[i] for i in order] + [rows[2]]
    annotations = epic(tmp_path, table, ["P01_11_0"])
    assert sorted(annotations.rejects["reason"].to_pylist()) == ["ambiguous narration_id", "duplicate row"]
    path = write(tmp_path / "sentences.csv", delimited([epic_row(1, narration_id="P01_11_0")], EPIC_COLUMNS, ","))
    test = tmp_path / "EPIC_100_retrieval_test.csv"
    annotations = read_benchmarks(epic_mir=EpicMirFiles(test=test, test_sentences=path))
    labels = companion(annotations, "epic_mir/test/labels.json", tmp_path)
    ids = {video.verb_class: video.narration_id for video in labels.videos}
    assert len(set(ids.values())) == 2 and all(name.startswith("P01_11_0-") for name in ids.values())
    assert [(s.narration_id, s.verb_class) for s in labels.sentences] == [(ids[1], 1)]
    assert (
        dict(zip(*(annotations.sets["epic_mir"][n].to_pylist() for n in ("verb_class", "narration_id")), strict=True))
        == ids
    )
    assert ids[0] == "P01_11_0-90b3a72ceb59"


def test_a_clip_in_both_splits_is_kept_in_both(tmp_path: Path) -> None:
    path = write(tmp_path / "both.csv", delimited([epic_row(0)], EPIC_COLUMNS, ","))
    files = EpicMirFiles(train=path, train_sentences=path, test=path, test_sentences=path)
    annotations = read_benchmarks(epic_mir=files)
    assert sorted(annotations.sets["epic_mir"]["split"].to_pylist()) == ["test", "train"]
    assert annotations.rejects.num_rows == 0
    keys = {item["split"]: item["key"] for item in annotations.sets["epic_mir"].to_pylist()}
    for split, key in keys.items():
        assert companion(annotations, f"epic_mir/{split}/labels.json", tmp_path).videos[0].key == key


@pytest.mark.parametrize(
    ("stamps", "rate"),
    [
        ([(558.24, 33494)], 60.0),
        ([(558.24, 33461)], 60000 / 1001),
        ([(100.0, 5000), (1.0, 51)], 50.0),
        ([(100.0, 1234)], None),
        ([], None),
    ],
)
def test_the_frame_rate_is_inferred_from_frame_numbers(stamps: Any, rate: float | None) -> None:
    assert frame_rate(stamps) == rate


def test_the_published_files(tmp_path: Path) -> None:
    folder = shared("epic100")
    files = EpicMirFiles(
        test=folder / "EPIC_100_retrieval_test.csv", test_sentences=folder / "EPIC_100_retrieval_test_sentence.csv"
    )
    annotations = read_benchmarks(epic_mir=files)
    assert annotations.sets["epic_mir"].num_rows == 9668 and annotations.rejects.num_rows == 0
    labels = companion(annotations, "epic_mir/test/labels.json", tmp_path)
    assert (len(labels.videos), len(labels.sentences)) == (9668, 3842)
    with files.test_sentences.open(newline="") as file:  # type: ignore[union-attr]
        listed = list(csv.DictReader(file))
    assert [s.narration_id for s in labels.sentences] == [row["narration_id"] for row in listed]
    assert sum(s.text != row["narration"] for s, row in zip(labels.sentences, listed, strict=True)) == 6
    assert set(annotations.frame_rates.values()) == {60.0}
    with files.test.open(newline="") as file:  # type: ignore[union-attr]
        for video, line in zip(labels.videos, csv.DictReader(file), strict=True):
            assert (video.narration_id, video.verb_class) == (line["narration_id"], int(line["verb_class"]))
            assert list(video.noun_classes) == list(dict.fromkeys(json.loads(line["all_noun_classes"])))
