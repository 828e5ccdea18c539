"""The writer gives the same bytes for the same samples, refuses what is not legal, and leaves no half a shard."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shards import schema
from shards.index import ShardError, ShardStats, finish_split, is_done, require_toolchain, write_dataset
from shards.writer import FailedItem, ShardWriter, filled_first
from tests.shards import samples


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_two_runs_give_the_same_bytes_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.make_dataset(tmp_path / "one")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    previous = os.umask(0o077)
    try:
        samples.make_dataset(tmp_path / "two")
    finally:
        os.umask(previous)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_members_stand_in_order_with_fixed_owner_mode_and_time(tmp_path: Path) -> None:
    made = [samples.clip(i) for i in range(3)]
    samples.write_shard(tmp_path, made)
    with tarfile.open(tmp_path / "clips/train/00000.tar") as tar:
        infos = tar.getmembers()
    assert [info.name for info in infos] == [f"{s.key}.{ext}" for s in made for ext in schema.MEMBERS]
    assert {(i.mtime, i.uid, i.gid, i.mode, i.uname, i.type, bool(i.pax_headers)) for i in infos} == {
        (0, 0, 0, 0o644, "", tarfile.REGTYPE, False)
    }


def test_json_is_canonical_and_txt_is_its_text(tmp_path: Path) -> None:
    made = [samples.clip(i) for i in range(4)]
    samples.write_shard(tmp_path, made)
    with tarfile.open(tmp_path / "clips/train/00000.tar") as tar:
        for sample in made:
            raw = tar.extractfile(f"{sample.key}.json").read()  # type: ignore[union-attr]
            text = tar.extractfile(f"{sample.key}.txt").read()  # type: ignore[union-attr]
            value = json.loads(raw)
            assert schema.from_json("clips", value) == sample.record
            assert list(value) == list(schema.ClipRecord.__dataclass_fields__)
            assert text.decode() == sample.record.text
            assert raw == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def test_the_parquet_places_every_member(tmp_path: Path) -> None:
    made = [samples.clip(i) for i in range(3)]
    samples.write_shard(tmp_path, made)
    data = (tmp_path / "clips/train/00000.tar").read_bytes()
    rows = pq.read_table(tmp_path / "clips/train/00000.parquet").to_pylist()
    for sample, row in zip(made, rows, strict=True):
        at = {ext: data[row[f"{ext}_offset"] :][: row[f"{ext}_size"]] for ext in schema.MEMBERS}
        assert (at["jpg"], at["mp4"], at["txt"].decode()) == (sample.jpg, sample.mp4, sample.record.text)
        assert at["json"] == schema.to_bytes(sample.record)
        assert {name: row[name] for name in schema.scalar_fields("clips")} == {
            name: getattr(sample.record, name) for name in schema.scalar_fields("clips")
        }


def test_stats_say_what_was_written_and_nothing_of_time_or_host(tmp_path: Path) -> None:
    failed = [FailedItem(key=f"lost_c1_{i}", reason="decode_error", detail="") for i in (2, 1)]
    stats = samples.write_shard(tmp_path, [samples.clip(i) for i in range(3)], failed=failed)
    path = tmp_path / "clips/train/00000_stats.json"
    assert ShardStats.read(path) == stats
    assert [item.key for item in stats.failed] == ["lost_c1_1", "lost_c1_2"]
    assert set(json.loads(path.read_text())) == {
        "schema_version", "shard", "samples", "bytes", "sha256", "parquet_sha256", "parquet_writer", "member_bytes",
        "failed", "toolchain",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (replace(samples.clip(1), key="a.b"), "a key is 1 to 90"),
        (replace(samples.clip(1), key="../../etc/passwd"), "a key is 1 to 90"),
        (samples.clip(0), "of this key is in the shard already"),
        (samples.clip(1, clip_start=12), "clip_start: float is expected, not 12 (int)"),
        (samples.clip(1, fps=float("nan")), "fps: a finite number is expected"),
        (samples.clip(1, text="\ud800"), "lone surrogate"),
        (samples.clip(1, clip_frames=9), "do not lie within num_frames 8"),
        (replace(samples.clip(1), mp4=b""), "jpg or mp4 is not what its name says"),
    ],
)
def test_what_is_not_legal_is_refused_and_named(tmp_path: Path, sample: schema.Sample, message: str) -> None:
    with ShardWriter(tmp_path, "clips", "train", 0, toolchain={}) as writer:
        writer.add(samples.clip(0))
        with pytest.raises(ValueError, match=r"clips/train/00000\.tar") as caught:
            writer.add(sample)
    assert message in str(caught.value)
    assert sample.key in str(caught.value)


def test_left_by_an_exception_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "clips", "train", 0, toolchain={}) as writer:
        writer.add(samples.clip(0, tags=()))
        writer.add(samples.clip(1))
        raise RuntimeError
    assert tree(tmp_path) == {}


def test_a_published_shard_is_never_rewritten(tmp_path: Path) -> None:
    samples.write_shard(tmp_path, [samples.clip(0)])
    before = tree(tmp_path)
    with pytest.raises(ShardError, match="published"):
        samples.write_shard(tmp_path, [samples.clip(1)])
    assert tree(tmp_path) == before


def test_two_writers_of_one_shard_agree_or_one_of_them_says_so(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path, "clips", "train", 0, toolchain=samples.TOOLCHAIN) as same,
        ShardWriter(tmp_path, "clips", "train", 0, toolchain=samples.TOOLCHAIN) as other,
    ):
        same.add(samples.clip(0))
        other.add(samples.clip(1))
        stats = samples.write_shard(tmp_path, [samples.clip(0)])
        assert same.finish() == stats
        with pytest.raises(ShardError, match="different inputs or toolchains"):
            other.finish()


def test_the_first_sample_has_every_list_filled_and_the_others_keep_their_order(tmp_path: Path) -> None:
    narrated = [samples.clip(5)]
    made = [samples.summary(0), samples.summary(1), samples.summary(2, narrations=narrated), samples.summary(3)]
    samples.write_shard(tmp_path, made, set_name="summaries")
    keys = pq.read_table(tmp_path / "summaries/train/00000.parquet")["key"].to_pylist()
    assert keys == [made[2].key, made[0].key, made[1].key, made[3].key]
    assert filled_first(made, lambda sample: sample.record) == [made[2], made[0], made[1], made[3]]
    assert filled_first(made[:2], lambda sample: sample.record) == made[:2]


def test_without_any_filled_sample_the_order_is_the_callers(tmp_path: Path) -> None:
    made = [samples.clip(i, tags=()) for i in range(3)]
    samples.write_shard(tmp_path, made)
    assert pq.read_table(tmp_path / "clips/train/00000.parquet")["key"].to_pylist() == [s.key for s in made]


def test_a_shard_of_failures_is_its_stats_alone(tmp_path: Path) -> None:
    stats = samples.write_shard(tmp_path, [], failed=[FailedItem(key="lost_c1_0", reason="gone", detail="")])
    assert (stats.samples, stats.bytes, stats.sha256) == (0, 0, "")
    assert list(tree(tmp_path)) == ["clips/train/00000_stats.json"]
    assert is_done(tmp_path, "clips", "train", 0)
    samples.write_shard(tmp_path, [samples.clip(0)], number=1)
    finish_split(tmp_path, "clips", "train")
    assert json.loads((tmp_path / "clips/train/sizes.json").read_text()) == {"00001.tar": 1}


def test_a_shard_is_streamed_withheld_samples_too(tmp_path: Path) -> None:
    big = b"\0\0\0\x18ftyp" + bytes(4 << 20)
    tracemalloc.start()
    with ShardWriter(tmp_path, "clips", "train", 0, toolchain={}) as writer:
        for index in range(30):
            writer.add(replace(samples.clip(index, tags=() if index < 20 else (1,)), mp4=big))
        stats = writer.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stats.bytes > 30 * len(big)
    assert peak < 6 * len(big)


def test_what_is_there_is_not_taken_for_whole_without_the_rest(tmp_path: Path) -> None:
    samples.write_shard(tmp_path, [samples.clip(0)])
    whole = tree(tmp_path)
    for name in whole:
        (tmp_path / name).unlink()
        assert not is_done(tmp_path, "clips", "train", 0), name
        if not name.endswith("_stats.json"):
            with pytest.raises(ShardError, match="run the build again"):
                finish_split(tmp_path, "clips", "train")
        samples.write_shard(tmp_path, [samples.clip(0)])
        assert tree(tmp_path) == whole


def test_a_grown_folder_gets_new_indexes_and_keeps_its_tars(tmp_path: Path) -> None:
    before = samples.make_dataset(tmp_path)
    tars = {path: path.read_bytes() for path in tmp_path.rglob("*.tar")}
    samples.write_shard(tmp_path, [samples.clip(0, video="added")], number=7)
    arguments = {"config": before.config, "toolchain": before.toolchain, "provenance": before.provenance}
    after = write_dataset(tmp_path, **arguments)
    assert {path: path.read_bytes() for path in tars} == tars
    train = after.sets["clips"]["train"]
    assert [shard.name for shard in train.shards] == ["00000.tar", "00002.tar", "00007.tar"]
    assert list(json.loads((tmp_path / "clips/train/sizes.json").read_text())) == [s.name for s in train.shards]
    assert train.fingerprint != before.sets["clips"]["train"].fingerprint
    assert after.sets["summaries"] == before.sets["summaries"], "growing one set changes no other's order"


def test_shards_of_two_toolchains_are_refused_with_both_values(tmp_path: Path) -> None:
    samples.make_dataset(tmp_path)
    newer = {**samples.TOOLCHAIN, "x264": "166"}
    with pytest.raises(ShardError, match=r"x264 165; now: x264 166"):
        require_toolchain(tmp_path, newer)
    samples.write_shard(tmp_path, [samples.clip(0, video="added")], number=7, toolchain=newer)
    with pytest.raises(ShardError, match=r"clips/train/00007.tar was made by .*: x264 166; now: x264 165"):
        write_dataset(tmp_path, config={}, toolchain=samples.TOOLCHAIN, provenance={})


def test_a_key_that_is_in_two_shards_is_refused(tmp_path: Path) -> None:
    samples.write_shard(tmp_path, [samples.clip(0)])
    samples.write_shard(tmp_path, [samples.clip(0)], split="val")
    with pytest.raises(ShardError, match=samples.clip(0).key):
        write_dataset(tmp_path, config={}, toolchain=samples.TOOLCHAIN, provenance={})


_KILLED = """
import sys
from pathlib import Path
from tests.shards import samples
made = [samples.clip(i, tags=() if i < 3 else (1,)) for i in range(12)]
print("begin", flush=True)
for number in range(40):
    samples.write_shard(Path(sys.argv[1]), made, number=number)
"""


def test_kill_9_at_any_moment_leaves_whole_shards_or_none_and_the_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    made = [samples.clip(i, tags=() if i < 3 else (1,)) for i in range(12)]
    reference = tmp_path / "reference"
    samples.write_shard(reference, made)
    expected = tree(reference)
    rng = random.Random(0)
    for attempt in range(8):
        root = tmp_path / f"killed{attempt}"
        process = subprocess.Popen([sys.executable, "-c", _KILLED, root], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for number in range(40):
            if is_done(root, "clips", "train", number):
                part = {name: (root / name.replace("00000", f"{number:05d}")).read_bytes() for name in expected}
                stats = part.pop("clips/train/00000_stats.json").replace(f"{number:05d}.tar".encode(), b"00000.tar")
                assert {**part, "clips/train/00000_stats.json": stats} == expected
        finish_split(root, "clips", "train")
        if not is_done(root, "clips", "train", 0):
            samples.write_shard(root, made)
        assert expected.items() <= tree(root).items()


def test_no_room_on_the_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from tests.shards import samples\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "samples.write_shard(Path(sys.argv[1]), [samples.clip(i) for i in range(9)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert tree(tmp_path) == {}
