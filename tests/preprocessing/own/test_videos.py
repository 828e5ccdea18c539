"""Own videos are found by what they are, and captions find them by any usual name."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from preprocessing.errors import UsageError
from preprocessing.own.videos import OwnFiles, VideoNames, find_own_videos
from tests.preprocessing.coded_video import steady, write_video


def files(tmp_path: Path, *names: str) -> OwnFiles:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return find_own_videos(tmp_path, "**/*")


def test_the_uid_is_the_path_with_its_extension(tmp_path: Path) -> None:
    found = files(tmp_path, "Küche 1.MOV", "day 1/a.mp4", "day 2/a.mp4", "a.mp4", "a.mkv")
    assert list(found.videos) == ["Küche 1.MOV", "a.mkv", "a.mp4", "day 1:a.mp4", "day 2:a.mp4"]


def test_what_is_no_video_is_passed_over(tmp_path: Path) -> None:
    write_video(tmp_path / "unknown.bin.mp4", steady(0.2)).rename(tmp_path / "holds a video.xyz")
    found = files(
        tmp_path, "a.mp4", "a.LRV", "b.lrv", ".hidden.mp4", ".trash/c.mp4", "a.srt", "captions.csv", "Thumbs.xyz"
    )  # fmt: skip
    assert list(found.videos) == ["a.mp4", "b.lrv", "holds a video.xyz"]


def test_an_output_below_the_videos_is_no_source(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4", "shards/x.mp4", "shards-work/chunks/0.mp4")
    found = find_own_videos(tmp_path, "**/*", besides=[tmp_path / "shards", tmp_path / "shards-work"])
    assert list(found.videos) == ["a.mp4"]


def test_a_folder_without_videos_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.mp4").write_bytes(b"x")
    with pytest.raises(UsageError, match=r'videos\.pattern="\*\*/\*" also looks into folders'):
        find_own_videos(tmp_path, "*")
    assert list(find_own_videos(tmp_path, "**/*").videos) == ["deep:a.mp4"]
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(UsageError, match=r"none of its 1 files is a video, such as b\.txt"):
        find_own_videos(tmp_path, "*")
    with pytest.raises(UsageError, match="there is no such folder"):
        find_own_videos(tmp_path / "absent", "*")


@pytest.mark.parametrize(
    "name",
    [
        "day 1/Küche.MOV", "day 1/Küche", "Küche.MOV", "Küche", "küche.mov", "KÜCHE",
        "./day 1/Küche.MOV", "day 1\\Küche.MOV",
        "data/videos/day 1/Küche.MOV", unicodedata.normalize("NFD", "Küche.MOV"), "{root}/day 1/Küche.MOV",
    ],
)  # fmt: skip
def test_a_caption_names_its_video_in_any_usual_way(tmp_path: Path, name: str) -> None:
    names = VideoNames(files(tmp_path, "day 1/Küche.MOV", "day 1/other.mp4"))
    assert names.find(name.replace("{root}", str(tmp_path))) == ("day 1:Küche.MOV", "")


def test_a_name_that_fits_several_videos_or_none_is_said(tmp_path: Path) -> None:
    names = VideoNames(files(tmp_path, "1/clip.mp4", "2/clip.mp4", "a.mp4", "a.mkv", "kitchen.mp4"))
    uid, problem = names.find("clip.mp4")
    assert not uid and problem == (
        "ambiguous video: 'clip.mp4' may be 1/clip.mp4, 2/clip.mp4; give the path below videos.root"
    )
    assert names.find("1/clip.mp4")[0] == "1:clip.mp4"
    assert names.find("a.mkv")[0] == "a.mkv" and names.find("a")[1].startswith("ambiguous")
    assert names.find("kitchem.mp4")[1] == "missing: no file 'kitchem.mp4' in videos.root; did you mean 'kitchen.mp4'?"
    assert names.find("")[0] == "" and names.find("../../etc/passwd")[0] == ""


def test_subtitles_belong_to_the_video_of_their_name(tmp_path: Path) -> None:
    found = files(tmp_path, "a.mp4", "a.srt", "a.en.srt", "b.MOV", "b.MOV.vtt", "c.mp4", "c.de.srt", "d.srt")
    assert {uid: path.name for uid, path in found.subtitles.items()} == {
        "a.mp4": "a.srt", "b.MOV": "b.MOV.vtt", "c.mp4": "c.de.srt",
    }  # fmt: skip
    assert found.messages == ("subtitles: a.en.srt passed over: one file a video is used",)
