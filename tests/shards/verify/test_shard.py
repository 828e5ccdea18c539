"""Damage within a shard is found and named."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import schema, tar
from shards.verify.run import verify
from tests.shards.verify.damage import TAR, Members, findings_text, rehash, rewrite


@pytest.mark.parametrize("keep", [0, 100, 512, 5000, 20480, 30719])
def test_a_truncated_tar(root: Path, keep: int) -> None:
    os.truncate(root / TAR, keep)
    text = findings_text(root)
    assert f"{TAR} [] {keep} bytes; its stats file lists 30720" in text
    assert "the file ends within" in text or "does not end in" in text


@pytest.mark.parametrize("ext", schema.MEMBERS)
def test_a_missing_member(root: Path, ext: str) -> None:
    rewrite(root / TAR, lambda members: members.pop(4 + schema.MEMBERS.index(ext)))
    left = ", ".join(other for other in schema.MEMBERS if other != ext)
    assert f"{TAR} [video-a_c1_000000] the members are {left};" in findings_text(root)


def test_swapped_members(root: Path) -> None:
    rewrite(root / TAR, lambda members: members.insert(4, members.pop(6)))
    assert "the members are mp4, jpg, json, txt; expected jpg, json, mp4, txt" in findings_text(root)


def test_two_samples_with_exchanged_videos(root: Path) -> None:
    def exchange(members: Members) -> None:
        members[2], members[6] = (members[2][0], members[6][1]), (members[6][0], members[2][1])

    rewrite(root / TAR, exchange)
    assert f"{TAR} [] sha256 is" in findings_text(root)


def test_an_altered_offset_in_the_parquet(root: Path) -> None:
    path = root / "clips/train/00000.parquet"
    table = pq.read_table(path)
    wrong = pa.array([value + 512 * (row == 2) for row, value in enumerate(table["mp4_offset"].to_pylist())])
    table = table.set_column(table.column_names.index("mp4_offset"), "mp4_offset", wrong)
    pq.write_table(table, path, store_schema=False)
    rehash(root)
    assert [(f.file, f.key, f.problem.split(";")[0]) for f in verify(root).findings] == [
        ("clips/train/00000.parquet", "video-a_c1_000002", f"row 2: mp4_offset is {wrong[2].as_py()}")
    ]


def test_a_parquet_with_other_columns(root: Path) -> None:
    path = root / "clips/train/00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["text"]), path)
    assert "00000.parquet [] clips/train/00000.parquet: the columns are" in findings_text(root)


@pytest.mark.parametrize("name", ["../../escaped.jpg", "/etc/escaped.jpg", "a/b.jpg", "video-a_c1_000000.pyd", "x.JPG"])
def test_member_names_that_are_paths_or_unknown(root: Path, tmp_path: Path, name: str) -> None:
    def rename(members: Members) -> None:
        members[4] = (name, members[4][1])

    rewrite(root / TAR, rename)
    rehash(root)
    assert f"{name!r} is not a valid member name" in findings_text(root)
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_members_that_are_not_regular_files(root: Path, kind: bytes) -> None:
    data = bytearray((root / TAR).read_bytes())
    info = tarfile.TarInfo("video-a_c1_000001.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    data[:512] = info.tobuf(tarfile.USTAR_FORMAT)
    (root / TAR).write_bytes(data)
    rehash(root)
    text = findings_text(root)
    assert "is not that of a regular file" in text or "'video-a_c1_000001.jpg/' is not a valid member name" in text


def test_members_above_the_size_limit_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tar.MAX_MEMBER, "json", 100)
    assert "; the limit is 100" in findings_text(root)


def test_json_that_is_deeply_nested_malformed_or_has_other_fields(root: Path) -> None:
    for data, problem in ((b"[" * 100_000, "json: "), (b'{"a":1}', "missing fields"), (b"\xff", "json: ")):

        def change(members: Members, data: bytes = data) -> None:
            members[1] = (members[1][0], data)

        rewrite(root / TAR, change)
        assert problem in findings_text(root)
