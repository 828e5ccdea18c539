"""What a dataset.json describes: sets, splits, shards and their rows; how the loader and the evaluation open one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import schema
from shards.stats import SPLITS, ShardError, read_json_object, shard_number, shard_paths

MANIFEST, CARD, DENYLIST = "dataset.json", "README.md", "denylist.txt"
TABLES = ("ledger.parquet", "spans.parquet")  # written by the build, described in docs/shards.md
FEATURES = "features"  # the one folder of ROOT that is no set


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A published tar, as `dataset.json` lists it."""

    name: str  # 00000.tar
    path: Path
    samples: int
    bytes: int
    sha256: str
    parquet_sha256: str
    stats_sha256: str

    @property
    def parquet(self) -> Path:
        """The table of the shard's samples."""
        return self.path.with_suffix(".parquet")

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the shard's parquet (see `row_schema`), one row per sample in the order of the tar."""
        return read_rows(self.parquet, columns)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split of a set: its shards by number, which may have holes."""

    set_name: str
    split: str
    samples: int
    bytes: int  # of the tars
    failed: int  # samples that were planned and could not be made
    fingerprint: str  # over (tar name, sha256); the order of an epoch follows from it
    shards: tuple[Shard, ...]  # those with samples
    empty: dict[str, str]  # tar name → sha256 of the stats, of shards all of whose samples failed

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of all shards, and the name of the tar that each lies in as the column `shard`."""
        names = schema_columns(self.set_name, columns)
        tables = []
        for shard in self.shards:
            table = shard.rows(names)
            tables.append(table.append_column("shard", pa.array([shard.name] * len(table), pa.string())))
        empty = pa.schema([row_schema(self.set_name).field(name) for name in names] + [("shard", pa.string())])
        return pa.concat_tables(tables) if tables else empty.empty_table()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a `dataset.json` describes: `dataset.sets["clips"]["train"].shards[0].path`."""

    root: Path
    config: dict[str, Any]
    toolchain: dict[str, str]
    provenance: dict[str, Any]
    sets: dict[str, dict[str, Split]]
    files: dict[str, str]  # path below root → sha256, of what lies beside the splits' own files

    @property
    def fingerprint(self) -> str:
        """The sha256 over every split's name and fingerprint, as hex."""
        lines = [f"{set_name}/{split} {entry.fingerprint}\n" for set_name, split, entry in self.splits()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def denylist(self) -> frozenset[str]:
        """The withdrawn videos, as `denylist.txt` names them now."""
        return read_denylist(self.root / DENYLIST)

    def splits(self) -> Iterator[tuple[str, str, Split]]:
        """Yield set, split and what it holds, in the order of the contract."""
        for set_name in sorted(self.sets, key=list(schema.RECORDS).index):
            for split in sorted(self.sets[set_name], key=SPLITS.index):
                yield set_name, split, self.sets[set_name][split]

    def rows(self, set_name: str, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a split, as `Split.rows`."""
        return self.split(set_name, split).rows(columns)

    def split(self, set_name: str, split: str) -> Split:
        """Return a split; raise `ShardError` naming those that are there."""
        try:
            return self.sets[set_name][split]
        except KeyError:
            known = ", ".join(f"{name}/{part}" for name, part, _ in self.splits())
            raise ShardError(f"{self.root}: there is no {set_name}/{split}; there are {known}") from None


def open_dataset(root: Path | str) -> Dataset:
    """Return the dataset that `root/dataset.json` describes; raise `ShardError` where it is absent or was altered."""
    path = Path(root) / MANIFEST
    value = read_json_object(path)
    if value.get("schema_version") != schema.SCHEMA_VERSION:
        raise ShardError(
            f"{path}: schema version {value.get('schema_version')!r}, this code reads {schema.SCHEMA_VERSION}"
        )
    if value.pop("sha256", None) != hash_json(value):
        raise ShardError(f"{path}: altered since it was written (its own sha256 differs): build again to rewrite it")
    return dataset_from_json(Path(root), value)


def dataset_from_json(root: Path, value: Mapping[str, Any]) -> Dataset:
    """Return what the JSON of a `dataset.json` stands for."""
    try:
        sets = {
            set_name: {split: _split_from_json(root, set_name, split, entry) for split, entry in splits.items()}
            for set_name, splits in value["sets"].items()
        }
        names = ("config", "toolchain", "provenance", "files")
        return Dataset(root=root, sets=sets, **{name: dict(value[name]) for name in names})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(f"{root / MANIFEST}: not a manifest: {type(error).__name__}: {error}") from None


def hash_file(path: Path) -> str:
    """Return the sha256 of a file as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(shards: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 over (tar name, sha256 of the tar) in the order of the shards' numbers, as hex."""
    digest = hashlib.sha256()
    for name, sha256 in sorted(shards, key=lambda shard: shard_number(shard[0])):
        digest.update(f"{name} {sha256}\n".encode())
    return digest.hexdigest()


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


def schema_columns(set_name: str, columns: Sequence[str] | None) -> list[str]:
    """Return `columns`, all when None; raise `ShardError` for a column that the set's parquet files do not have."""
    known = row_schema(set_name).names
    unknown = [name for name in columns or () if name not in known]
    if unknown:
        raise ShardError(f"{set_name}: unknown columns {', '.join(unknown)}; known: {', '.join(known)}")
    return list(columns) if columns is not None else known


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


def _split_from_json(root: Path, set_name: str, split: str, value: Mapping[str, Any]) -> Split:
    shard_paths(root, set_name, split, 0)  # refuses names that are no set or no split, so no path leaves root
    shards = []
    for entry in value["shards"]:
        shard_number(entry["name"])
        shards.append(Shard(path=root / set_name / split / entry["name"], **entry))
    return Split(
        set_name=set_name,
        split=split,
        shards=tuple(shards),
        empty={entry["name"]: entry["stats_sha256"] for entry in value["empty"]},
        **{name: value[name] for name in ("samples", "bytes", "failed", "fingerprint")},
    )


def hash_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
