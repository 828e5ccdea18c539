"""Builds of a whole dataset, run as a user runs them: output, ledger, resuming, appending and refused requests."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from preprocessing.build_shards import main
from shards.dataset import open_dataset, read_member
from shards.verify.__main__ import main as verify
from tests.preprocessing.coded_video import numbers, steady, write_video
from tests.preprocessing.world import World, files_of, ledger_of

pytestmark = pytest.mark.medium


def samples(output: Path) -> list[tuple[str, dict, bytes]]:
    """Return set, record and mp4 of every sample."""
    result = []
    dataset = open_dataset(output / "shards")
    for set_name, _, split in dataset.splits():
        for shard in split.shards:
            for row in shard.rows().to_pylist():
                record = json.loads(read_member(shard.path, row["json_offset"], row["json_size"]))
                result.append((set_name, record, read_member(shard.path, row["mp4_offset"], row["mp4_size"])))
    return result


def test_verify_finds_no_fault(built: Path) -> None:
    assert verify([str(built / "shards")]) == 0


def test_every_stored_frame_shows_the_source_at_its_time(world: World, built: Path) -> None:
    checked = 0
    for _, record, mp4 in samples(built):
        shown = numbers(io.BytesIO(mp4))
        assert len(shown) == record["num_frames"]
        rate = 30 if record["video_uid"] != "odd.id ü" else 30000 / 1001
        for i, number in enumerate(shown):
            time_of_frame = record["media_start"] + i / record["fps"]
            if rate == 30:
                assert number == round(time_of_frame * 30)
            else:
                assert abs(number / rate - time_of_frame) <= 1 / rate
            checked += 1
        first, last = record["first_frame"], record["first_frame"] + record["clip_frames"] - 1
        starts = record["media_start"] + first / record["fps"]
        ends = record["media_start"] + (last + 1) / record["fps"]
        assert starts <= record["clip_start"] + 1e-6 < starts + 1 / record["fps"]
        assert ends - 1 / record["fps"] < record["clip_end"] + 1e-6 <= ends + 2e-6
    assert checked > 500


def test_every_input_item_has_one_ledger_row(world: World, built: Path) -> None:
    rows = ledger_of(built)
    status = {(row["set"], row["item"]): (row["status"], row["reason"]) for row in rows}
    assert len(status) == len(rows) == len(world.clips) + len(world.summaries) + len(world.durations)
    assert status["videos", "absent"] == ("failed", "missing")
    assert status["videos", "nonsense"] == ("failed", "unreadable")
    late = [row for row in rows if row["reason"] == "past the end of the video"]
    assert len(late) == 4 and all(row["status"] == "failed" for row in late)
    (damaged,) = [row for row in rows if row["reason"] == "damaged source" and row["set"] == "clips"]
    assert damaged["video_uid"] == "broken" and " s" in damaged["detail"]
    nonsense = next(row for row in rows if row["video_uid"] == "nonsense" and row["set"] == "clips")
    assert "Invalid data" in nonsense["detail"]


def test_spans_cover_every_second_of_every_source(world: World, built: Path) -> None:
    spans = pq.read_table(built / "shards" / "spans.parquet").to_pylist()
    for uid, seconds in world.durations.items():
        own = [span for span in spans if span["video_uid"] == uid]
        assert own[0]["start"] == 0 and own[-1]["end"] == pytest.approx(seconds, abs=0.1), uid
        assert all(a["end"] == b["start"] for a, b in itertools.pairwise(own))
    assert {span["reason"] for span in spans if span["video_uid"] == "absent"} != {""}
    assert any(span["status"] == "failed" for span in spans if span["video_uid"] == "broken")
    assert any(span["status"] == "packed" for span in spans if span["video_uid"] == "broken")


def test_summaries_of_equal_text_keep_their_own_narrations(world: World, built: Path) -> None:
    summaries = [record for name, record, _ in samples(built) if name == "summaries"]
    tea = [record for record in summaries if record["text"] == "#Summary C prepared tea"]
    assert len(tea) >= 3
    for record in summaries:
        expected = [
            row["clip_text"]
            for row in sorted(world.clips, key=lambda row: (row["clip_start"], row["narration_ind"]))
            if row["video_uid"] == record["video_uid"]
            and row["clip_start"] >= record["clip_start"]
            and row["clip_end"] <= record["clip_end"]
        ]
        assert [narration["text"] for narration in record["narrations"]] == expected
    assert any(not record["narrations"] for record in summaries)


def test_a_segment_is_in_one_shard(built: Path) -> None:
    split = open_dataset(built / "shards").split("clips", "train")
    rows = split.rows(["segment"]).to_pylist()
    shards: dict[str, set[str]] = {}
    for row in rows:
        shards.setdefault(row["segment"], set()).add(row["shard"])
    assert len(split.shards) > 1 and all(len(where) == 1 for where in shards.values())


@pytest.mark.parametrize("overrides", [["dask.workers=1"], ["chunk.keep=false"]])
def test_workers_and_chunk_deletion_do_not_change_the_bytes(
    overrides: list[str], world: World, built: Path, tmp_path: Path
) -> None:
    done = world.build(tmp_path, *overrides)
    assert done.returncode == 0, done.stderr
    ours, theirs = files_of(tmp_path / "shards"), files_of(built / "shards")
    kept_differs = {"dataset.json"} if "chunk.keep=false" in overrides else set()  # it records the configuration
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= kept_differs
    left = list((tmp_path / "work" / "chunks").rglob("*.mp4"))
    assert bool(left) != ("chunk.keep=false" in overrides)


def test_a_second_run_has_nothing_to_do(world: World, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "o", copy_function=shutil.copy2)
    before = files_of(tmp_path / "o" / "shards")
    done = world.build(tmp_path / "o")
    assert done.returncode == 0 and "nothing to build" in done.stdout, done.stdout + done.stderr
    assert files_of(tmp_path / "o" / "shards") == before


def test_a_build_on_an_existing_cluster_gives_the_same_bytes(world: World, built: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        done = world.build(tmp_path, f"dask.cluster={cluster.scheduler_address}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_of(tmp_path / "shards") == files_of(built / "shards")


def test_ctrl_c_stops_cleanly_and_the_next_run_resumes(world: World, built: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(world.arguments(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "work" / "chunks").rglob("*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130 and "again to resume" in messages and "Traceback" not in messages, messages
    assert world.build(tmp_path).returncode == 0
    assert files_of(tmp_path / "shards") == files_of(built / "shards")


def test_two_builds_never_use_one_folder_at_a_time(world: World, tmp_path: Path) -> None:
    first = subprocess.Popen(world.arguments(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "work" / "config.yaml").exists():
            assert first.poll() is None
            time.sleep(0.02)
        second = world.build(tmp_path)
        assert first.poll() is None, "the first build ended before the second one was refused"
    finally:
        first.send_signal(signal.SIGINT)
        first.wait(60)
    assert second.returncode == 2 and "another build is using this folder" in second.stderr


def test_dry_run_reports_work_and_cost_and_writes_nothing(world: World, tmp_path: Path) -> None:
    done = world.build(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    for expected in ("5 of 6", "missing", "absent", "core-hours", "bytes in work", "shards"):
        assert expected in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_limited_build_can_be_completed_later(world: World, built: Path, tmp_path: Path) -> None:
    assert world.build(tmp_path, "videos.limit=2").returncode == 0
    first = files_of(tmp_path / "shards")
    reasons = {row["reason"] for row in ledger_of(tmp_path) if row["status"] == "filtered"}
    assert "beyond videos.limit" in reasons
    done = world.build(tmp_path)
    assert done.returncode == 0, done.stderr
    second = files_of(tmp_path / "shards")
    assert all(second[name] == data for name, data in first.items() if name.endswith(".tar"))
    packed = {row["key"] for row in ledger_of(tmp_path) if row["status"] == "packed" and row["set"] != "videos"}
    assert packed == {row["key"] for row in ledger_of(built) if row["status"] == "packed" and row["set"] != "videos"}
    assert verify([str(tmp_path / "shards")]) == 0


def test_repaired_and_added_items_are_appended_in_new_shards(world: World, built: Path, tmp_path: Path) -> None:
    world = world.copy(tmp_path / "in")
    for name in ("shards", "work"):
        shutil.copytree(built / name, tmp_path / name, copy_function=shutil.copy2)
    first = files_of(tmp_path / "shards")
    write_video(world.videos / "absent.mp4", steady(9))  # was missing: built without `retry`
    write_video(world.videos / "nonsense.mp4", steady(9))  # was unreadable: built with `retry` only
    added = world.clip("plain", 9.0, 10.0, "does one thing more")
    world.write()
    assert world.build(tmp_path).returncode == 0
    status = {row["item"]: row["status"] for row in ledger_of(tmp_path)}
    assert status[added] == status["absent"] == "packed" and status["nonsense"] == "failed"
    second = files_of(tmp_path / "shards")
    done = world.build(tmp_path, "retry=failed")
    assert done.returncode == 0, done.stderr
    third = files_of(tmp_path / "shards")
    assert {row["item"]: row["status"] for row in ledger_of(tmp_path)}["nonsense"] == "packed"
    tars = [sum(name.endswith(".tar") for name in files) for files in (first, second, third)]
    assert tars[0] < tars[1] < tars[2]
    for before, after in ((first, second), (second, third)):
        assert all(after[name] == data for name, data in before.items() if name.endswith((".tar", "_stats.json")))
    assert verify([str(tmp_path / "shards")]) == 0


def test_a_different_format_is_refused_with_both_values(world: World, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "o", copy_function=shutil.copy2)
    done = world.build(tmp_path / "o", "chunk.crf=30")
    assert done.returncode == 2
    assert "chunk.crf" in done.stderr and "23" in done.stderr and "30" in done.stderr


def test_a_different_plan_for_an_unfinished_build_is_refused(world: World, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "o", copy_function=shutil.copy2)
    (tmp_path / "o" / "shards" / "dataset.json").unlink()  # as if killed before publishing
    (tmp_path / "o" / "shards" / "clips" / "train" / "00001_stats.json").unlink()  # and while writing a shard
    done = world.build(tmp_path / "o", "shard.max_samples=5")
    assert done.returncode == 2 and "different plan" in done.stderr
    assert world.build(tmp_path / "o").returncode == 0
    assert files_of(tmp_path / "o" / "shards") == files_of(built / "shards")


def test_excluded_videos_are_filtered(world: World, tmp_path: Path) -> None:
    (tmp_path / "used.txt").write_text("plain\n")
    done = world.build(tmp_path, f"annotations.exclude=[{tmp_path / 'used.txt'}]")
    assert done.returncode == 0, done.stderr
    assert {row["status"] for row in ledger_of(tmp_path) if row["video_uid"] == "plain"} == {"filtered"}
    assert open_dataset(tmp_path / "shards").provenance["excluded_videos"] == 1


def test_too_many_failures_have_their_own_exit_code(world: World, tmp_path: Path) -> None:
    done = world.build(tmp_path, "max_failed_fraction=0.05")
    assert done.returncode == 3 and "max_failed_fraction" in done.stderr
    assert not (tmp_path / "shards" / "dataset.json").exists()
    relaxed = world.build(tmp_path, "max_failed_fraction=0.9")
    assert relaxed.returncode == 0, relaxed.stderr


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["chunk.fsp=10"], "did you mean chunk.fps"),
        (["chunk.fps=7"], "multiple of chunk.summary_fps"),
        (["videos.root=/nowhere"], "there is no such folder"),
        (["videos.root=/odd[/name]"], "/odd[/name]"),
        (["annotations.egoclip=/nowhere.csv"], "/nowhere.csv"),
        (["dask.cluster=cloud"], "local, slurm or an address"),
        (["ffmpeg=/nowhere/ffmpeg"], "not an executable"),
        (["--config=/nowhere.yaml"], "no such configuration file"),
    ],
)
def test_an_invalid_request_is_refused_with_the_remedy(
    overrides: list[str], expected: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(world.options(tmp_path, overrides)) == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message
    assert not (tmp_path / "shards").exists()


def test_a_full_disk_stops_the_build_and_fails_no_video(world: World, tmp_path: Path, small_disk: Path) -> None:
    done = world.build(tmp_path, f"work={small_disk / 'work'}")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "No space left" in done.stderr and "again" in done.stderr
    sidecars = [json.loads(path.read_bytes()) for path in small_disk.rglob("0*.json")]
    assert all(not damage["reason"].startswith("ffmpeg failed") for s in sidecars for damage in s["damage"])
    resumed = world.build(tmp_path, f"work={tmp_path / 'roomy'}")
    assert resumed.returncode == 0, resumed.stderr
    assert verify([str(tmp_path / "shards")]) == 0


def test_a_folder_that_cannot_be_written_is_named(world: World, tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = world.build(tmp_path, f"output={small_disk / 'shards'}")
    assert done.returncode == 4 and str(small_disk) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
