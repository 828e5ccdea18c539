"""The samples that a build selects."""

from __future__ import annotations

import json
from pathlib import Path

from preprocessing.annotations import AnnotationsConfig, read_annotations
from preprocessing.config import BuildConfig
from preprocessing.selection import PublishedState, select
from tests.preprocessing.annotation_files import SUMMARY_COLUMNS, row, table, write
from tests.preprocessing.benchmark_world import (
    SECONDS,
    SOUND,
    write_questions,
)


def test_benchmarks_use_videos_whatever_their_split_in_the_metadata(tmp_path: Path) -> None:
    write_questions(tmp_path / "egomcq.json", kinds=(1,))
    known = [{"video_uid": uid, "duration_sec": SECONDS[uid], "split_em": "test"} for uid in SOUND]
    (tmp_path / "ego4d.json").write_text(json.dumps({"videos": known}))
    files = AnnotationsConfig(egomcq=tmp_path / "egomcq.json", metadata=tmp_path / "ego4d.json")
    annotations = read_annotations(files)
    video_paths = {uid: tmp_path / uid for uid in SECONDS}
    selection = select(annotations, video_paths, PublishedState(), BuildConfig())
    assert set(annotations.videos["split"].to_pylist()) == {"test", "train"}
    assert selection.items == annotations.sets["egomcq"].num_rows and not len(selection.filtered)


def test_a_summary_whose_record_no_shard_can_hold_fails_before_anything_is_encoded(tmp_path: Path) -> None:
    rows = [row(i, clip_text="a" * 900_000, clip_start=i, clip_end=i + 0.5) for i in range(12)]
    spans = [row(0, clip_start=0.0, clip_end=20.0), row(1, clip_start=0.0, clip_end=4.0)]
    files = AnnotationsConfig(
        egoclip=write(tmp_path / "egoclip.csv", table(rows)),
        egosummary=write(tmp_path / "s.csv", table(spans, SUMMARY_COLUMNS)),
    )
    annotations = read_annotations(files)
    selection = select(annotations, {"0a1b-2c": tmp_path}, PublishedState(), BuildConfig())
    (failed,) = selection.filtered.to_pylist()
    assert (failed["set"], failed["item"], failed["status"]) == ("summaries", "0a1b-2c_s1_000000", "failed")
    assert failed["reason"] == "record too large" and "the limit of a record is 8388608 bytes" in failed["detail"]
    assert selection.items == 13
