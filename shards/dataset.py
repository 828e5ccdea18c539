"""The typed contents of a dataset.json: sets, splits, shards and the rows of their parquet files."""

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
FEATURES = "features"  # folder in ROOT for extracted features, which is not a set


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A published tar, as listed in `dataset.json`."""

    name: str  # 00000.tar
    path: Path
    samples: int
    bytes: int
    sha256: str
    parquet_sha256: str
    stats_sha256: str

    @property
    def parquet(self) -> Path:
        """The path of the shard's index, a row per sample."""
        return self.path.with_suffix(".parquet")

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the shard's parquet, one row per sample in the order of the tar; see `row_schema` for its columns."""
        return read_rows(self.parquet, columns)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split of a set."""

    set_name: str
    split: str
    samples: int
    bytes: int  # of the tars
    failed: int  # samples that were planned but could not be produced
    fingerprint: str  # hash over tar names and sha256s; determines the order of an epoch
    shards: tuple[Shard, ...]  # in the order of their numbers, which may have gaps
    empty: dict[str, str]  # shards whose samples all failed: tar name → sha256 of the stats file

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of all shards, with the name of each row's tar as the additional column `shard`.

        Raises `ShardError` for an unknown column or a parquet file that cannot be read.
        """
        names = schema_columns(self.set_name, columns)
        tables = []
        for shard in self.shards:
            table = shard.rows(names)
            tables.append(table.append_column("shard", pa.array([shard.name] * len(table), pa.string())))
        empty = pa.schema([row_schema(self.set_name).field(name) for name in names] + [("shard", pa.string())])
        return pa.concat_tables(tables) if tables else empty.empty_table()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An opened dataset: `dataset.sets["clips"]["train"].shards[0].path`."""

    root: Path
    config: dict[str, Any]
    toolchain: dict[str, str]
    provenance: dict[str, Any]
    sets: dict[str, dict[str, Split]]
    files: dict[str, str]  # path below root → sha256: card, ledger, spans and companions

    @property
    def fingerprint(self) -> str:
        """The hex sha256 over the names and fingerprints of all splits."""
        lines = [f"{set_name}/{split} {entry.fingerprint}\n" for set_name, split, entry in self.splits()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def denylist(self) -> frozenset[str]:
        """The withdrawn videos, read from `denylist.txt` at each access."""
        return read_denylist(self.root / DENYLIST)

    def splits(self) -> Iterator[tuple[str, str, Split]]:
        """Yield (set name, split name, split) in the order of `schema.SETS`."""
        for set_name in sorted(self.sets, key=list(schema.RECORDS).index):
            for split in sorted(self.sets[set_name], key=SPLITS.index):
                yield set_name, split, self.sets[set_name][split]

    def rows(self, set_name: str, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a split; see `Split.rows`."""
        return self.split(set_name, split).rows(columns)

    def split(self, set_name: str, split: str) -> Split:
        """Return a split; raise `ShardError` naming the existing ones if there is no such split."""
        try:
            return self.sets[set_name][split]
        except KeyError:
            known = ", ".join(f"{name}/{part}" for name, part, _ in self.splits())
            raise ShardError(f"{self.root}: no split {set_name}/{split}; it has {known}") from None


def open_dataset(root: Path | str) -> Dataset:
    """Return the dataset in the folder `root`.

    Raises `ShardError` if `root/dataset.json` is absent, altered or of another schema version.

        dataset = open_dataset("ROOT")
        shard = dataset.split("clips", "train").shards[0]
        row = shard.rows(["key", "mp4_offset", "mp4_size"]).slice(0, 1).to_pylist()[0]
        mp4 = read_member(shard.path, row["mp4_offset"], row["mp4_size"])
    """
    path = Path(root) / MANIFEST
    value = read_json_object(path)
    if value.get("schema_version") != schema.SCHEMA_VERSION:
        raise ShardError(
            f"{path}: schema version {value.get('schema_version')!r}, this code reads {schema.SCHEMA_VERSION}"
        )
    if value.pop("sha256", None) != hash_json(value):
        raise ShardError(f"{path}: altered since it was written (its sha256 differs): rerun the build to rewrite it")
    return dataset_from_json(Path(root), value)


def dataset_from_json(root: Path, value: Mapping[str, Any]) -> Dataset:
    """Return the dataset in `root` that a parsed `dataset.json` describes; raise `ShardError` if it is malformed."""
    try:
        sets = {
            set_name: {split: _split_from_json(root, set_name, split, entry) for split, entry in splits.items()}
            for set_name, splits in value["sets"].items()
        }
        names = ("config", "toolchain", "provenance", "files")
        return Dataset(root=root, sets=sets, **{name: dict(value[name]) for name in names})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(f"{root / MANIFEST}: malformed: {type(error).__name__}: {error}") from None


def hash_file(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(shards: Iterable[tuple[str, str]]) -> str:
    """Return the hex sha256 over (tar name, sha256 of the tar) pairs in the order of the shards' numbers."""
    digest = hashlib.sha256()
    for name, sha256 in sorted(shards, key=lambda shard: shard_number(shard[0])):
        digest.update(f"{name} {sha256}\n".encode())
    return digest.hexdigest()


def read_rows(parquet: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a parquet file of the dataset as a table; raise `ShardError` if it cannot be read."""
    try:
        return pq.read_table(parquet, columns=list(columns) if columns is not None else None, memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{parquet}: cannot be read: {error}") from None


def row_schema(set_name: str) -> pa.Schema:
    """Return the columns of a set's parquet files: key, offset and size in bytes of each member, scalar fields."""
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    members = [(f"{ext}_{what}", pa.int64()) for ext in schema.MEMBERS for what in ("offset", "size")]
    scalars = [(name, arrow[kind]) for name, kind in schema.scalar_fields(set_name).items()]
    return pa.schema([("key", pa.string()), *members, *scalars])


def schema_columns(set_name: str, columns: Sequence[str] | None) -> list[str]:
    """Return `columns`, or all columns if None; raise `ShardError` for names that the set's parquet files lack."""
    known = row_schema(set_name).names
    unknown = [name for name in columns or () if name not in known]
    if unknown:
        raise ShardError(f"{set_name}: unknown columns {', '.join(unknown)}; known: {', '.join(known)}")
    return list(columns) if columns is not None else known


def read_member(tar: Path, offset: int, size: int) -> bytes:
    """Return a member of a tar, given its offset and size in bytes from the shard's parquet.

    Raises `ShardError` if the tar ends before. See `open_dataset` for an example.
    """
    handle = os.open(tar, os.O_RDONLY)
    try:
        data = os.pread(handle, size, offset)
    finally:
        os.close(handle)
    if len(data) != size:
        raise ShardError(f"{tar}: expected {size} bytes at {offset}, found {len(data)}: run python -m shards.verify")
    return data


def read_denylist(path: Path) -> frozenset[str]:
    """Return the video_uids in a denylist: one per line, comments after `#`; empty if there is no such file."""
    if not path.exists():
        return frozenset()
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return frozenset(line for line in lines if line)


def _split_from_json(root: Path, set_name: str, split: str, value: Mapping[str, Any]) -> Split:
    shard_paths(root, set_name, split, 0)  # raises for unknown set and split names, so no path can leave root
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
    """Return the hex sha256 of a value as compact JSON, keys in order."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
