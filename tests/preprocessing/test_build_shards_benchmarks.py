"""Builds of every benchmark: distinct clips, companion files, the ledger, and sets added to an existing dataset."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from shards import companions, schema
from shards.config import LoaderConfig
from shards.dataset import open_dataset, read_member
from shards.loader import Loader
from shards.verify.__main__ import main as verify
from tests.preprocessing.benchmark_world import (
    LATE,
    SECONDS,
    SETS,
    SIZE,
    SOUND,
    TIMES,
    BenchmarkWorld,
    make_benchmark_world,
    write_epic,
    write_frames,
)
from tests.preprocessing.coded_video import numbers, steady, write_video
from tests.preprocessing.world import World, files_of, ledger_of

FRAMES_FPS = 60
SPLITS = [(name, split) for name in SETS for split in schema.SETS[name].splits]


pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def world(make_once: Callable[[str, Callable[[Path], BenchmarkWorld]], BenchmarkWorld]) -> BenchmarkWorld:
    return make_once("benchmark-world", lambda folder: make_benchmark_world(folder / "in"))


@pytest.fixture(scope="module")
def built(world: BenchmarkWorld, make_once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    """All sets in one dataset, built by two workers; not to be modified."""

    def make(folder: Path) -> Path:
        assert world.build(folder, SETS, "dask.workers=2") == 0
        return folder

    return make_once("benchmarks-built", make)


def samples(output: Path, set_name: str, split: str) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return key → record and mp4."""
    result = {}
    for shard in open_dataset(output / "shards").split(set_name, split).shards:
        for row in shard.rows().to_pylist():
            record = json.loads(read_member(shard.path, row["json_offset"], row["json_size"]))
            result[row["key"]] = record, read_member(shard.path, row["mp4_offset"], row["mp4_size"])
    return result


def test_verify_finds_no_fault(built: Path) -> None:
    assert verify([str(built / "shards")]) == 0


@pytest.mark.parametrize(("set_name", "split"), SPLITS)
def test_every_stored_frame_shows_the_source_at_its_time(built: Path, set_name: str, split: str) -> None:
    stored = samples(built, set_name, split)
    assert stored
    for record, mp4 in stored.values():
        assert record["fps"] == (2.0 if schema.SETS[set_name].is_long else 30.0)
        times = [record["media_start"] + i / record["fps"] for i in range(record["num_frames"])]
        assert numbers(io.BytesIO(mp4)) == [round(time * 30) for time in times]


@pytest.mark.parametrize("set_name", SETS)
def test_a_set_built_alone_has_the_same_bytes(
    world: BenchmarkWorld, built: Path, tmp_path: Path, set_name: str
) -> None:
    """Shards and labels depend neither on the number of workers nor on the other sets of the dataset."""
    assert world.build(tmp_path, [set_name]) == 0
    ours = files_of(tmp_path / "shards" / set_name)
    assert ours == files_of(built / "shards" / set_name)
    assert any(name.endswith(".tar") for name in ours)
    assert {row["set"] for row in ledger_of(tmp_path)} == {set_name, "videos"}


def test_questions_refer_to_every_clip_whether_packed_or_not(built: Path) -> None:
    asked = companions.read_questions(built / "shards" / "egomcq" / "test" / "questions.json")
    assert len(asked.questions) == 2 * (len(TIMES) + 1) and len(asked.rejected) == 1
    assert {question.type for question in asked.questions} == {"inter", "intra"}
    packed = samples(built, "egomcq", "test")
    assert len(asked.keys()) == len(SECONDS) * (len(TIMES) + 1)
    assert set(packed) < set(asked.keys())
    for uid in SOUND:
        own = sorted(record["clip_start"] for record, _ in packed.values() if record["video_uid"] == uid)
        assert own == [start for start, _ in TIMES]
    status = {row["item"]: row for row in ledger_of(built) if row["set"] == "egomcq"}
    assert {key for key, row in status.items() if row["status"] == "packed"} == set(packed)
    assert set(asked.keys()) == set(status) - {"egomcq.json:10"}
    assert status["egomcq.json:10"]["reason"] == "malformed answer"
    reasons = {(row["video_uid"], row["reason"]) for row in status.values()}
    assert ("absent", "missing") in reasons and ("nonsense", "unreadable") in reasons
    assert sum(row["reason"] == "past the end of the video" for row in status.values()) == 3
    assert LATE[0] > max(SECONDS.values())


