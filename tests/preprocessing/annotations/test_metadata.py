"""Metadata, splits, and lists of videos that are excluded or in the val split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocessing.annotations import AnnotationError, AnnotationsConfig, read_annotations
from preprocessing.annotations.metadata import read_uids
from tests.preprocessing.annotation_files import SUMMARY_COLUMNS, row, table, write


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write(tmp_path / "egoclip.csv", table(row(i, video_uid=f"v{i % 4}", video_dur=50 + i) for i in range(8)))


def videos(config: AnnotationsConfig) -> dict[str, dict[str, Any]]:
    return {row["video_uid"]: row for row in read_annotations(config).videos.to_pylist()}


EGO4D = {
    "version": "v2",
    "videos": [
        {"video_uid": "v0", "duration_sec": 61.5, "is_stereo": True, "split_em": "train", "split_av": None},
        {"video_uid": "v1", "duration_sec": 62, "is_stereo": False, "split_em": "train", "split_av": "val"},
        {"video_uid": "v2", "duration_sec": None, "split_em": "val", "split_av": ["test"]},
        {"video_uid": "w", "duration_sec": 5.0, "split_fho": "Val"},
    ],
    "clips": [{"clip_uid": "c"}],
}


def test_metadata_provide_duration_stereo_flag_and_split(tmp_path: Path, clips: Path) -> None:
    by_uid = videos(AnnotationsConfig(egoclip=clips, metadata=write(tmp_path / "ego4d.json", EGO4D)))
    assert {uid: (v["duration"], v["is_stereo"], v["split"]) for uid, v in by_uid.items()} == {
        "v0": (61.5, True, "train"),
        "v1": (62.0, False, "val"),
        "v2": (56.0, False, "test"),  # the longest that egoclip.csv states
        "v3": (57.0, False, "train"),  # not in the metadata
        "w": (5.0, False, "val"),  # not in the annotations
    }


def test_split_fields_are_configurable_and_must_exist(tmp_path: Path, clips: Path) -> None:
    metadata = write(tmp_path / "ego4d.json", EGO4D)
    by_uid = videos(AnnotationsConfig(egoclip=clips, metadata=metadata, split_fields=("split_em",)))
    assert [by_uid[uid]["split"] for uid in ("v0", "v1", "v2", "w")] == ["train", "train", "val", "train"]
    assert {
        v["split"] for v in videos(AnnotationsConfig(egoclip=clips, metadata=metadata, split_fields=())).values()
    } == {"train"}
    with pytest.raises(AnnotationError, match="no video has the field split_ltaa"):
        videos(AnnotationsConfig(egoclip=clips, metadata=metadata, split_fields=("split_em", "split_ltaa")))


def test_a_val_list_moves_videos_to_val_but_not_from_test(tmp_path: Path, clips: Path) -> None:
    metadata, val = write(tmp_path / "ego4d.json", EGO4D), write(tmp_path / "val.txt", "v0\n\nv2\nabsent\n")
    by_uid = videos(AnnotationsConfig(egoclip=clips, metadata=metadata, val_list=val))
    assert [by_uid[uid]["split"] for uid in ("v0", "v1", "v2", "v3")] == ["val", "val", "test", "train"]


@pytest.mark.parametrize("heading", ["video_uid,canonical,length,is_stereo", "canonical,video_uid,length,is_stereo"])
def test_a_manifest_has_the_uid_by_name_and_the_duration_in_its_third_column(
    tmp_path: Path, clips: Path, heading: str
) -> None:
    order = heading.split(",")
    lines = [heading]
    for uid, seconds, stereo in (("v0", "10.5", "True"), ("v1", "", ""), ("v9", "7", "0")):
        cells = {"video_uid": uid, "canonical": "x", "length": seconds, "is_stereo": stereo}
        lines.append(",".join(cells[name] for name in order))
    by_uid = videos(AnnotationsConfig(egoclip=clips, metadata=write(tmp_path / "manifest.csv", "\r\n".join(lines))))
    assert (by_uid["v0"]["duration"], by_uid["v0"]["is_stereo"]) == (10.5, True)
    assert by_uid["v1"]["duration"] == 55.0
    assert by_uid["v9"]["duration"] == 7.0


def test_malformed_metadata_rows_are_rejected_but_their_split_counts(tmp_path: Path, clips: Path) -> None:
    rows: list[Any] = [
        {"video_uid": "v0", "duration_sec": -5, "split_em": "test"},
        {"video_uid": "v1", "duration_sec": "long"},
        {"video_uid": "v2", "duration_sec": 9.0, "is_stereo": "maybe"},
        {"video_uid": 7},
        "v3",
        {"video_uid": "w", "duration_sec": 9.0},
        {"video_uid": "w", "duration_sec": 9.0},
        {"video_uid": "w", "duration_sec": 8.0},
    ]
    annotations = read_annotations(
        AnnotationsConfig(egoclip=clips, metadata=write(tmp_path / "ego4d.json", {"videos": rows}))
    )
    assert [(r["item"], r["reason"], r["status"]) for r in annotations.rejects.to_pylist()] == [
        ("ego4d.json:videos[0]", "malformed duration_sec", "failed"),
        ("ego4d.json:videos[1]", "malformed duration_sec", "failed"),
        ("ego4d.json:videos[2]", "malformed is_stereo", "failed"),
        ("ego4d.json:videos[3]", "malformed video_uid", "failed"),
        ("ego4d.json:videos[4]", "malformed video_uid", "failed"),
        ("ego4d.json:videos[6]", "duplicate row", "filtered"),
        ("ego4d.json:videos[7]", "duplicate identity", "failed"),
    ]
    assert annotations.input_rows["videos"] == 8
    by_uid = {v["video_uid"]: v for v in annotations.videos.to_pylist()}
    assert (by_uid["v0"]["split"], by_uid["v0"]["duration"], by_uid["w"]["duration"]) == ("test", 54.0, 9.0)


def test_a_manifest_row_with_too_few_columns_is_rejected_with_its_line(tmp_path: Path, clips: Path) -> None:
    metadata = write(tmp_path / "manifest.csv", "video_uid,a,b\nv0,x,5\nv1,x\nv2,x,abc\n")
    annotations = read_annotations(AnnotationsConfig(egoclip=clips, metadata=metadata))
    assert [(r["item"], r["reason"]) for r in annotations.rejects.to_pylist()] == [
        ("manifest.csv:3", "wrong number of columns"),
        ("manifest.csv:4", "malformed duration_sec"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "# used by EgoMCQ\nv1\n  v3 \r\n\nunknown\n"),
        ("bare", "v1\nv3\nunknown\n"),
        ("list.json", ["v1", "v3", "unknown"]),
        ("table.csv", "id,video_uid\n1,v1\n2,v3\n3,unknown\n"),
        ("table.tsv", 'video_uid\ttext\nv1\t"a\nb"\nv3\tc\nunknown\td\n'),
        (
            "egomcq.json",
            {
                "0": {"query": {"video_uid": "v1"}, "choices": {"0": {"video_uid": "v3"}, "1": {"video_uid": None}}},
                "1": {"query": {"video_uid": "unknown", "clip_text": "v0"}, "types": 1},
            },
        ),
    ],
)  # fmt: skip
def test_excluded_videos_enter_no_pretraining_set(tmp_path: Path, clips: Path, name: str, content: Any) -> None:
    listing = write(tmp_path / name, content)
    assert read_uids(listing) == ["unknown", "v1", "v3"]
    summaries = write(tmp_path / "s.csv", table([row(0, video_uid="v1"), row(1, video_uid="v0")], SUMMARY_COLUMNS))
    annotations = read_annotations(AnnotationsConfig(egoclip=clips, egosummary=summaries, exclude=(listing,)))
    used = annotations.narrations["video_uid"].to_pylist() + annotations.summaries["video_uid"].to_pylist()
    assert set(used) == {"v0", "v2"}
    rejects = annotations.rejects.to_pylist()
    assert len(rejects) == 5 and {r["video_uid"] for r in rejects} == {"v1", "v3"}
    assert {(r["status"], r["reason"]) for r in rejects} == {("filtered", "excluded: used by evaluation")}
    assert {r["item"] for r in rejects} == {
        "v1_c1_000001",
        "v1_c1_000005",
        "v3_c1_000003",
        "v3_c1_000007",
        "v1_s1_000000",
    }
    assert all(name in r["detail"] for r in rejects)


@pytest.mark.parametrize("content", ["", "# nothing\n\n", "[]", "v1 v2\n", b"\xff\xfe\n", "v1,v2\n"])
def test_an_exclusion_list_without_valid_uids_is_an_error(tmp_path: Path, clips: Path, content: str | bytes) -> None:
    listing = write(tmp_path / "exclude", content)
    with pytest.raises(AnnotationError, match="exclude"):
        read_annotations(AnnotationsConfig(egoclip=clips, exclude=(listing,)))
