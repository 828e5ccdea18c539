"""Verification finds every kind of damage and names it; what is sound it calls sound."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import files, schema, tar
from shards.dataset import hash_file, hash_json
from shards.index import ShardStats, finish_split, write_dataset
from shards.verify.__main__ import main
from shards.verify.run import verify
from shards.verify.shard import Finding, ShardJob, ShardReport, check_shard
from tests.shards import samples

TAR = "clips/train/00000.tar"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    samples.make_dataset(root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "shards")


def found(root: Path) -> list[Finding]:
    return list(verify(root).findings)


def told(root: Path) -> str:
    return "\n".join(f"{finding.file} [{finding.key}] {finding.what}" for finding in found(root))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def rehash(root: Path, name: str = TAR) -> None:
    """Make stats and dataset.json agree with a tar and its parquet again, as whoever forges a shard would."""
    tar_path, stats_path = root / name, root / name.replace(".tar", "_stats.json")
    stats = json.loads(stats_path.read_text())
    stats["bytes"], stats["sha256"] = tar_path.stat().st_size, hash_file(tar_path)
    stats["parquet_sha256"] = hash_file(tar_path.with_suffix(".parquet"))
    files.write_json(stats_path, stats)
    set_name, split, _ = name.split("/")
    finish_split(root, set_name, split)
    manifest = json.loads((root / "dataset.json").read_text())
    arguments = {key: manifest[key] for key in ("config", "toolchain", "provenance")}
    write_dataset(root, **arguments)


Members = list[tuple[str, bytes]]


def rewrite(path: Path, change: Callable[[Members], object]) -> None:
    """Rewrite a tar in the writer's own form, hashes left as they were."""
    with tarfile.open(path) as old:
        members = [(info.name, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
    change(members)
    data = b""
    for name, content in members:
        data += tar.header(name, len(content)) + content + bytes(-len(content) % tar.BLOCK)
    path.write_bytes(data + tar.end(len(data)))


def forge(root: Path, **changes: Any) -> None:
    """Rewrite shard 0 with the writer, its first sample changed after all checks: every hash is right, it lies."""
    made = [samples.clip(1, tags=(1, 2)), samples.clip(0, tags=())]
    for path in (root / "clips" / "train").glob("00000*"):
        path.unlink()
    sample = replace(made[0], **{name: value for name, value in changes.items() if name in ("jpg", "mp4")})
    fields = {name: value for name, value in changes.items() if name not in ("jpg", "mp4")}
    samples.write_shard(root, [replace(sample, record=replace(sample.record, **fields)), made[1]])
    rehash(root)
    (root / "ledger.parquet").unlink()
    samples.write_ledger(root, failed={"clips": list(ShardStats.read(root / "clips/train/00001_stats.json").failed)})
    rehash(root)


def test_what_the_writer_writes_is_sound(pristine: Path) -> None:
    report = verify(pristine)
    assert report.findings == ()
    assert (report.shards, report.samples, report.frames) == (6, 15, 120)


def test_no_file_can_lose_a_bit_unseen(pristine: Path, root: Path) -> None:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert len(names) == 28
    for name in names:
        size = (root / name).stat().st_size
        for at in (0, size // 3, size - 1):
            flip(root / name, at)
            findings = found(root)
            assert any(finding.file == name for finding in findings), (name, at, findings)
            assert all(finding.what and finding.mend for finding in findings)
            shutil.copy(pristine / name, root / name)
    assert found(root) == []


@pytest.mark.parametrize("keep", [0, 100, 512, 5000, 20480, 30719])
def test_a_truncated_tar(root: Path, keep: int) -> None:
    os.truncate(root / TAR, keep)
    text = told(root)
    assert f"{TAR} [] {keep} bytes; its stats say 30720" in text
    assert "the file ends within" in text or "does not close" in text


@pytest.mark.parametrize("ext", schema.MEMBERS)
def test_a_missing_member(root: Path, ext: str) -> None:
    rewrite(root / TAR, lambda members: members.pop(4 + schema.MEMBERS.index(ext)))
    left = ", ".join(other for other in schema.MEMBERS if other != ext)
    assert f"{TAR} [video-a_c1_000000] its members are {left};" in told(root)


def test_swapped_members(root: Path) -> None:
    rewrite(root / TAR, lambda members: members.insert(4, members.pop(6)))
    assert "its members are mp4, jpg, json, txt; jpg, json, mp4, txt is expected" in told(root)


def test_samples_of_which_two_exchanged_their_videos(root: Path) -> None:
    def exchange(members: Members) -> None:
        members[2], members[6] = (members[2][0], members[6][1]), (members[6][0], members[2][1])

    rewrite(root / TAR, exchange)
    assert f"{TAR} [] the sha256" in told(root)


def test_a_stale_index(root: Path) -> None:
    samples.write_shard(root, [samples.clip(0, video="added")], number=7)
    text = told(root)
    assert "clips/train/sizes.json [] stale" in text
    assert "clips/train/shardindex.json [] stale" in text
    assert "dataset.json [] clips/train/00007.tar: listed as nothing" in text
    assert "ledger.parquet [added_c1_000000] the sample in clips/train/00007.tar has no packed row" in text


def test_an_altered_offset_in_the_parquet(root: Path) -> None:
    path = root / "clips/train/00000.parquet"
    table = pq.read_table(path)
    wrong = pa.array([value + 512 * (row == 2) for row, value in enumerate(table["mp4_offset"].to_pylist())])
    table = table.set_column(table.column_names.index("mp4_offset"), "mp4_offset", wrong)
    pq.write_table(table, path, store_schema=False)
    rehash(root)
    assert [(f.file, f.key, f.what.split(";")[0]) for f in found(root)] == [
        ("clips/train/00000.parquet", "video-a_c1_000002", f"row 2: mp4_offset is {wrong[2].as_py()}")
    ]


def test_a_parquet_with_other_columns(root: Path) -> None:
    path = root / "clips/train/00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["text"]), path)
    assert "00000.parquet [] clips/train/00000.parquet: the columns are" in told(root)


def test_a_lost_and_a_doubled_row_of_the_ledger(root: Path) -> None:
    table = pq.read_table(root / "ledger.parquet")
    keys = table["key"].to_pylist()
    kept = [i for i, key in enumerate(keys) if key not in ("video-a_c1_000002", "lost_c1_000000")]
    table = table.take(kept)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), root / "ledger.parquet")
    text = told(root)
    assert "ledger.parquet [video-a_c1_000002] the sample in clips/train/00000.tar has no packed row" in text
    assert "ledger.parquet [lost_c1_000000] it failed in clips/train/00000.tar, and has no row" in text
    assert f"ledger.parquet [{keys[0]}] 2 packed rows for one sample" in text


def test_a_packed_row_without_a_sample(root: Path) -> None:
    table = pq.read_table(root / "ledger.parquet").to_pylist()
    table[0]["key"] = "nobody_c1_000000"
    pq.write_table(pa.Table.from_pylist(table), root / "ledger.parquet")
    assert "[nobody_c1_000000] a packed row names clips/train/00000.tar, where no such sample is" in told(root)


def test_spans_with_a_gap_and_an_unknown_status(root: Path) -> None:
    rows = pq.read_table(root / "spans.parquet").to_pylist()
    rows[1]["start"], rows[1]["status"] = 41.0, "lost"
    pq.write_table(pa.Table.from_pylist(rows), root / "spans.parquet")
    text = told(root)
    assert "spans.parquet [video-a] the status 'lost'" in text
    assert "a span 41.0–60.0 s where one from 40.0 s is expected" in text


def test_tables_of_wrong_types_or_with_nulls(root: Path) -> None:
    for name, column in (("ledger.parquet", "key"), ("spans.parquet", "start")):
        rows = pq.read_table(root / name).to_pylist()
        rows[0][column] = None
        pq.write_table(pa.Table.from_pylist(rows), root / name)
        assert f"{name} [] there is no column {column} of" in told(root)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_frames": 20}, "mp4: the video has 8 frames, num_frames is 20"),
        ({"num_frames": 7, "clip_frames": 6}, "mp4: the video has more than 7 frames, num_frames is 7"),
        ({"fps": 12.0}, "mp4: the frame rate is 10/s, the record says 12"),
        ({"width": 66}, "mp4: the video is 64×48, the record says 66×48"),
        ({"height": 50}, "jpg: the picture is 64×48, the record says 64×50"),
        ({"segment": "video-a_7"}, "json: segment is 'video-a_7'; 'video-a_0' follows"),
        ({"jpg": samples.make_jpg()[:200]}, "jpg: the picture cannot be decoded"),
        ({"mp4": samples.make_mp4()[:900]}, "mp4: the video cannot be decoded"),
        ({"mp4": samples.make_mp4(audio=True)}, "mp4: the streams are video, audio"),
        ({"mp4": samples.make_mp4(pix_fmt="yuv444p")}, "mp4: the video is h264, yuv444p"),
        ({"mp4": samples.make_mp4(codec="mpeg4")}, "mp4: the video is mpeg4, yuv420p"),
        ({"mp4": samples.make_mp4(gap=True)}, "mp4: the frame rate is not constant"),
        ({"mp4": samples.make_mp4(headless=True)}, "mp4: the first frame is not a key frame"),
    ],
)
def test_a_sample_that_lies(root: Path, changes: dict[str, Any], what: str) -> None:
    forge(root, **changes)
    findings = found(root)
    assert any(f.file == TAR and f.key == "video-a_c1_000001" and f.what.startswith(what) for f in findings), findings
    assert {finding.file for finding in findings} == {TAR}