def test_a_broken_video_loses_only_the_clips_that_overlap_its_damage(built: Path) -> None:
    rows = [row for row in ledger_of(built) if row["video_uid"] == "broken" and row["set"] != "videos"]
    lost = [row for row in rows if row["reason"] == "damaged source"]
    assert lost and all("broken frames" in row["detail"] for row in lost)
    assert any(row["status"] == "packed" for row in rows)


def test_every_row_of_every_file_is_accounted_for(built: Path) -> None:
    counted = Counter(row["set"] for row in ledger_of(built))
    assert counted == {
        "egomcq": len(SECONDS) * (len(TIMES) + 1) + 1,
        "summarymcq": len(SECONDS) * (len(TIMES) + 1) + 1,
        "epic_mir": 5 * len(TIMES),
        "charades_ego": 2 * len(TIMES) + 1 + 3,
        "howto100m": 4 * 2 + 2,
        "videos": len(SECONDS),
    }
    named = {(row["set"], row["reason"]) for row in ledger_of(built) if ":" in row["item"]}
    assert ("charades_ego", "malformed cls") in named and ("howto100m", "malformed label") in named


def test_labels_keep_the_order_of_their_file(built: Path) -> None:
    root = built / "shards"
    epic = companions.read_companion(root, "epic_mir", "test", companions.EpicLabels)
    assert [video.narration_id for video in epic.videos] == [
        f"{uid}_{i}" for uid in ("v.2 ü", "absent", "nonsense") for i in range(len(TIMES))
    ]
    assert [sentence.text for sentence in epic.sentences] == [f"cut {i}" for i in range(len(TIMES))]
    packed = samples(built, "epic_mir", "test")
    assert {video.key for video in epic.videos if video.narration_id.startswith("v.2")} == set(packed)
    for video in epic.videos:
        if video.key in packed:
            record = packed[video.key][0]
            assert (record["verb_class"], record["noun_classes"]) == (video.verb_class, list(video.noun_classes))
            assert (record["narration_id"], record["text"]) == (video.narration_id, video.text)
    howto = companions.read_companion(root, "howto100m", "val", companions.HowToLabels)
    assert {video.label for video in howto.videos} == {0, 1} and howto.classes == ()
    assert {key: record["label"] for key, (record, _) in samples(built, "howto100m", "val").items()}.items() <= {
        video.key: video.label for video in howto.videos
    }.items()


def test_a_whole_video_is_packed_up_to_its_end(built: Path) -> None:
    ((key, (record, mp4)),) = samples(built, "charades_ego", "test").items()
    assert record["video_uid"] == "v.2 ü" and key.endswith("_a0_whole")
    assert (record["clip_start"], record["clip_end"]) == (0.0, pytest.approx(SECONDS["v.2 ü"], abs=0.04))
    assert record["clip_frames"] == record["num_frames"] == len(numbers(io.BytesIO(mp4))) == 9 * 30
    assert record["action"] == -1
    labels = companions.read_companion(built / "shards", "charades_ego", "test", companions.CharadesLabels)
    assert {video.key: video.actions for video in labels.videos}[key] == (0, 1)
    assert len(labels.videos) == 3, "also those that could not be packed"


def test_action_segments_have_their_class(built: Path) -> None:
    records = [record for record, _ in samples(built, "charades_ego", "train").values()]
    assert sorted((r["clip_start"], r["action"]) for r in records) == [
        (start, i % 2) for i, (start, _) in enumerate(TIMES)
    ]
    assert {r["text"] for r in records} == {"Holding some clothes", "FfmpegInput a door"}


