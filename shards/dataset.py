"""The typed contents of a dataset.json: sets, splits, shards and the rows of their parquet files."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import schema, typed_json
from shards.stats import (
    SPLITS,
    ShardError,
    open_regular,
    read_json_object,
    shard_number,
    shard_paths,
)

MANIFEST, CARD, DENYLIST = "dataset.json", "README.md", "denylist.txt"
TABLES = ("ledger.parquet", "spans.parquet")  # written by the build, described in docs/shards.md
FEATURES = "features"  # folder in ROOT for extracted features, which is not a set
MAX_ROWS_BYTES = 4 << 30  # of one parquet file, on disk and in memory
_BATCH_ROWS = 1 << 16
_MAX_READ = (1 << 30) + (16 << 20)  # bytes of one read: the largest video and record
_MAX_DENYLIST = 64 << 20  # bytes
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        return read_rows(self.parquet, columns, rows=self.samples)


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
        what = str(error) if isinstance(error, (ShardError, typed_json.TypedJsonError)) else repr(error)
        raise ShardError(f"{root / MANIFEST}: malformed: {what}: run python -m shards.verify") from None


def hash_file(path: Path) -> str:
    """Return the hex sha256 of a file; raise `ShardError` if it is not a regular file, `OSError` if unreadable."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(shards: Iterable[tuple[str, str]]) -> str:
    """Return the hex sha256 over (tar name, sha256 of the tar) pairs in the order of the shards' numbers."""
    digest = hashlib.sha256()
    for name, sha256 in sorted(shards, key=lambda shard: shard_number(shard[0])):
        digest.update(f"{name} {sha256}\n".encode())
    return digest.hexdigest()


def read_rows(parquet: Path, columns: Sequence[str] | None = None, *, rows: int | None = None) -> pa.Table:
    """Return a parquet file of the dataset as a table, all of its columns or those named.

    Raises `ShardError` if it cannot be read, is too large, lacks a column, has one of another type than the dataset's
    files have or with nulls, or if it has another number of rows than `rows`.
    """
    try:
        table = read_bounded(parquet, columns, rows=rows)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{parquet}: cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:  # of damaged footers
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{parquet}: cannot be read: {type(error).__name__}: {error}") from None
    known = _column_types()
    for name in columns if columns is not None else table.column_names:
        if table.column_names.count(name) != 1:
            raise ShardError(f"{parquet}: it has {table.column_names.count(name)} columns {name}; run shards.verify")
        if table[name].type != known.get(name, table[name].type) or table[name].null_count:
            found = f"{table[name].type} with {table[name].null_count} nulls"
            raise ShardError(f"{parquet}: column {name} is {found}; expected {known[name]} without nulls")
    return table


def read_bounded(
    parquet: Path, columns: Sequence[str] | None = None, *, limit: int = MAX_ROWS_BYTES, rows: int | None = None
) -> pa.Table:
    """Return an untrusted parquet file as a table of at most `limit` bytes, however small the file is.

    Raises `ShardError` if it is larger, or has another number of rows than `rows`, and the exceptions of Arrow and
    `OSError` if it cannot be read.
    """
    with open_regular(parquet) as handle:
        with pq.ParquetFile(handle) as opened:
            arrow, meta = opened.schema_arrow, opened.metadata
            groups = (meta.row_group(i) for i in range(meta.num_row_groups))
            stated = max(os.fstat(handle.fileno()).st_size, sum(group.total_byte_size for group in groups))
        if stated > limit or meta.num_rows > limit:
            raise ShardError(f"{parquet}: more than {limit} bytes, compressed or uncompressed; not read")
        if rows is not None and meta.num_rows != rows:
            raise ShardError(f"{parquet}: {meta.num_rows} rows, but {rows} samples are listed: run shards.verify")
        names = [name for name in arrow.names if columns is None or name in columns]
        texts = [field.name for field in arrow if pa.types.is_string(field.type)]
        batches, size = [], 0
        # As dictionaries, since a page of a few bytes can repeat one value of megabytes a billion times.
        with pq.ParquetFile(handle, read_dictionary=texts, metadata=meta) as opened:
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS, columns=names, use_threads=False):
                size += sum(map(_expanded_bytes, batch.columns))
                if size > limit:
                    raise ShardError(f"{parquet}: more than {limit} bytes uncompressed; not read")
                batches.append(_without_dictionaries(batch))
                batches[-1].validate(full=True)  # Arrow reads text that is not UTF-8
        empty = pa.schema([arrow.field(i) for i, name in enumerate(arrow.names) if name in names])
        return pa.Table.from_batches(batches) if batches else empty.empty_table()


def _expanded_bytes(column: pa.Array) -> int:
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = pc.cast(pc.binary_length(column.dictionary), pa.int64())
    return len(column) * 4 + int(pc.sum(lengths.take(column.indices)).as_py() or 0)


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


