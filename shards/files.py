"""Atomic file writes: readers see a complete file or none, whenever a writer is killed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"


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
    """Return a path beside `path` for an incomplete file, unique among processes, threads and nodes."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


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


def remove_temporaries(root: Path) -> int:
    """Remove the temporary files of killed writers below `root` and return their number.

    Only safe for a process that holds the lock on `root`.
    """
    leftovers = [path for path in root.rglob(f"{TEMPORARY}*") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)
