"""The samples that a build selects."""

from __future__ import annotations

import json
from pathlib import Path

from preprocessing.annotations import AnnotationsConfig, read_annotations
from preprocessing.config import BuildConfig
from preprocessing.selection import PublishedState, select
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
