"""Own captions as tables: every row is accounted for, and times, splits and tags are what the rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocessing.annotations import Annotations
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.own.config import CaptionsConfig
from preprocessing.own.reading import read_own
from preprocessing.own.videos import find_own_videos
from tests.preprocessing.coded_video import steady, write_video

SECONDS = 6.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "videos"
    for name in ("a.mp4", "Über uns.MOV", "b.mkv"):
        write_video(root / name, steady(SECONDS), size=(64, 48))
    (root / "broken.mp4").write_bytes(b"no video")
    return root


def read(videos: Path, table: str | None, tmp_path: Path, **options: Any) -> tuple[Annotations, list[str]]:
    path = tmp_path / "captions.csv"
    if table is not None:
        path.write_text(table, encoding="utf-8")
    said: list[str] = []
    captions = CaptionsConfig(**{"val_fraction": 0.0, **options.pop("captions", {})})
    annotations = AnnotationsConfig(captions=path if table is not None else None, **options.pop("annotations", {}))
    found = read_own(find_own_videos(videos, "**/*"), annotations, captions, tolerance=1.0, say=said.append, **options)
    return found, said


def test_every_row_is_an_item_or_a_rejected_row_with_its_reason(videos: Path, tmp_path: Path) -> None:
    rows = [
        ("a,0,2,fine,,,", ""),
        ("a,0:01,0:03.5,also fine,,,", ""),
        ("über uns.mov,,,the whole video,summary,,", ""),
        ("a,5,6.4,overruns a little,,,", ""),
        ("a,5,9,overruns,,,", "ends after the video"),
        ("a,7,8,too late,,,", "past the end of the video"),
        ("a,3,2,backwards,,,", "reversed times"),
        ("a,x,2,no time,,,", "malformed start"),
        ("zzz.mp4,0,2,no such file,,,", "missing"),
        ("a,0,1,,,,", "empty text"),
        ("a,0,1,odd level,chapter,,", "malformed level"),
        ("a,0,1,odd split,,holdout,", "malformed split"),
        ("a,0,1,odd tags,,,[1", "malformed tags"),
        ("a,0,2,fine,,,", "duplicate row"),
        ("a,0,2", "wrong number of columns"),
    ]
    table = "\n".join(["video,start,end,caption,level,split,verbs", *(row for row, _ in rows)])
    found, said = read(videos, table, tmp_path)
    clips, summaries = found.sets["clips"].to_pylist(), found.sets["summaries"].to_pylist()
    assert [(row["clip_start"], row["clip_end"], row["text"]) for row in clips] == [
        (0.0, 2.0, "fine"), (1.0, 3.5, "also fine"), (5.0, pytest.approx(SECONDS, abs=0.05), "overruns a little"),
    ]  # fmt: skip
    assert [(row["video_uid"], row["clip_start"], row["clip_end"]) for row in summaries] == [
        ("Über uns.MOV", 0.0, pytest.approx(SECONDS, abs=0.05))
    ]
    reasons = sorted(reason for _, reason in rows if reason)
    assert sorted(found.rejects["reason"].to_pylist()) == reasons
    assert len(clips) + len(summaries) + len(reasons) == len(rows) == sum(found.input_rows.values())
    assert all(detail.startswith("captions.csv:") for detail in found.rejects["detail"].to_pylist())
    assert found.own is not None and found.own.clamped == 1
    assert any("1 captions end after their video, by at most 0.40 s" in text for text in said)


def test_two_captions_of_one_moment_are_both_kept_under_keys_that_do_not_depend_on_order(
    videos: Path, tmp_path: Path
) -> None:
    rows = ["a,0,2,one", "a,0,2,two", "b,,,three"]
    keys = []
    for order in (rows, rows[::-1]):
        found, _ = read(videos, "\n".join(["video,start,end,caption", *order]), tmp_path)
        keys.append({row["text"]: row["key"] for row in found.sets["clips"].to_pylist()})
    assert keys[0] == keys[1] and len(set(keys[0].values())) == 3


def test_further_columns_are_kept_as_text(videos: Path, tmp_path: Path) -> None:
    found, _ = read(videos, "video,caption,room,taken\na,x,007,NA\nb,y,,None\n", tmp_path)
    extras = [json.loads(text) for text in found.sets["clips"]["extra"].to_pylist()]
    assert extras == [{"room": "007", "taken": "NA"}, {"room": "", "taken": "None"}]


def test_without_any_captions_every_video_is_cut_into_windows(videos: Path, tmp_path: Path) -> None:
    found, said = read(videos, None, tmp_path, captions={"windows": 2.5})
    times: dict[str, list[tuple[float, float]]] = {}
    for row in found.sets["clips"].to_pylist():
        times.setdefault(row["video_uid"], []).append((row["clip_start"], row["clip_end"]))
        assert row["text"] == ""
    assert times.pop("broken.mp4") == [(0.0, 2.5)]  # planned, so that the build says why it cannot be read
    assert set(times) == {"a.mp4", "b.mkv", "Über uns.MOV"}
    for windows in times.values():
        assert windows == [(0.0, 2.5), (2.5, pytest.approx(SECONDS, abs=0.05))]
    assert any("no captions: 4 videos in windows of 2.5 s" in text for text in said)


def test_subtitles_are_captions_too(videos: Path, tmp_path: Path) -> None:
    beside = videos / "b.srt"
    beside.write_text("1\n00:00:01,000 --> 00:00:02,000\nfrom subtitles\n")
    try:
        found, _ = read(videos, "video,caption\na,from the table\n", tmp_path)
        alone, _ = read(videos, None, tmp_path)
        without, _ = read(videos, "video,caption\na,x\n", tmp_path, captions={"subtitles": False})
    finally:
        beside.unlink()
    assert found.sets["clips"]["text"].to_pylist() == ["from the table", "from subtitles"]
    assert set(found.sources) == {"captions.csv", "b.srt"}
    assert alone.sets["clips"]["text"].to_pylist() == ["from subtitles"]
    assert without.sets["clips"]["text"].to_pylist() == ["x"]


def split_of(found: Annotations) -> dict[str, str]:
    return dict(zip(found.videos["video_uid"].to_pylist(), found.videos["split"].to_pylist(), strict=True))


def test_a_video_is_in_one_split_the_strictest_that_its_rows_name(videos: Path, tmp_path: Path) -> None:
    table = "video,start,end,caption,split\na,0,1,x,train\na,1,2,y,validation\nb,0,1,z,\n"
    found, said = read(videos, table, tmp_path)
    assert split_of(found) == {"a.mp4": "val", "b.mkv": "train", "broken.mp4": "train", "Über uns.MOV": "train"}
    assert any("1 videos have rows of several splits, such as a.mp4" in text for text in said)


def test_the_val_split_is_chosen_by_a_hash_of_each_video_alone(tmp_path: Path) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for i in range(200):
        (root / f"{i}.mp4").write_bytes(b"x")

    def val(**captions: Any) -> set[str]:
        found, _ = read(root, None, tmp_path, captions=captions)
        return {uid for uid, split in split_of(found).items() if split == "val"}

    chosen = val(val_fraction=0.2)
    assert 20 <= len(chosen) <= 60
    for name in ("0.mp4", "1.mp4"):
        (root / name).unlink()
    assert val(val_fraction=0.2) == chosen - {"0.mp4", "1.mp4"}
    assert val(val_fraction=0.2, seed=1) != val(val_fraction=0.2)
    _, said = read(root, None, tmp_path, captions={"val_fraction": 0.0})
    assert any("no video is in the val split" in text for text in said)


def test_lists_of_videos_name_files_in_any_usual_way(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("b\n")
    (tmp_path / "not.txt").write_text("a.mp4\n")
    table = "video,caption\na,x\nb,y\nÜber uns.MOV,z\n"
    annotations = {"val_list": tmp_path / "val.txt", "exclude": (tmp_path / "not.txt",)}
    found, _ = read(videos, table, tmp_path, annotations=annotations)
    assert split_of(found)["b.mkv"] == "val"
    assert found.sets["clips"]["video_uid"].to_pylist() == ["b.mkv", "Über uns.MOV"]
    assert found.rejects["reason"].to_pylist() == ["excluded: used by evaluation"]
