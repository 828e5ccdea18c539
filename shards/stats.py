"""A shard's place and its stats file, which is written last and says that the shard is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from shards import schema
from shards.keys import is_key

SPLITS = ("train", "val", "test")
_MAX_JSON = 1 << 28  # bytes
_TAR_NAME = re.compile(r"(\d{5,9})\.tar")


class ShardError(ValueError):
    """Shards or index files that cannot be used as they are; the message names the file and what to do."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class FailedItem:
    """A sample that was planned for a shard and could not be made."""

    key: str
    reason: str  # a short code, the same for all failures of a kind
    detail: str  # for a person; nothing that changes between runs


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """The last file written of a shard, `<number>_stats.json`: that it exists says that the shard is whole.

    A shard all of whose samples failed has neither tar nor parquet, only this file with `samples` 0 and empty hashes:
    readers that are given `*.tar` would otherwise stop at a tar without a first sample.
    """

    schema_version: int
    shard: str  # clips/train/00000.tar
    samples: int
    bytes: int  # of the tar
    sha256: str  # of the tar
    parquet_sha256: str
    parquet_writer: str  # decides the parquet's bytes; not part of the toolchain, since the samples do not depend on it
    member_bytes: dict[str, int]  # jpg, json, mp4, txt → payload bytes, without headers and padding
    failed: tuple[FailedItem, ...]  # by key
    toolchain: dict[str, str]  # what decided the bytes of the samples

    @classmethod
    def read(cls, path: Path) -> ShardStats:
        """Return what a stats file says; raise `ShardError` naming the file where it is no stats file."""
        value = read_json_object(path)
        names = [field.name for field in fields(cls)]
        if list(value) != names:
            raise ShardError(f"{path}: a stats file has the fields {', '.join(names)}; this has {', '.join(value)}")
        try:
            failed = tuple(FailedItem(**item) for item in value["failed"])
        except TypeError as error:
            raise ShardError(f"{path}: failed: {error}") from None
        if value["schema_version"] != schema.SCHEMA_VERSION:
            raise ShardError(
                f"{path}: schema version {value['schema_version']!r}, this code reads {schema.SCHEMA_VERSION}: "
                "use the code that wrote the dataset, or build it anew in an empty folder"
            )
        for name, kind in (("shard", str), ("samples", int), ("bytes", int), ("sha256", str), ("parquet_sha256", str)):
            if type(value[name]) is not kind:
                raise ShardError(f"{path}: {name} = {value[name]!r}: {kind.__name__} is expected")
        if not all(isinstance(text, str) for item in failed for text in (item.key, item.reason, item.detail)):
            raise ShardError(f"{path}: failed: key, reason and detail are texts")
        for name in ("member_bytes", "toolchain"):
            if not isinstance(value[name], dict):
                raise ShardError(f"{path}: {name} = {value[name]!r}: an object is expected")
        return cls(**{**value, "failed": failed})

    def to_json(self) -> dict[str, Any]:
        """Return the stats as they stand in the file."""
        return asdict(self)


def shard_paths(root: Path, set_name: str, split: str, number: int) -> tuple[Path, Path, Path]:
    """Return where a shard's tar, parquet and stats lie below `root`."""
    if split not in SPLITS:
        raise ShardError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if not 0 <= number < 10**9:
        raise ShardError(f"shard number {number!r}: 0 … 999999999 is expected")
    schema.record_class(set_name)
    folder = root / set_name / split
    return folder / f"{number:05d}.tar", folder / f"{number:05d}.parquet", folder / f"{number:05d}_stats.json"


def shard_number(tar_name: str) -> int:
    """Return the number in a tar's name, `00012.tar` → 12; raise `ShardError` for any other name."""
    match = _TAR_NAME.fullmatch(tar_name)
    if match is None or tar_name != f"{int(match[1]):05d}.tar":
        raise ShardError(f"{tar_name!r} is not the name of a shard, as 00000.tar")
    return int(match[1])


def is_done(root: Path, set_name: str, split: str, number: int) -> bool:
    """Return whether a shard is whole: its stats are there and the tar and parquet that they speak of, too.

    Raise `ShardError` where the stats are of another schema version: such a shard must not be replaced in passing.
    """
    tar, parquet, stats_path = shard_paths(root, set_name, split, number)
    if not stats_path.exists():
        return False
    stats = ShardStats.read(stats_path)
    if stats.samples == 0:
        return True
    return parquet.exists() and tar.exists() and tar.stat().st_size == stats.bytes


def check_failed(failed: Iterable[FailedItem], packed: Iterable[str]) -> tuple[FailedItem, ...]:
    """Return failed items by key; raise `ShardError` for an illegal key, one named twice, or one that was packed."""
    by_key: dict[str, FailedItem] = {}
    packed = set(packed)
    for item in failed:
        if not is_key(item.key) or item.key in by_key or item.key in packed:
            raise ShardError(f"failed item {item.key!r}: an illegal key, named twice, or packed as well")
        by_key[item.key] = item
    return tuple(by_key[key] for key in sorted(by_key))


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of ours; raise `ShardError` naming the file where there is none."""
    try:
        if (size := path.stat().st_size) > _MAX_JSON:
            raise ShardError(f"{path}: {size} bytes, more than the {_MAX_JSON} that are read of a file of ours")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(f"{path}: there is no such file") from None
    except ShardError:
        raise
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ShardError(f"{path}: a JSON object is expected")
    return value
