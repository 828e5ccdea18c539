"""Hierarchies of other datasets become captions of two levels; what cannot be used is counted with its reason."""

from __future__ import annotations

import collections
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from preprocessing.hierarchies import __main__ as entry
from preprocessing.hierarchies.readers import egoexo, epic, goalstep, hcap
from preprocessing.hierarchies.rows import AnnotationFileError, Rejects, Row
from preprocessing.own.config import ColumnsConfig
from preprocessing.own.rows import CaptionRow
from preprocessing.own.tables import open_table
from tests.paths import REPOSITORY

EPIC = REPOSITORY.parent / "shared" / "epic100"
SUBSTEP = {"start_time": 12.0, "end_time": 14.5, "step_category": "s", "step_description": "crack an egg"}
STEP = {"start_time": 10.0, "end_time": 20.0, "step_description": "beat the eggs", "segments": [SUBSTEP], "summary": []}
GOAL = {"video_uid": "v", "start_time": 0.0, "end_time": 90.0, "goal_description": "make an omelette", "summary": []}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_goal_step_has_goals_over_steps_over_substeps(tmp_path: Path) -> None:
    plain = {"start_time": 30.0, "end_time": 40.0, "step_description": "wash\nthe pan", "summary": ["x"]}
    videos = [
        {**GOAL, "segments": [STEP, plain, {"start_time": 5.0, "end_time": 5.0, "step_description": "nothing"}]},
        {**GOAL, "video_uid": "w", "summary": ["heats a pan", "eats"], "segments": []},
        {**GOAL, "video_uid": "grp-1", "segments": [STEP]},
    ]
    rejects = Rejects()
    rows = list(goalstep(write(tmp_path / "goalstep_valid.json", {"split": "val", "videos": videos}), rejects))
    assert [(row.kind, row.level, row.caption, row.parent) for row in rows] == [
        ("goal", "summary", "make an omelette", ""),
        ("step", "summary", "beat the eggs", "v/goal"),
        ("substep", "clip", "crack an egg", "v/0"),
        ("step", "clip", "wash the pan", "v/goal"),
        ("goal", "summary", "heats a pan eats", ""),
    ]
    assert {row.split for row in rows} == {"val"}
    assert rejects.counts == {"no span of time": 1, "a group of videos": 1}


def test_hcap_is_read_without_executing_anything(tmp_path: Path) -> None:
    def dump(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(pickle.dumps(value))
        return path

    rejects = Rejects()
    (clip,) = hcap(dump("clips_train.pkl", [("v", 1.0, 2.0, "C opens a door"), ("v", 2.0, 1.0, "x")]), rejects)
    record = {"vid": "v", "start_sec": 0, "end_sec": 180.0, "captions_pred": ["a"], "segment_description": "C tidies"}
    (segment,) = hcap(dump("segments_val.pkl", [record]), rejects)
    assert (clip.level, clip.split, segment.level, segment.kind, segment.end) == (
        "clip",
        "train",
        "summary",
        "segment",
        180,
    )
    assert rejects.counts == {"no span of time": 1}

    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    for value in ([Attack()], collections.OrderedDict(a=1)):
        with pytest.raises(AnnotationFileError, match=r"not a pickle of plain values: .* asks for"):
            list(hcap(dump("clips_val.pkl", value), rejects))
    assert not (tmp_path / "executed").exists()


def test_ego_exo_s_points_become_spans_per_annotator(tmp_path: Path) -> None:
    def of(annotator: str, times: list[float], **more: Any) -> dict[str, Any]:
        described = [{"text": f"C moves at {time}", "timestamp": time, "ego_visible": True} for time in times]
        return {"annotator_id": annotator, "rejected": False, "descriptions": described, **more}

    one, two = of("a", [2.0, 4.0, 6.0]), of("b", [1.0, 5.0])
    one["descriptions"][1]["ego_visible"] = "0"
    takes = {"take": [one, two, of("c", [3.0], rejected="1")]}
    rejects = Rejects()
    rows = list(egoexo(write(tmp_path / "atomic_descriptions_train.json", {"annotations": takes}), rejects))
    by = {(row.annotator, round((row.start + row.end) / 2, 6)): round(row.end - row.start, 6) for row in rows}
    # Gaps are 4 and 4 s (2 and 6, as 4 is not visible; 1 and 5), α their mean: a clip lasts β / α = 1 s.
    assert by == {("a", 2.0): 1.0, ("a", 6.0): 1.0, ("b", 1.0): 1.0, ("b", 5.0): 1.0}
    assert rejects.counts == {"not visible in the wearer's camera": 1, "rejected by its dataset": 1}

    step = {"start_time": 1.0, "end_time": 9.0, "step_name": "Stir", "step_description": "stir the soup", "step_id": 3}
    steps = {"take": {"take_name": "t", "scenario": "Cooking", "segments": [step]}}
    (row,) = egoexo(write(tmp_path / "keystep_val.json", {"annotations": steps}), Rejects())
    assert (row.level, row.caption, row.parent, row.split) == ("summary", "stir the soup", "Cooking", "val")


EPIC_ROW = (
    "P01_11_0,P01,P01_11,00:00:01.890,00:01:00.00,00:01:02.500,1,2,take plate,take,0,plate,2,\"['plate', 'pan']\",[2]"
)
EPIC_HEAD = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


def test_epic_s_narrations_have_verbs_and_nouns(tmp_path: Path) -> None:
    path = tmp_path / "EPIC_100_train.csv"
    path.write_text(f"{EPIC_HEAD}\n{EPIC_ROW}\n")
    (row,) = epic(path, Rejects())
    assert (row.start, row.end, row.verbs, row.nouns, row.split) == (60.0, 62.5, "take", "plate;pan", "train")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(AnnotationFileError, match="its columns lack narration"):
        list(epic(path, Rejects()))


@pytest.mark.skipif(not EPIC.is_dir(), reason="the real files are not here")
def test_a_real_file_of_epic_is_read() -> None:
    rejects = Rejects()
    rows = list(epic(EPIC / "EPIC_100_retrieval_test.csv", rejects))
    assert len(rows) + sum(rejects.counts.values()) == 9668 and not rejects.counts
    assert {row.split for row in rows} == {"test"} and all(row.verbs and row.nouns for row in rows)


def test_the_table_is_one_that_the_build_of_own_videos_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "goalstep_train.json", {"videos": [{**GOAL, "segments": [STEP, STEP]}]})
    table = tmp_path / "captions.csv"
    assert entry.main(["goalstep", str(source), str(table)]) == 0
    printed = capsys.readouterr().out
    assert "3 captions" in printed and "2 left out: repeats another" in printed
    with open_table(table, ColumnsConfig()) as opened:
        rows = list(opened.rows)
        assert opened.extra == ("kind", "parent", "annotator", "id")
    assert all(isinstance(row, CaptionRow) for row in rows)
    first: Any = rows[0]
    assert (first.video, first.start, first.end, first.level, first.split) == ("v", "0.0", "90.0", "summary", "train")
    assert first.extra["kind"] == "goal"


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert entry.main(["nonsense", "x", str(tmp_path / "t.csv")]) == 2
    assert entry.main(["goalstep", str(tmp_path / "absent.json"), str(tmp_path / "t.csv")]) == 2
    assert entry.main(["goalstep", str(write(tmp_path / "a.json", [])), str(tmp_path / "t.csv")]) == 2
    assert entry.main(["egoexo", str(write(tmp_path / "b.json", {"annotations": {}})), str(tmp_path / "t.csv")]) == 2
    assert Row(video="v", start=0, end=1, caption="x", level="clip", split="", kind="k").parent == ""
