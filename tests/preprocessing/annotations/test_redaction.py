"""Redacted intervals: what touches one is filtered, malformed ones are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from preprocessing.annotations import Annotations, AnnotationsConfig, read_annotations
from preprocessing.annotations.redaction import read_intervals
from tests.preprocessing.annotation_files import SUMMARY_COLUMNS, question, row, table, write

CUT = {"start_sec": 3.0, "end_sec": 5.0, "start_frame": 90, "end_frame": 150}


def read(
    folder: Path, metadata: Any, *, redacted: Literal["exclude", "keep"] = "exclude", name: str = "ego4d.json"
) -> Annotations:
    """Read clips of 1 s at 0.5, 1.5, … s, a summary of the first second and one of 10 s, with some metadata."""
    clips = write(folder / "egoclip.csv", table(row(i, video_uid=uid) for uid in ("a", "b") for i in range(8)))
    spans = [row(i, video_uid=uid, clip_start=0.0, clip_end=[1.0, 10.0][i]) for uid in ("a", "b") for i in (0, 1)]
    return read_annotations(
        AnnotationsConfig(
            egoclip=clips,
            egosummary=write(folder / "s.csv", table(spans, SUMMARY_COLUMNS)),
            metadata=write(folder / name, metadata),
            redacted=redacted,
        )
    )


def starts(annotations: Annotations, uid: str) -> list[float]:
    """Return the starts of a video's clips."""
    return [r["clip_start"] for r in annotations.narrations.to_pylist() if r["video_uid"] == uid]


def test_clips_and_summaries_that_touch_a_redacted_interval_are_filtered(tmp_path: Path) -> None:
    annotations = read(tmp_path, {"videos": [{"video_uid": "a", "redacted_intervals": [CUT]}, {"video_uid": "b"}]})
    assert starts(annotations, "a") == [0.5, 1.5, 5.5, 6.5, 7.5]
    assert starts(annotations, "b") == [i + 0.5 for i in range(8)]
    assert annotations.summaries["key"].to_pylist() == ["a_s1_000000", "b_s1_000000", "b_s1_000001"]
    rejects = annotations.rejects.to_pylist()
    assert {(r["status"], r["reason"], r["video_uid"]) for r in rejects} == {("filtered", "redacted", "a")}
    assert {r["item"] for r in rejects} == {"a_c1_000002", "a_c1_000003", "a_c1_000004", "a_s1_000001"}
    assert "egoclip.csv:4: 2.500–3.500 s touches redacted_intervals 3.000–5.000 s" in {r["detail"] for r in rejects}


def test_redacted_parts_can_be_kept(tmp_path: Path) -> None:
    annotations = read(tmp_path, {"videos": [{"video_uid": "a", "redacted_intervals": [CUT]}]}, redacted="keep")
    assert annotations.rejects.num_rows == 0 and annotations.narrations.num_rows == 16


def test_benchmarks_keep_their_clips(tmp_path: Path) -> None:
    metadata = write(tmp_path / "ego4d.json", {"videos": [{"video_uid": "0a1b-2c", "redacted_intervals": [CUT]}]})
    asked = write(tmp_path / "egomcq.json", {"0": question()})
    annotations = read_annotations(AnnotationsConfig(egomcq=asked, metadata=metadata))
    assert annotations.sets["egomcq"].num_rows == 5 and annotations.rejects.num_rows == 0


@pytest.mark.parametrize(
    "record",
    [
        {"redacted_intervals": [CUT]},
        {"video_metadata": {"fps": 30, "redacted_intervals": [CUT]}},
        {"redacted_intervals": [], "video_metadata": {"redacted_intervals": [CUT]}},
        {"redacted_intervals": [{"start_time": 3, "end_time": "5.0"}], "video_metadata": None},
        {"redacted_intervals": [{"start": 3, "end": 5}]},
        {"redacted_intervals": [[3, 5.0]]},
        {"redacted_intervals": '[{"start_sec": 3, "end_sec": 5}]'},
    ],
)
def test_intervals_are_read_from_every_release(record: dict[str, Any]) -> None:
    assert read_intervals(record) == (((3.0, 5.0),), "")


