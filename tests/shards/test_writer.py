"""Equal samples give equal bytes; invalid samples are refused; a killed writer leaves complete shards or none."""

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
from shards.index import finish_split
from shards.stats import FailedItem, ShardError, ShardStats, is_done
from shards.writer import ShardWriter
from tests.shards import samples


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_two_runs_give_equal_bytes_at_any_time_and_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.make_dataset(tmp_path / "one")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    previous = os.umask(0o077)
    try:
        samples.make_dataset(tmp_path / "two")
    finally:
        os.umask(previous)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_members_are_in_order_with_fixed_owner_mode_and_time(tmp_path: Path) -> None:
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
            assert [*value, "extra"] == list(schema.ClipRecord.__dataclass_fields__)  # own captions alone have `extra`
            assert text.decode() == sample.record.text
            assert raw == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def test_the_parquet_locates_every_member(tmp_path: Path) -> None:
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


def test_the_stats_file_describes_the_shard_without_time_or_host(tmp_path: Path) -> None:
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
        (replace(samples.clip(1), key="a.b"), "a key has 1 to 90"),
        (replace(samples.clip(1), key="../../etc/passwd"), "a key has 1 to 90"),
        (samples.clip(0), "already has a sample with this key"),
        (samples.clip(1, clip_start=12), "clip_start: float is expected, not 12 (int)"),
        (samples.clip(1, fps=float("nan")), "fps: a finite number is expected"),
        (samples.clip(1, text="\ud800"), "lone surrogate"),
        (samples.clip(1, clip_frames=9), "exceed the num_frames = 8"),
        (replace(samples.clip(1), mp4=b""), "mp4 is not an MP4 file"),
    ],
)
def test_invalid_samples_are_refused_with_shard_and_key(tmp_path: Path, sample: schema.Sample, message: str) -> None:
    with ShardWriter(tmp_path, "clips", "train", 0, toolchain={}) as writer:
        writer.add(samples.clip(0))
        with pytest.raises(ValueError, match=r"clips/train/00000\.tar") as caught:
            writer.add(sample)
    assert message in str(caught.value)
    assert sample.key in str(caught.value)


def test_an_exception_leaves_no_files(tmp_path: Path) -> None:
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


def test_two_writers_of_one_shard_must_agree(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path, "clips", "train", 0, toolchain=samples.TOOLCHAIN) as same,
        ShardWriter(tmp_path, "clips", "train", 0, toolchain=samples.TOOLCHAIN) as other,
    ):
        same.add(samples.clip(0))
        other.add(samples.clip(1))
        stats = samples.write_shard(tmp_path, [samples.clip(0)])
        assert same.finish() == stats
        with pytest.raises(ShardError, match="inputs or toolchains differ"):
            other.finish()


def test_a_sample_without_empty_lists_comes_first_and_the_others_keep_their_order(tmp_path: Path) -> None:
    narrated = [samples.clip(5)]
    made = [samples.summary(0), samples.summary(1), samples.summary(2, narrations=narrated), samples.summary(3)]
    samples.write_shard(tmp_path, made, set_name="summaries")
    keys = pq.read_table(tmp_path / "summaries/train/00000.parquet")["key"].to_pylist()
    assert keys == [made[2].key, made[0].key, made[1].key, made[3].key]


def test_if_all_samples_have_empty_lists_the_order_is_kept(tmp_path: Path) -> None:
    made = [samples.clip(i, tags=()) for i in range(3)]
    samples.write_shard(tmp_path, made)
    assert pq.read_table(tmp_path / "clips/train/00000.parquet")["key"].to_pylist() == [s.key for s in made]


def test_a_shard_whose_samples_all_failed_has_only_a_stats_file(tmp_path: Path) -> None:
    stats = samples.write_shard(tmp_path, [], failed=[FailedItem(key="lost_c1_0", reason="gone", detail="")])
    assert (stats.samples, stats.bytes, stats.sha256) == (0, 0, "")
    assert list(tree(tmp_path)) == ["clips/train/00000_stats.json"]
    assert is_done(tmp_path, "clips", "train", 0)
    samples.write_shard(tmp_path, [samples.clip(0)], number=1)
    finish_split(tmp_path, "clips", "train")
    assert json.loads((tmp_path / "clips/train/sizes.json").read_text()) == {"00001.tar": 1}


def test_memory_is_bounded_even_when_samples_are_withheld(tmp_path: Path) -> None:
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


_KILLED = """
import sys
from pathlib import Path
from tests.shards import samples
made = [samples.clip(i, tags=() if i < 3 else (1,)) for i in range(12)]
print("begin", flush=True)
for number in range(40):
    samples.write_shard(Path(sys.argv[1]), made, number=number)
"""


def test_sigkill_at_any_time_leaves_complete_shards_or_none_and_a_rerun_gives_equal_bytes(tmp_path: Path) -> None:
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


def test_a_full_disk_is_an_error_and_leaves_no_files(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from tests.shards import samples\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "samples.write_shard(Path(sys.argv[1]), [samples.clip(i) for i in range(9)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert tree(tmp_path) == {}
