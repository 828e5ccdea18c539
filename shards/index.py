"""The files beside the tars: a shard's stats, a split's sizes and wids index, and the dataset.json over all of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import files, schema
from shards.keys import is_key

SPLITS = ("train", "val", "test")
FEATURES = "features"  # the one folder of ROOT that is no set
_TAR_NAME = re.compile(r"(\d{5,9})\.tar")


class ShardError(ValueError):
    """Shards or index files that cannot be used as they are; the message names the file and what to do."""


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


def done_shards(root: Path, set_name: str, split: str) -> list[ShardStats]:
    """Return the stats of a split's finished shards by number; numbers may have holes.

    Raise `ShardError` where a shard's stats are there but its tar is not what they say.
    """
    folder = root / set_name / split
    numbers = sorted(int(path.name[: -len("_stats.json")]) for path in folder.glob("[0-9]*_stats.json"))
    found = []
    for number in numbers:
        tar, _, stats_path = shard_paths(root, set_name, split, number)
        stats = ShardStats.read(stats_path)
        if stats.shard != f"{set_name}/{split}/{tar.name}":
            raise ShardError(f"{stats_path}: speaks of {stats.shard}; a file of another shard was copied here")
        if not is_done(root, set_name, split, number):
            raise ShardError(f"{tar}: absent, or not of {stats.bytes} bytes as its stats say: run the build again")
        found.append(stats)
    return found


def splits_of(root: Path) -> list[tuple[str, str]]:
    """Return the (set, split) pairs with a folder below `root`, sets in the order of the contract."""
    return [(name, split) for name in schema.RECORDS for split in SPLITS if (root / name / split).is_dir()]


def require_toolchain(root: Path, toolchain: Mapping[str, str]) -> None:
    """Raise `ShardError` with both values where a finished shard below `root` was made by another toolchain."""
    for set_name, split in splits_of(root):
        for stats in done_shards(root, set_name, split):
            _require_same_toolchain(stats, toolchain)


def fingerprint(shards: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 over (tar name, sha256 of the tar) in the order of the shards' numbers, as hex."""
    digest = hashlib.sha256()
    for name, sha256 in sorted(shards, key=lambda shard: shard_number(shard[0])):
        digest.update(f"{name} {sha256}\n".encode())
    return digest.hexdigest()


def finish_split(root: Path, set_name: str, split: str) -> list[ShardStats]:
    """Write `sizes.json` and `shardindex.json` of a split from its finished shards; return their stats by number."""
    found = done_shards(root, set_name, split)
    for name, value in split_index(found).items():
        files.write_json(root / set_name / split / name, value)
    return found


def split_index(shards: Sequence[ShardStats]) -> dict[str, Any]:
    """Return what belongs into a split's `sizes.json` and `shardindex.json`: shards without samples are left out."""
    filled = [(Path(stats.shard).name, stats) for stats in shards if stats.samples]
    entries = [{"url": name, "nsamples": stats.samples, "filesize": stats.bytes} for name, stats in filled]
    return {
        "sizes.json": {name: stats.samples for name, stats in filled},
        "shardindex.json": {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries},
    }


def read_rows(parquet: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a shard's parquet as a table, in the order of the tar; raise `ShardError` where it cannot be read."""
    try:
        return pq.read_table(parquet, columns=list(columns) if columns is not None else None, memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{parquet}: cannot be read: {error}") from None


def row_schema(set_name: str) -> pa.Schema:
    """Return the columns of a set's parquet files: key, offset and size of each member (bytes), scalar fields."""
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    members = [(f"{ext}_{what}", pa.int64()) for ext in schema.MEMBERS for what in ("offset", "size")]
    scalars = [(name, arrow[kind]) for name, kind in schema.scalar_fields(set_name).items()]
    return pa.schema([("key", pa.string()), *members, *scalars])


def read_member(tar: Path, offset: int, size: int) -> bytes:
    """Return `size` bytes at `offset` of a tar: a member, as its parquet row places it."""
    handle = os.open(tar, os.O_RDONLY)
    try:
        data = os.pread(handle, size, offset)
    finally:
        os.close(handle)
    if len(data) != size:
        raise ShardError(f"{tar}: {size} bytes at {offset} were expected, {len(data)} are there: run shards.verify")
    return data


def read_denylist(path: Path) -> frozenset[str]:
    """Return the withdrawn videos that a denylist names, one video_uid a line, `#` before comments; none if absent."""
    if not path.exists():
        return frozenset()
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return frozenset(line for line in lines if line)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of ours; raise `ShardError` naming the file where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(f"{path}: there is no such file") from None
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ShardError(f"{path}: a JSON object is expected")
    return value


def _require_same_toolchain(stats: ShardStats, toolchain: Mapping[str, str]) -> None:
    if stats.toolchain != dict(toolchain):
        changed = sorted(
            name for name in {*stats.toolchain, *toolchain} if stats.toolchain.get(name) != toolchain.get(name)
        )
        was = ", ".join(f"{name} {stats.toolchain.get(name)}" for name in changed)
        now = ", ".join(f"{name} {toolchain.get(name)}" for name in changed)
        raise ShardError(
            f"{stats.shard} was made by another toolchain: {was}; now: {now}. Install what it was made by "
            "to go on with this dataset, or build anew in an empty folder"
        )


def check_failed(failed: Iterable[FailedItem], packed: Iterable[str]) -> tuple[FailedItem, ...]:
    """Return failed items by key; raise `ShardError` for an illegal key, one named twice, or one that was packed."""
    by_key: dict[str, FailedItem] = {}
    packed = set(packed)
    for item in failed:
        if not is_key(item.key) or item.key in by_key or item.key in packed:
            raise ShardError(f"failed item {item.key!r}: an illegal key, named twice, or packed as well")
        by_key[item.key] = item
    return tuple(by_key[key] for key in sorted(by_key))