@pytest.mark.parametrize("name", ["../../escaped.jpg", "/etc/escaped.jpg", "a/b.jpg", "video-a_c1_000000.pyd", "x.JPG"])
def test_names_that_are_paths_or_not_ours(root: Path, tmp_path: Path, name: str) -> None:
    def rename(members: Members) -> None:
        members[4] = (name, members[4][1])

    rewrite(root / TAR, rename)
    rehash(root)
    assert f"{name!r} is no legal member name" in told(root)
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_plain_files(root: Path, kind: bytes) -> None:
    data = bytearray((root / TAR).read_bytes())
    info = tarfile.TarInfo("video-a_c1_000001.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    data[:512] = info.tobuf(tarfile.USTAR_FORMAT)
    (root / TAR).write_bytes(data)
    rehash(root)
    text = told(root)
    assert "is not that of a plain file" in text or "'video-a_c1_000001.jpg/' is no legal member name" in text


def test_members_too_big_to_hold_are_named_and_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tar.MAX_MEMBER, "json", 100)
    assert "more than the 100 that are read" in told(root)


def test_json_that_is_deep_huge_or_of_other_fields(root: Path) -> None:
    for data, what in ((b"[" * 100_000, "json: "), (b'{"a":1}', "missing fields"), (b"\xff", "json: ")):

        def change(members: Members, data: bytes = data) -> None:
            members[1] = (members[1][0], data)

        rewrite(root / TAR, change)
        assert what in told(root)