@functools.cache
def _column_types() -> dict[str, pa.DataType]:
    """Return name → type of all columns that the parquet files of datasets have."""
    sets = {field.name: field.type for name in schema.SETS for field in row_schema(name)}
    ledger = dict.fromkeys(("set", "item", "status", "reason", "detail", "shard"), pa.string())
    return {**sets, **ledger, "start": pa.float64(), "end": pa.float64()}


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

    Raises `ShardError` if the tar has no such bytes or cannot be read, and `FileNotFoundError` if there is no tar. See
    `open_dataset` for an example.
    """
    try:
        with open_regular(tar) as handle:
            length = os.fstat(handle.fileno()).st_size
            if offset < 0 or not 0 <= size <= _MAX_READ:
                raise ShardError(f"{tar}: a member of {size} bytes at {offset} is impossible: run shards.verify")
            data = os.pread(handle.fileno(), size, offset) if offset + size <= length else b""
            found = len(data) if offset + size <= length else max(0, min(size, length - offset))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ShardError(f"{tar}: cannot be read: {error.strerror or error}") from None
    if found != size:
        raise ShardError(f"{tar}: expected {size} bytes at {offset}, found {found}: run python -m shards.verify")
    return data


def read_denylist(path: Path) -> frozenset[str]:
    """Return the video_uids in a denylist: one per line, comments after `#`; empty if there is no such file.

    Raises `ShardError` if it cannot be read, or is not UTF-8: no withdrawn video may come back because of that.
    """
    try:
        with open_regular(path) as handle:
            data = handle.read(_MAX_DENYLIST + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: cannot be read: {error}") from None
    if len(data) > _MAX_DENYLIST or "\0" in text:
        raise ShardError(f"{path}: not a denylist: it has NUL characters or more than {_MAX_DENYLIST} bytes")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return frozenset(line for line in lines if line)


def _split_from_json(root: Path, set_name: str, split: str, value: Any) -> Split:
    shard_paths(root, set_name, split, 0)  # raises for unknown set and split names, so no path can leave root
    entry = typed_json.parse(_SplitEntry, value)
    shards = tuple(
        Shard(path=root / set_name / split / shard.name, **{f: getattr(shard, f) for f in _ShardEntry.__annotations__})
        for shard in entry.shards
    )
    for problem in _entry_problems(entry):
        raise ShardError(f"{set_name}/{split}: {problem}")
    return Split(
        set_name=set_name,
        split=split,
        shards=shards,
        empty={shard.name: shard.stats_sha256 for shard in entry.empty},
        **{name: getattr(entry, name) for name in ("samples", "bytes", "failed", "fingerprint")},
    )


@dataclass(frozen=True, kw_only=True)
class _ShardEntry:
    """A shard in `dataset.json`."""

    name: str
    samples: int
    bytes: int
    sha256: str
    parquet_sha256: str
    stats_sha256: str


@dataclass(frozen=True, kw_only=True)
class _EmptyEntry:
    """A shard in `dataset.json` whose samples all failed."""

    name: str
    stats_sha256: str


@dataclass(frozen=True, kw_only=True)
class _SplitEntry:
    """A split in `dataset.json`."""

    samples: int
    bytes: int
    failed: int
    fingerprint: str
    shards: list[_ShardEntry]
    empty: list[_EmptyEntry]


def split_problems(value: Any) -> Iterator[str]:
    """Yield what is wrong with the entry of a split in a parsed `dataset.json`, its files aside."""
    try:
        yield from _entry_problems(typed_json.parse(_SplitEntry, value))
    except typed_json.TypedJsonError as error:
        yield str(error)


def _entry_problems(entry: _SplitEntry) -> Iterator[str]:
    listed = [*(shard.name for shard in entry.shards), *(shard.name for shard in entry.empty)]
    try:
        numbers = [shard_number(name) for name in listed]
    except ShardError as error:
        yield str(error)
        return
    repeated = sorted(name for name, count in Counter(listed).items() if count > 1)
    if repeated:
        yield f"{', '.join(repeated[:5])} is listed more than once: its samples would count and be read twice"
    if numbers[: len(entry.shards)] != sorted(numbers[: len(entry.shards)]):
        yield "the shards are not listed in the order of their numbers"
    for shard in entry.shards:
        if shard.samples < 1 or shard.bytes < 1:
            yield f"{shard.name}: {shard.samples} samples in {shard.bytes} bytes; expected at least 1 of each"
        hashes = (shard.sha256, shard.parquet_sha256, shard.stats_sha256)
        if not all(map(_SHA256.fullmatch, hashes)):
            yield f"{shard.name}: one of its hashes is not 64 hexadecimal digits"
    for name, actual, expected in (
        ("samples", entry.samples, sum(shard.samples for shard in entry.shards)),
        ("bytes", entry.bytes, sum(shard.bytes for shard in entry.shards)),
        ("fingerprint", entry.fingerprint, fingerprint((shard.name, shard.sha256) for shard in entry.shards)),
    ):
        if actual != expected:
            yield f"{name} is {actual!r:.80}; by the shards that it lists {expected!r}"
    if entry.failed < 0:
        yield f"failed is {entry.failed}; expected at least 0"


def hash_json(value: Mapping[str, Any]) -> str:
    """Return the hex sha256 of a value as compact JSON, keys in order."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
