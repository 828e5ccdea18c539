"""A write replaces a file completely or leaves it as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shards.files import remove_temporaries, replacing, write_bytes, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_no_other(small_disk: Path) -> None:
    path = small_disk / "file"
    write_bytes(path, b"old")
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(path, os.urandom(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [path]


def test_json_is_utf8_and_keeps_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"b": "ä", "a": [1]})
    assert (tmp_path / "file.json").read_bytes() == '{\n "b": "ä",\n "a": [\n  1\n ]\n}\n'.encode()


def test_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (".tmp-1-a", "deep/.tmp-2-b", "deep/kept"):
        (tmp_path / name).write_text("x")
    assert remove_temporaries(tmp_path) == 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept"]