@pytest.mark.parametrize(("set_name", "split"), SPLITS)
def test_the_loader_reads_every_set(built: Path, set_name: str, split: str) -> None:
    config = LoaderConfig(global_batch=3, frames=4, windows=2, size=32, workers=0)
    keys = []
    for batch in Loader(built / "shards", set_name, split, config, is_training=False):
        assert not any(batch.failures)
        windows = (2,) if schema.SETS[set_name].is_long else ()
        assert batch.video.shape == (len(batch.keys), *windows, 4, 3, 32, 32)
        keys += batch.keys
    assert sorted(keys) == sorted(samples(built, set_name, split))


def test_a_second_run_has_nothing_to_do(
    world: BenchmarkWorld, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built, tmp_path / "o", copy_function=shutil.copy2)
    before = files_of(tmp_path / "o" / "shards")
    assert world.build(tmp_path / "o", SETS) == 0
    assert "nothing to build" in capsys.readouterr().out
    assert files_of(tmp_path / "o" / "shards") == before


@pytest.mark.parametrize("how", ["missing", "altered"])
def test_missing_or_altered_questions_are_restored_by_building_their_set(
    world: BenchmarkWorld, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    shutil.copytree(built, tmp_path / "o", copy_function=shutil.copy2)
    questions = tmp_path / "o" / "shards" / "egomcq" / "test" / "questions.json"
    if how == "missing":
        questions.unlink()
    else:
        questions.write_bytes(questions.read_bytes() + b"\n")
    assert world.build(tmp_path / "o", ["summarymcq"]) == 2
    assert "build egomcq again" in capsys.readouterr().err
    assert world.build(tmp_path / "o", ["egomcq"]) == 0
    ours, theirs = files_of(tmp_path / "o" / "shards"), files_of(built / "shards")
    assert {name for name in ours if ours[name] != theirs[name]} <= {"README.md", "dataset.json"}


def test_a_killed_build_is_resumed(world: BenchmarkWorld, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "o", copy_function=shutil.copy2)
    root = tmp_path / "o" / "shards"
    for path in (root / "dataset.json", root / "egomcq" / "test" / "00000_stats.json"):
        path.unlink()
    shutil.rmtree(root / "howto100m" / "val")
    (root / "epic_mir" / "test" / "labels.json").write_text("{")
    assert world.build(tmp_path / "o", SETS) == 0
    assert files_of(root) == files_of(built / "shards")


def test_a_benchmark_can_be_added_to_a_dataset_for_pretraining(tmp_path: Path, world: BenchmarkWorld) -> None:
    """Adding a set does not change the shards of others; its ledger rows, licence and files are added."""
    training = World(root=tmp_path / "in")
    training.video("v1", 2.0)
    training.video("talk", 4.0)
    for uid in ("v1", "talk", "absent"):
        training.clip(uid, 0.5, 1.5, "does it")
        training.summary(uid, 0.0, 4.0, "did it")
    training.write()
    exclude = f"annotations.exclude=[{world.root / 'egomcq.json'}]"
    done = training.build(tmp_path / "o", exclude)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "o" / "shards"
    first, ledger = files_of(root), ledger_of(tmp_path / "o")
    assert {row["reason"] for row in ledger if row["video_uid"] == "v1"} == {"excluded: used by evaluation"}
    assert world.build(tmp_path / "o", ["egomcq"], "licence=Ask the kitchen.") == 0
    second = files_of(root)
    for name in ("clips", "summaries"):
        assert all(second[path] == data for path, data in first.items() if path.startswith(name))
    before, after = json.loads(first["dataset.json"]), json.loads(second["dataset.json"])
    assert {name: after["sets"][name] for name in before["sets"]} == before["sets"]
    assert set(after["sets"]) == {"clips", "summaries", "egomcq"}
    assert after["provenance"]["annotations"].keys() == {
        "egoclip.csv",
        "egosummary_full.csv",
        "ego4d.json",
        "egomcq.json",
    }
    assert after["provenance"]["excluded_videos"] == before["provenance"]["excluded_videos"] == len(SECONDS)
    for notice in (before["provenance"]["licence_notice"], "Ask the kitchen."):
        assert notice in after["provenance"]["licence_notice"]
    assert after["config"]["annotations"]["egoclip"] == before["config"]["annotations"]["egoclip"]
    rows = [row for row in ledger_of(tmp_path / "o") if row["set"] in ("clips", "summaries")]
    assert rows == [row for row in ledger if row["set"] in ("clips", "summaries")]
    videos = {row["item"]: row["status"] for row in ledger_of(tmp_path / "o") if row["set"] == "videos"}
    assert videos["talk"] == videos["v1"] == "packed" and videos["absent"] == "failed"
    assert verify([str(root)]) == 0
    # The pretraining sets can still be extended, although they exclude the videos of the benchmark.
    added = training.clip("talk", 3.0, 4.0, "does one thing more")
    training.write()
    done = training.build(tmp_path / "o", exclude)
    assert done.returncode == 0, done.stderr
    third = files_of(root)
    assert all(third[path] == data for path, data in second.items() if path.startswith("egomcq"))
    assert {row["item"]: row["status"] for row in ledger_of(tmp_path / "o")}[added] == "packed"
    assert json.loads(third["dataset.json"])["files"].keys() == after["files"].keys()
    assert verify([str(root)]) == 0


def test_a_video_added_later_and_one_that_was_repaired_are_appended(world: BenchmarkWorld, tmp_path: Path) -> None:
    shutil.copytree(world.root, tmp_path / "in", copy_function=shutil.copy2)
    world = BenchmarkWorld(tmp_path / "in")
    assert world.build(tmp_path, ["epic_mir"]) == 0
    first = files_of(tmp_path / "shards")
    write_video(world.videos / "absent.mp4", steady(9.0), size=SIZE)
    write_video(world.videos / "nonsense.mp4", steady(9.0), size=SIZE)
    assert world.build(tmp_path, ["epic_mir"], "retry=failed") == 0
    second = files_of(tmp_path / "shards")
    assert len(samples(tmp_path, "epic_mir", "test")) == 3 * len(TIMES)
    assert all(second[name] == data for name, data in first.items() if name.endswith((".tar", "labels.json")))
    assert verify([str(tmp_path / "shards")]) == 0


def test_a_limited_build_keeps_all_questions(world: BenchmarkWorld, tmp_path: Path) -> None:
    assert world.build(tmp_path, ["summarymcq"], "videos.limit=1") == 0
    rows = [row for row in ledger_of(tmp_path) if row["set"] == "summarymcq"]
    assert {row["reason"] for row in rows if row["status"] == "filtered"} >= {"beyond videos.limit", "video absent"}
    asked = companions.read_questions(tmp_path / "shards" / "summarymcq" / "test" / "questions.json")
    assert len(asked.keys()) == len(SECONDS) * (len(TIMES) + 1)


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["max_failed_fraction=0.05"], 3, "max_failed_fraction"),
        (["annotations.egomcq=/nowhere.json"], 2, "annotations.egomcq = /nowhere.json: there is no such file"),
        (["annotations.egomqc=x"], 2, "did you mean annotations.egomcq"),
        (["videos.pattern='*/videos/*'"], 2, "no file or folder matches videos.pattern"),
        (["videos.pattern=../*"], 2, "a pattern below videos.root"),
        (["videos.frames_fps=0"], 2, "videos.frames_fps"),
    ],
)
def test_an_invalid_request_is_refused_with_the_remedy(
    world: BenchmarkWorld, tmp_path: Path, overrides: list[str], code: int, message: str, capsys: Any
) -> None:
    assert world.build(tmp_path, ["egomcq"], *overrides) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "shards" / "dataset.json").exists()


