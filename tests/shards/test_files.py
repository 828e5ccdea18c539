"""A write replaces a file completely or leaves it as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.files import remove_temporaries, replacing, temporary_name, write_bytes, write_json
from tests.paths import REPOSITORY

WRITER = """
import sys, time
from pathlib import Path
from shards.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("of a living process")
    print(temporary.name, flush=True)
    sys.stdin.readline()
"""


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


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_file_is_kept_while_its_writer_lives_and_removed_when_it_is_killed(is_locked: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    writers = [
        subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        names = {writer.stdout.readline().strip() for writer in writers if writer.stdout is not None}
        assert len(names) == 2 and {path.name for path in tmp_path.iterdir()} == names
        assert remove_temporaries(tmp_path, is_locked=is_locked) == 0
        writers[0].kill()
        while writers[0].returncode is None and _state(writers[0].pid) != "Z":
            time.sleep(0.01)
        assert remove_temporaries(tmp_path, is_locked=is_locked) == 1  # though the process is a zombie
        writers[1].communicate("\n", timeout=30)
        assert writers[1].returncode == 0
        assert (tmp_path / "file").read_text() == "of a living process"
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(10)


def _state(process: int) -> str:
    """Return the state letter of a process in /proc."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_number_of_a_dead_process_may_have_been_given_to_another(tmp_path: Path) -> None:
    host, process, start, rest = temporary_name(tmp_path / "a").name.removeprefix(".tmp-").split("-", 3)
    (tmp_path / f".tmp-{host}-{process}-{start}-{rest}").touch()
    (tmp_path / f".tmp-{host}-{process}-{int(start) + 1}-{rest}").touch()
    assert remove_temporaries(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == [f".tmp-{host}-{process}-{start}-{rest}"]


def test_files_of_other_hosts_are_removed_under_a_lock_or_when_long_untouched(tmp_path: Path) -> None:
    fresh, old = (tmp_path / f".tmp-{'0' * 8}-7-8-{digit * 8}-a" for digit in "ab")
    for path in (fresh, old):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    assert remove_temporaries(tmp_path, is_locked=False) == 1 and fresh.exists()
    assert remove_temporaries(tmp_path) == 1


def test_a_long_name_leaves_room_for_the_writers(tmp_path: Path) -> None:
    write_bytes(tmp_path / ("n" * 250), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 250]
