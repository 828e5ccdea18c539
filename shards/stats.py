"""The paths of a shard's files, and its stats file, which is written last and marks the shard as complete."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from shards import files, schema, typed_json
from shards.keys import is_key

SPLITS = ("train", "val", "test")
_MAX_JSON = 1 << 28  # bytes
_MAX_VALUES = 1 << 23  # values in one JSON file; Python needs about 100 bytes for each
_MAX_DEPTH = 64  # of nested lists and objects; the dataset's own files have fewer than ten
_TAR_NAME = re.compile(r"(\d{5,9})\.tar")


class ShardError(ValueError):
    """A shard or index file that cannot be used; the message names the file and the remedy."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class FailedItem:
    """A sample that was planned for a shard but could not be produced."""

    key: str
    reason: str  # a short code, equal for all failures of one kind
    detail: str  # human-readable and reproducible: no times, paths or hosts


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """A shard's `<number>_stats.json`, the last of its files to be written: its existence marks the shard as complete.

    A shard whose samples all failed has neither tar nor parquet, only this file with `samples` 0 and empty hashes,
    since readers that glob `*.tar` would stop at an empty tar.
    """

    schema_version: int
    shard: str  # path of the tar below the root: clips/train/00000.tar
    samples: int
    bytes: int  # of the tar
    sha256: str  # of the tar
    parquet_sha256: str
    parquet_writer: str  # determines the parquet's bytes but no sample's, so it is not part of the toolchain
    member_bytes: dict[str, int]  # jpg, json, mp4, txt → payload bytes, without headers and padding
    failed: tuple[FailedItem, ...]  # sorted by key
    toolchain: dict[str, str]  # name → version of all programs that determine the samples' bytes

    @classmethod
    def read(cls, path: Path) -> ShardStats:
        """Return the contents of a stats file; raise `ShardError` if it is absent, malformed or of another version."""
        value = read_json_object(path)
        if value.get("schema_version") != schema.SCHEMA_VERSION:
            raise ShardError(
                f"{path}: schema version {value.get('schema_version')!r}, this code reads {schema.SCHEMA_VERSION}: "
                "use the code that wrote the dataset, or rebuild it in an empty folder"
            )
        try:
            return typed_json.parse(cls, value)
        except typed_json.TypedJsonError as error:
            raise ShardError(f"{path}: {error}") from None

    def write(self, path: Path) -> None:
        """Write the stats file atomically."""
        files.write_json(path, typed_json.dump(self))


def shard_paths(root: Path, set_name: str, split: str, number: int) -> tuple[Path, Path, Path]:
    """Return the paths of a shard's tar, parquet and stats; raise `ShardError` for an unknown split or number.

    >>> shard_paths(Path("root"), "clips", "train", 7)[0]
    PosixPath('root/clips/train/00007.tar')
    """
    if split not in SPLITS:
        raise ShardError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    if not 0 <= number < 10**9:
        raise ShardError(f"shard number {number!r} is outside 0 … 999999999")
    schema.record_class(set_name)
    folder = root / set_name / split
    return folder / f"{number:05d}.tar", folder / f"{number:05d}.parquet", folder / f"{number:05d}_stats.json"


def shard_number(tar_name: str) -> int:
    """Return the number in a tar's file name (`00012.tar` → 12); raise `ShardError` for any other name."""
    match = _TAR_NAME.fullmatch(tar_name)
    if match is None or tar_name != f"{int(match[1]):05d}.tar":
        raise ShardError(f"{tar_name!r} is not the name of a shard, such as 00000.tar")
    return int(match[1])


def is_done(root: Path, set_name: str, split: str, number: int) -> bool:
    """Return whether a shard is complete: it has a stats file, and the tar and parquet described there.

    Raises `ShardError` if the stats file is malformed or of another schema version, so that no such shard is
    overwritten unnoticed.
    """
    tar, parquet, stats_path = shard_paths(root, set_name, split, number)
    if not stats_path.exists():
        return False
    stats = ShardStats.read(stats_path)
    if stats.samples == 0:
        return True
    return parquet.exists() and tar.exists() and tar.stat().st_size == stats.bytes


def check_failed(failed: Iterable[FailedItem], packed: Iterable[str]) -> tuple[FailedItem, ...]:
    """Return failed items sorted by key; raise `ShardError` for an invalid, repeated or packed key."""
    by_key: dict[str, FailedItem] = {}
    packed = set(packed)
    for item in failed:
        if not is_key(item.key) or item.key in by_key or item.key in packed:
            raise ShardError(f"failed item {item.key!r}: the key is invalid, repeated, or that of a packed sample")
        by_key[item.key] = item
    return tuple(by_key[key] for key in sorted(by_key))


def file_problem(path: Path) -> str:
    """Return what stands at `path` in place of a regular file (`a folder`, `a FIFO`, …); empty for a regular file.

    Nothing is opened, so a FIFO without a writer and a device do not block. Symbolic links are followed. Raises
    `OSError` if there is nothing.
    """
    mode = path.stat().st_mode
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "not a regular file")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file of a dataset for reading, without waiting for anything else that stands in its place.

    Raises `ShardError` for a folder, FIFO, socket or device, and `OSError` for a file that is absent or unreadable.
    """
    # O_NONBLOCK has no effect on regular files; opening a FIFO returns at once.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ShardError(f"{path}: {_KINDS.get(stat.S_IFMT(mode), 'not a regular file')} in place of a file")
    return open(descriptor, "rb")


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises `ShardError` if there is no such file, or if it cannot be read, is too large, or is not a JSON object that
    every reader understands alike: without repeated names, NaN, infinities, lone surrogates and deep nesting.
    """
    try:
        with open_regular(path) as handle:
            if (size := os.fstat(handle.fileno()).st_size) > _MAX_JSON:
                raise ShardError(f"{path}: {size} bytes exceed the limit of {_MAX_JSON}")
            data = handle.read(_MAX_JSON + 1)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file") from None
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        value = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ShardError(f"{path}: a JSON object is expected")
    return value


def parse_json(data: bytes) -> Any:
    """Return the value of untrusted UTF-8 JSON; raise `ValueError` or `RecursionError` unless it can be trusted.

    Beyond the grammar, names must not repeat, and NaN, infinities, lone surrogates, more than 64 levels and more than
    eight million values are errors: what has them cannot be written again with the same meaning, or takes gigabytes.
    """
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > _MAX_VALUES:
        raise ValueError(f"more than {_MAX_VALUES} values")
    value = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_object)
    if _depth_exceeds(value, _MAX_DEPTH):
        raise ValueError(f"more than {_MAX_DEPTH} levels of lists and objects")
    if b"\\u" in data:
        json.dumps(value, ensure_ascii=False).encode()  # raises UnicodeEncodeError for a lone surrogate
    return value


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        if not level:
            return False
        children = (parent.values() if isinstance(parent, dict) else parent for parent in level)
        level = [child for group in children for child in group if isinstance(child, (dict, list))]
    return bool(level)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {repeated[:80]!r} is repeated")
    return value