def test_a_dry_run_counts_every_set_and_writes_nothing(
    world: BenchmarkWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.build(tmp_path, ["charades_ego", "egomcq"], "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "charades_ego" in printed and "egomcq" in printed and "core-hours" in printed
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same coded frames as videos and as folders of frames, each built as epic_mir."""
    root = tmp_path_factory.mktemp("frames")
    for kind in ("video", "frames"):
        world = BenchmarkWorld(root / kind / "in")
        for split, uid in (("train", "P01_01"), ("test", "P01_02")):
            write_epic(world.root, split, [uid], fps=FRAMES_FPS)
            if kind == "video":
                times = steady(9.0, FRAMES_FPS)
                write_video(world.videos / f"{uid}.MP4", times, size=SIZE, rate=FRAMES_FPS, options={"crf": "12"})
            else:
                write_frames(world.videos / "P01" / "rgb_frames" / uid, 9 * FRAMES_FPS)
        pattern = [] if kind == "video" else ["videos.pattern='*/rgb_frames/*'"]
        assert world.build(root / kind, ["epic_mir"], *pattern) == 0
    return root / "video", root / "frames"


class TestFrameFolders:
    """Folders of numbered frames as source videos."""

    def test_they_give_the_same_frames_as_a_video(self, both: tuple[Path, Path]) -> None:
        video, frames = (samples(output, "epic_mir", "test") for output in both)
        assert len(video) == len(TIMES)
        assert {key: record for key, (record, _) in video.items()} == {key: r for key, (r, _) in frames.items()}
        for key, (record, mp4) in frames.items():
            expected = [round((record["media_start"] + i / 30) * FRAMES_FPS) for i in range(record["num_frames"])]
            assert numbers(io.BytesIO(mp4)) == expected
            difference = np.abs(pixels(mp4).astype(int) - pixels(video[key][1]).astype(int))
            assert difference.mean() < 3, "the two codecs may differ by a few of 255 levels"

    def test_verify_finds_no_fault_in_their_dataset(self, both: tuple[Path, Path]) -> None:
        assert verify([str(both[1] / "shards")]) == 0

    def test_missing_and_broken_frames_fail_only_the_clips_that_show_them(self, tmp_path: Path) -> None:
        world = BenchmarkWorld(tmp_path / "in")
        for split, uid in (("train", "P01_01"), ("test", "P01_02")):
            write_epic(world.root, split, [uid], fps=30)
            folder = write_frames(world.videos / uid, 9 * 30)
        (folder / "frame_0000000010.jpg").unlink()  # within 0.1–1.3 s
        broken = folder / "frame_0000000201.jpg"  # within 6.0–8.5 s
        broken.write_bytes(broken.read_bytes()[:700])
        assert world.build(tmp_path, ["epic_mir"]) == 0
        rows = [row for row in ledger_of(tmp_path) if row["video_uid"] == "P01_02" and row["set"] == "epic_mir"]
        reasons = [row["detail"].split(" (")[0].split(" at ")[0] for row in sorted(rows, key=lambda row: row["item"])]
        assert reasons == ["frames missing", "", "", "broken image"]
        assert len(samples(tmp_path, "epic_mir", "train")) == len(TIMES)
        for record, mp4 in samples(tmp_path, "epic_mir", "test").values():
            times = [record["media_start"] + i / 30 for i in range(record["num_frames"])]
            assert numbers(io.BytesIO(mp4)) == [round(time * 30) for time in times]
        assert not list((tmp_path / "work").rglob("*.links")), "temporary links are deleted"

    def test_folders_that_are_not_videos_fail_with_the_reason(self, tmp_path: Path) -> None:
        world = BenchmarkWorld(tmp_path / "in")
        write_epic(world.root, "test", ["empty", "mixed", "unknown", "whole"])
        write_epic(world.root, "train", ["sound2"])
        text = (world.root / "epic_test.csv").read_text().splitlines()
        table = [line if not line.startswith("unknown") else line.replace(",cut", "9,cut") for line in text]
        (world.root / "epic_test.csv").write_text("\n".join(table) + "\n")
        (world.videos / "empty").mkdir(parents=True)
        write_frames(world.videos / "mixed", 3)
        (world.videos / "mixed" / "other_01.jpg").write_bytes(b"")
        write_frames(world.videos / "unknown", 3)
        write_frames(world.videos / "whole", 9 * 60)
        write_frames(world.videos / "sound2", 9 * 60)
        assert world.build(tmp_path, ["epic_mir"]) == 0
        why = {row["item"]: row["detail"] for row in ledger_of(tmp_path) if row["set"] == "videos"}
        assert "without numbered frames such as frame_0000000001.jpg" in why["empty"]
        assert "2 different file name patterns" in why["mixed"]
        assert "set videos.frames_fps" in why["unknown"]
        assert why["whole"] == ""


def pixels(mp4: bytes) -> np.ndarray:
    """Return all frames (N, H, W, C)."""
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
