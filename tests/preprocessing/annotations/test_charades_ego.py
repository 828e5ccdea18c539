"""The reader of Charades-Ego: action segments, whole videos, and malformed rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from preprocessing.annotations import AnnotationError, Annotations
from preprocessing.annotations.config import CharadesEgoFiles
from tests.preprocessing.annotation_files import companion, only_reject, read_benchmarks, write

CLASSES = "c000 Holding some clothes\nc001 FfmpegInput a door\n\nc002 Closing a door\n"


TRAIN = "id\tcls\tt_start\tt_end\tnarration\n"


def charades(folder: Path, *, train: str | None = None, test: str | None = None, classes: str = CLASSES) -> Annotations:
    files = CharadesEgoFiles(
        classes=write(folder / "classes.txt", classes),
        train=None if train is None else write(folder / "train.csv", train),
        test=None if test is None else write(folder / "test.csv", test),
    )
    return read_benchmarks(charades_ego=files)


def test_a_segment_has_one_class_and_its_text_or_the_sentence_of_the_class(tmp_path: Path) -> None:
    rows = "AAA1EGO\tc001\t1.5\t3.0\topens it\nAAA1EGO\tc002\t1.5\t3.0\t\n"
    items = charades(tmp_path, train=TRAIN + rows).sets["charades_ego"].to_pylist()
    assert [(i["action"], i["text"], i["split"]) for i in items] == [
        (1, "opens it", "train"),
        (2, "Closing a door", "train"),
    ]
    assert items[0]["key"] == "AAA1EGO_a0_0001500000-0003000000-c001"


def test_a_test_video_is_used_as_a_whole_with_all_its_classes(tmp_path: Path) -> None:
    rows = 'id,subject,actions,length\nBBB2EGO,X,c002 0.00 12.60;c000 11.90 21.20;c002 1 2,31.5\nCCC3EGO,"a,b",,\n'
    annotations = charades(tmp_path, test=rows)
    whole, empty = annotations.sets["charades_ego"].to_pylist()
    assert (whole["key"], whole["clip_start"], whole["clip_end"]) == ("BBB2EGO_a0_whole", 0.0, math.inf)
    assert whole["text"] == "Holding some clothes; Closing a door" and whole["action"] == -1
    assert empty["text"] == ""
    labels = companion(annotations, "charades_ego/test/labels.json", tmp_path)
    assert labels.classes == ("Holding some clothes", "FfmpegInput a door", "Closing a door")
    assert [video.actions for video in labels.videos] == [(0, 2), ()]
    durations = dict(zip(*(annotations.videos[n].to_pylist() for n in ("video_uid", "duration")), strict=True))
    assert durations["BBB2EGO"] == 31.5 and math.isnan(durations["CCC3EGO"])


@pytest.mark.parametrize(
    ("line", "status", "reason", "value"),
    [
        ("AAA1EGO\tc003\t1\t2\tx", "failed", "malformed cls", "'c003'; expected a class c000 … c002"),
        ("AAA1EGO\t1\t1\t2\tx", "failed", "malformed cls", "'1'"),
        ("a/b\tc001\t1\t2\tx", "failed", "malformed id", "'a/b'"),
        ("AAA1EGO\tc001\tone\t2\tx", "failed", "malformed t_start", "'one'"),
        ("AAA1EGO\tc001\t1\tnan\tx", "failed", "malformed t_end", "'nan'"),
        ("AAA1EGO\tc001\t3\t2\tx", "failed", "reversed times", "t_end = 2.0"),
        ("AAA1EGO\tc001\t3", "failed", "wrong number of columns", "3 instead of 5"),
        ("OKAYEGO\tc001\t1.0\t2.0\tx", "filtered", "repeated clip", "train.csv:2"),
    ],
)
def test_a_malformed_segment_is_rejected_with_its_location(
    tmp_path: Path, line: str, status: str, reason: str, value: str
) -> None:
    annotations = charades(tmp_path, train=f"{TRAIN}OKAYEGO\tc001\t1\t2\tx\n{line}\n")
    reject = only_reject(annotations)
    assert (reject["status"], reject["reason"], reject["item"]) == (status, reason, "train.csv:3")
    assert value in reject["detail"] and annotations.sets["charades_ego"].num_rows == 1


@pytest.mark.parametrize(
    ("line", "reason", "value"),
    [
        ("BBB2EGO,c157 0 1", "malformed actions", "'c157'"),
        ("BBB2EGO,walking", "malformed actions", "'walking'"),
        ("OKAYEGO,c000 0 1", "repeated clip", "test.csv:2"),
    ],
)
def test_a_malformed_video_is_rejected_with_its_location(tmp_path: Path, line: str, reason: str, value: str) -> None:
    annotations = charades(tmp_path, test=f"id,actions\nOKAYEGO,c000 1 2\n{line}\n")
    reject = only_reject(annotations)
    assert (reject["reason"], reject["item"]) == (reason, "test.csv:3") and value in reject["detail"]


def test_rows_that_differ_are_all_kept_whatever_their_order(tmp_path: Path) -> None:
    rows = ["OKAYEGO\tc001\t1\t2\tx", "OKAYEGO\tc001\t1.0\t2.0\tagain", "OKAYEGO\tc001\t4\t5\tx"]
    videos = ["OKAYEGO,c000 1 2", "OKAYEGO,c001 0 1"]
    read = []
    for step in (1, -1):
        folder = tmp_path / str(step)
        folder.mkdir()
        train, test = "\n".join(rows[::step]), "\n".join(videos[::step])
        annotations = charades(folder, train=f"{TRAIN}{train}\n", test=f"id,actions\n{test}\n")
        assert annotations.rejects.num_rows == 0
        read.append(annotations.sets["charades_ego"])
        keys = {item["text"]: item["key"] for item in read[-1].to_pylist() if item["split"] == "test"}
        labels = companion(annotations, "charades_ego/test/labels.json", folder)
        assert [video.key for video in labels.videos] == [
            keys[labels.classes[video.actions[0]]] for video in labels.videos
        ]
    assert read[0] == read[1] and read[0].num_rows == 5
    alone = [item["key"] for item in read[0].to_pylist() if item["clip_start"] == 4]
    assert alone == ["OKAYEGO_a0_0004000000-0005000000-c001"]


@pytest.mark.parametrize("length", ["nan", "-3", "0", "1e12", "long"])
def test_a_length_that_cannot_be_read_is_ignored_and_reported(tmp_path: Path, length: str) -> None:
    test = f"id,actions,length\nBBB2EGO,c000 1 2,31.5\nCCC3EGO,c001 0 1,{length}\n"
    annotations = charades(tmp_path, test=test)
    assert annotations.rejects.num_rows == 0 and annotations.sets["charades_ego"].num_rows == 2
    durations = dict(zip(*(annotations.videos[n].to_pylist() for n in ("video_uid", "duration")), strict=True))
    assert durations["BBB2EGO"] == 31.5 and math.isnan(durations["CCC3EGO"])
    (message,) = annotations.ignored
    assert (
        "test.csv: 1 values of the column length are ignored" in message
        and f"test.csv:3: length = '{length}'" in message
    )


@pytest.mark.parametrize("classes", ["", "c000\n", "c001 first\n", "c000 a\nc002 b\n", "Holding some clothes\n"])
def test_classes_that_are_not_numbered_consecutively_are_an_error(tmp_path: Path, classes: str) -> None:
    with pytest.raises(AnnotationError, match=r"classes\.txt"):
        charades(tmp_path, test="id,actions\n", classes=classes)
