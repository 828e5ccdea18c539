"""Atomic file writes: readers see a complete file or none, whenever a writer is killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
_OWNED = re.compile(re.escape(TEMPORARY) + r"([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}-")  # host, process, its start
_NAME_KEPT = 150  # characters of a file's name, of the 255 that file systems allow
_ABANDONED = 3600.0  # s without a write after which the writer on another host is taken for dead


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`, otherwise remove it.

    with replacing(path) as temporary:
        temporary.write_text("…")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """Return a path beside `path` for an incomplete file, unique among hosts, processes, threads and calls.

    Its name says which process writes it, for `remove_temporaries`.
    """
    owner = f"{_host()}-{os.getpid()}-{_start_of(os.getpid()) or 0}"
    return path.with_name(f"{TEMPORARY}{owner}-{secrets.token_hex(4)}-{path.name[-_NAME_KEPT:]}")


def publish(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path` durably: fsync the file, rename it, fsync the folder."""
    fsync(temporary)
    os.replace(temporary, path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as UTF-8 JSON atomically; equal values give equal bytes."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return `value` as JSON in the format of the dataset's files: UTF-8, indented by one space, keys in order."""
    return (json.dumps(value, ensure_ascii=False, indent=1, sort_keys=False) + "\n").encode()


def remove_temporaries(root: Path, *, is_locked: bool = True) -> int:
    """Remove the temporary files of dead writers below `root` and return their number.

    Files of a process that runs on this host are kept. Those of other hosts are removed if the caller holds a lock on
    `root` that excludes them (`is_locked`), otherwise once nothing was written to them for an hour.
    """
    leftovers = [path for path in root.rglob(f"{TEMPORARY}*") if path.is_file() and not _is_in_use(path, is_locked)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _is_in_use(path: Path, is_locked: bool) -> bool:
    """Return whether the writer of a temporary file may still be running."""
    owned = _OWNED.match(path.name)
    if owned and owned[1] == _host():
        return _start_of(int(owned[2])) == int(owned[3])
    if is_locked:
        return False
    try:
        return time.time() - path.stat().st_mtime < _ABANDONED
    except FileNotFoundError:
        return True  # its writer has just renamed or removed it


def _host() -> str:
    """Return eight hexadecimal digits that stand for this host's name."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _start_of(process: int) -> int | None:
    """Return when a process started (clock ticks since boot, 0 where unknown); None where it does not run.

    The number of a process alone may belong to a later one, above all in containers.
    """
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _answers(process)
    return None if state in "ZX" else int(fields[18])


def _answers(process: int) -> int | None:
    """Return 0 where a process exists and None where it does not, on systems without /proc."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it exists and belongs to another user
    return 0
