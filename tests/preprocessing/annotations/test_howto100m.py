"""The reader of HowTo100M: labels, class names, and malformed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocessing.annotations import Annotations
from preprocessing.annotations.config import HowTo100mFiles
from tests.preprocessing.annotation_files import companion, only_reject, read_benchmarks, write

HOWTO = "video_uid\tclip_start\tclip_end\tfps\tlabel\n"


def howto(folder: Path, *, train: str, val: str = "", **more: Any) -> Annotations:
    files = HowTo100mFiles(
        train=write(folder / "train.csv", HOWTO + train), val=write(folder / "val.csv", HOWTO + val), **more
    )
    return read_benchmarks(howto100m=files)


def test_each_split_has_labels_and_optional_class_names(tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", "tea\nsoup\n")
    annotations = howto(tmp_path, train="a_b\t0.0\t300\t29.97\t1\n", val="cd\t10\t70.5\t30\t0\n", classes=names)
    items = {item["split"]: item for item in annotations.sets["howto100m"].to_pylist()}
    assert (items["train"]["label"], items["train"]["text"], items["val"]["text"]) == (1, "soup", "tea")
    labels = companion(annotations, "howto100m/val/labels.json", tmp_path)
    assert labels.classes == ("tea", "soup")
    assert [(video.key, video.label) for video in labels.videos] == [(items["val"]["key"], 0)]


@pytest.mark.parametrize(
    ("line", "status", "reason", "value"),
    [
        ("v\t0\t60\t30\t-1", "failed", "malformed label", "'-1'"),
        ("v\t0\t60\t30\tsoup", "failed", "malformed label", "'soup'"),
        ("v\t0\t60\t30\t100", "filtered", "class left out", "num_classes = 100"),
        ("v\t0\t\t30\t5", "failed", "malformed clip_end", "''"),
        ("v\t60\t0\t30\t5", "failed", "reversed times", "clip_end = 0.0"),
        (".\t0\t60\t30\t5", "failed", "malformed video_uid", "'.'"),
        ("okay\t0\t60\t25\t5", "filtered", "repeated clip", "train.csv:2"),
    ],
)
def test_a_malformed_row_is_rejected_with_its_location(
    tmp_path: Path, line: str, status: str, reason: str, value: str
) -> None:
    annotations = howto(tmp_path, train=f"okay\t0\t60\t30\t5\n{line}\n")
    reject = only_reject(annotations)
    assert (reject["status"], reject["reason"], reject["item"]) == (status, reason, "train.csv:3")
    assert value in reject["detail"]
    assert len(annotations.companions["howto100m/train/labels.json"]["videos"]) == 1


@pytest.mark.parametrize("step", [1, -1])
def test_a_clip_with_two_labels_or_in_two_splits_is_kept_with_each(tmp_path: Path, step: int) -> None:
    lines = ["okay\t0\t60\t30\t6", "okay\t0\t60\t30\t5", "other\t0\t60\t30\t5"]
    annotations = howto(tmp_path, train="\n".join(lines[::step]) + "\n", val=lines[1] + "\n")
    assert annotations.rejects.num_rows == 0
    items = annotations.sets["howto100m"].to_pylist()
    assert sorted(item["key"] for item in items) == [
        "okay_h0_0000000000-0060000000-4ec79c4c4a55",
        "okay_h0_0000000000-0060000000-8ccc0a6d5294",
        "okay_h0_0000000000-0060000000-db19699e5667",
        "other_h0_0000000000-0060000000",
    ]
    for split in ("train", "val"):
        labels = companion(annotations, f"howto100m/{split}/labels.json", tmp_path)
        assert {video.key: video.label for video in labels.videos} == {
            item["key"]: item["label"] for item in items if item["split"] == split
        }


def test_a_label_without_a_name_is_malformed(tmp_path: Path) -> None:
    annotations = howto(tmp_path, train="v\t0\t60\t30\t2\n", classes=write(tmp_path / "n.txt", "tea\nsoup\n"))
    assert "names for 0 … 1" in only_reject(annotations)["detail"]