def test_files_that_have_no_place_are_named(root: Path) -> None:
    folder = root / "clips" / "train"
    (folder / "notes.txt").write_text("x")
    (folder / ".tmp-1-00009.tar").write_text("x")
    (folder / "00009.tar").write_bytes(bytes(10240))
    (folder / "00002.parquet").unlink()
    (folder / "00000.tar").unlink()
    (root / "clips" / "extra").mkdir()
    text = told(root)
    assert "clips/train/notes.txt [] an unexpected file" in text
    assert "clips/train/.tmp-1-00009.tar [] left by a writer that was killed" in text
    assert "clips/train/00009.tar [] the shard has no stats file: it is unfinished" in text
    assert "clips/train/00002.parquet [] absent; its stats speak of 4 samples" in text
    assert "clips/train/00000.tar [] absent; its stats speak of 4 samples" in text
    assert "clips/extra [] it has no place in a set" in text


def test_a_manifest_that_points_outside(root: Path) -> None:
    manifest = json.loads((root / "dataset.json").read_text())
    manifest.pop("sha256")
    manifest["files"]["../../etc/passwd"] = "0" * 64
    files.write_json(root / "dataset.json", {**manifest, "sha256": hash_json(manifest)})
    assert "it lists '../../etc/passwd', which leaves the dataset's folder" in told(root)


def test_without_a_manifest_the_shards_are_checked_all_the_same(root: Path) -> None:
    (root / "dataset.json").unlink()
    flip(root / TAR, 600)
    text = told(root)
    assert "dataset.json [] dataset.json: there is no such file" in text
    assert f"{TAR} [] the sha256" in text


def crash(job: ShardJob) -> ShardReport:
    if job.set_name == "summaries" and job.split == "val":
        os._exit(9)
    return check_shard(job)


def test_a_file_that_brings_its_process_down_is_named_and_the_others_are_checked(root: Path) -> None:
    report = verify(root, workers=2, check=crash)
    assert report.samples == 14
    assert "the process that checked it was killed" in report.findings[-1].what
    assert {finding.file for finding in report.findings if "process" in finding.what} == {"summaries/val/00000.tar"}


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "shards.verify", root, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "sound: 15 samples in 6 shards" in done.stdout) == (0, True), done
    flip(root / TAR, 700)
    assert main([str(root), "--workers", "0", "--json", str(tmp_path / "report.json")]) == 1
    assert f"{TAR}" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert {finding["file"] for finding in report["findings"]} == {TAR}
    for usage in ([str(tmp_path / "nowhere")], [], [str(root), "--workers", "-1"]):
        with pytest.raises(SystemExit) as caught:
            main(usage)
        assert caught.value.code == 2