@pytest.mark.parametrize("value", [None, [], "", " "])
def test_a_video_may_have_none(value: Any) -> None:
    assert read_intervals({"redacted_intervals": value}) == ((), "")


@pytest.mark.parametrize(
    ("value", "intervals"),
    [
        ("soon", ()),
        ({"start_sec": 1, "end_sec": 2}, ()),
        (7, ()),
        ([None], ()),
        ([[1]], ()),
        ([{"start_sec": 1}], ()),
        ([{"start_sec": None, "end_sec": 2}], ()),
        ([{"start_sec": float("nan"), "end_sec": 2}], ()),
        ([{"start_sec": -1, "end_sec": 2}], ()),
        ([{"start_sec": 1, "end_sec": float("inf")}], ()),
        ([{"start_sec": True, "end_sec": 2}], ()),
        ([{"start_sec": 5, "end_sec": 3}], ((3.0, 5.0),)),
        ([{"start_sec": "x", "end_sec": 2}, CUT], ((3.0, 5.0),)),
    ],
)
def test_a_malformed_interval_is_reported_and_the_others_count(
    tmp_path: Path, value: Any, intervals: tuple[tuple[float, float], ...]
) -> None:
    read_back, problem = read_intervals({"redacted_intervals": value})
    assert read_back == intervals and problem.startswith("redacted_intervals")
    text = json.dumps({"videos": [{"video_uid": "a", "split_em": "val", "redacted_intervals": value}]})
    annotations = read(tmp_path, text)
    (reject,) = [r for r in annotations.rejects.to_pylist() if r["set"] == "videos"]
    assert (reject["reason"], reject["status"]) == ("malformed redacted_intervals", "failed")
    assert reject["item"] == "ego4d.json:videos[0]" and "expected" in reject["detail"]
    assert annotations.videos["split"].to_pylist()[0] == "val"


def test_rows_about_one_video_add_up_whatever_their_order(tmp_path: Path) -> None:
    rows = [
        {"video_uid": "a", "duration_sec": 9.0, "split_em": "train", "redacted_intervals": [[0.0, 1.0]]},
        {"video_uid": "a", "duration_sec": 12.0, "split_em": "test", "redacted_intervals": [[6.6, 6.7]]},
    ]
    tables = []
    for order in (rows, rows[::-1]):
        annotations = read(tmp_path, {"videos": order})
        assert [r["reason"] for r in annotations.rejects.to_pylist() if r["set"] == "videos"] == ["duplicate identity"]
        tables.append((annotations.videos, annotations.narrations, annotations.summaries))
    assert tables[0] == tables[1]
    assert tables[0][0].to_pylist()[0] == {"video_uid": "a", "duration": 12.0, "is_stereo": False, "split": "test"}
    assert starts(annotations, "a") == [1.5, 2.5, 3.5, 4.5, 5.5, 7.5]


def test_a_field_twice_is_reported_and_the_stricter_value_counts(tmp_path: Path) -> None:
    text = '{"videos": [{"video_uid": "a", "split_em": "test", "split_em": "train", "redacted_intervals": [[3, 5]],'
    annotations = read(tmp_path, text + ' "redacted_intervals": [[0, 0.1]]}]}')
    assert annotations.videos["split"].to_pylist() == ["test", "train"]
    assert [r["reason"] for r in annotations.rejects.to_pylist() if r["set"] == "videos"] == ["repeated field"]
    assert starts(annotations, "a") == [0.5, 1.5, 5.5, 6.5, 7.5]


@pytest.mark.parametrize("name", ["manifest.csv", "ego4d.json"])
def test_other_shapes_of_metadata(tmp_path: Path, name: str) -> None:
    if name == "manifest.csv":
        metadata: Any = "video_uid,x,duration_sec,redacted_intervals\n"
        metadata += 'a,x,9.0,"[{""start_sec"": 3, ""end_sec"": 5}]"\nb,x,9,\n'
        assert read(tmp_path, metadata, name=name).narrations.num_rows == 13
        return
    listed = {"a": {"redacted_intervals": [CUT]}, "b": {}}
    for metadata in ({"videos": listed}, [{"video_uid": uid, **value} for uid, value in listed.items()]):
        assert read(tmp_path, metadata).narrations.num_rows == 13
