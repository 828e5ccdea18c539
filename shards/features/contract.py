"""The layout of a feature set and how it is read; docs/shards.md describes it.

FEATURES/feature.json                     written last: extractor, arrays, fingerprints, counts, sha256 of each file
FEATURES/<set>/<split>/00000.npy          the first array of that shard: rows of all samples, in the shard's order
                      /00000.<array>.npy  its further arrays
                      /00000.parquet      key, first_row and rows of each sample, and its tags
                      /00000_stats.json   marks the shard as done
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from shards import schema, typed_json
from shards.dataset import FEATURES, Dataset, hash_json, read_bounded
from shards.stats import FailedItem, ShardError, open_regular, read_json_object, shard_paths

FEATURE_JSON = "feature.json"
DTYPES = ("float16", "float32", "int32")
LEVELS = ("clip", "frame", "window", "summary", "text", "narration", "token")
TAGS = ("tag_verb", "tag_noun")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,89}")
_ARRAY = re.compile(r"[a-z][a-z0-9_]{0,29}")
_MAX_HEADER = 1 << 16  # bytes of a .npy header


class FeatureError(ShardError):
    """A feature set that cannot be used; the message names the file, what is wrong and the remedy."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a feature set: what a row of it is."""

    name: str
    level: str  # what one row describes: one of `LEVELS`
    dtype: str  # one of `DTYPES`
    shape: tuple[int, ...]  # of a row; () for token ids

    def __post_init__(self) -> None:
        if not _ARRAY.fullmatch(self.name) or self.level not in LEVELS or self.dtype not in DTYPES:
            raise FeatureError(f"array {self.name!r} of level {self.level!r} and dtype {self.dtype!r} is not valid")
        if any(size < 1 for size in self.shape):
            raise FeatureError(f"array {self.name}: shape {self.shape} must be positive")


@dataclass(frozen=True, kw_only=True)
class FeatureStats:
    """A shard's `<number>_stats.json`, written after its other files."""

    schema_version: int
    shard: str  # clips/train/00000.tar
    tar_sha256: str  # of the tar that the features are of
    extractor: str  # sha256 of the extractor's identity
    samples: int  # samples of the shard
    rows: dict[str, int]  # array → rows
    files: dict[str, str]  # file name → sha256
    bytes: dict[str, int]  # file name → bytes
    failed: tuple[FailedItem, ...]  # samples without rows, and why, sorted by key

    @classmethod
    def read(cls, path: Path) -> FeatureStats:
        """Return the contents of a stats file; raise `FeatureError` if it is absent or cannot be used."""
        try:
            stats = typed_json.parse(cls, read_json_object(path))
        except (ShardError, typed_json.TypedJsonError) as error:
            raise FeatureError(f"{path}: {error}: delete it and extract again") from None
        if stats.schema_version != schema.SCHEMA_VERSION:
            raise FeatureError(
                f"{path}: schema version {stats.schema_version}, this code reads {schema.SCHEMA_VERSION}: extract again"
            )
        return stats


@dataclass(frozen=True, kw_only=True)
class _ShardEntry:
    name: str  # 00000.tar
    samples: int
    rows: dict[str, int]
    files: dict[str, str]  # file name → sha256, the stats file included


@dataclass(frozen=True, kw_only=True)
class _SplitEntry:
    fingerprint: str
    samples: int
    failed: int
    shards: tuple[_ShardEntry, ...]


@dataclass(frozen=True, kw_only=True)
class _SetEntry:
    arrays: tuple[ArraySpec, ...]
    splits: dict[str, _SplitEntry]


@dataclass(frozen=True, kw_only=True)
class ShardFeatures:
    """The features of one shard."""

    folder: Path
    name: str  # of the shard's tar
    samples: int
    rows: Mapping[str, int]  # array → rows
    files: Mapping[str, str]  # file name → sha256
    arrays: tuple[ArraySpec, ...]

    @property
    def stem(self) -> str:
        """The number of the shard with five digits or more."""
        return self.name.removesuffix(".tar")

    def path(self, array: str) -> Path:
        """Return the path of an array."""
        return self.folder / array_file(self.stem, self.arrays, array)

    def array(self, name: str) -> np.ndarray:
        """Return an array of all rows of the shard, memory-mapped; raise `FeatureError` if it is not as stated."""
        spec = next(spec for spec in self.arrays if spec.name == name)
        return open_array(self.path(name), spec, self.rows[name])

    def table(self) -> pa.Table:
        """Return key, first row and number of rows of each sample, and its tags; see `index_schema`."""
        return read_index(self.folder / f"{self.stem}.parquet", self.arrays, self.samples)

    def failed(self) -> dict[str, str]:
        """Return key → reason of the samples without rows."""
        stats = FeatureStats.read(self.folder / f"{self.stem}_stats.json")
        return {item.key: item.detail for item in stats.failed}


@dataclass(frozen=True, kw_only=True)
class FeatureSplit:
    """The features of one split."""

    set_name: str
    split: str
    fingerprint: str  # of the split that they are of
    samples: int
    failed: int
    arrays: tuple[ArraySpec, ...]
    shards: tuple[ShardFeatures, ...]

    def spec(self, name: str) -> ArraySpec:
        """Return what an array is; raise `FeatureError` naming the known ones if there is none of that name."""
        for spec in self.arrays:
            if spec.name == name:
                return spec
        known = ", ".join(spec.name for spec in self.arrays)
        raise FeatureError(f"{self.set_name}/{self.split}: the features have no array {name!r}; they have {known}")


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """An opened feature set: `features.split("clips", "train").shards[0].array("video")`."""

    folder: Path
    name: str
    extractor: Mapping[str, Any]  # kind, configuration, sha256 of weights
    splits: Mapping[tuple[str, str], FeatureSplit]

    def split(self, set_name: str, split: str, *, fingerprint: str | None = None) -> FeatureSplit:
        """Return the features of a split; raise `FeatureError` if there are none, or of another fingerprint."""
        found = self.splits.get((set_name, split))
        if found is None:
            known = ", ".join(f"{a}/{b}" for a, b in self.splits)
            raise FeatureError(f"{self.folder}: no features of {set_name}/{split}; it has {known or 'none'}")
        if fingerprint is not None and found.fingerprint != fingerprint:
            raise FeatureError(
                f"{self.folder}: the features of {set_name}/{split} are of other shards: their fingerprint is "
                f"{found.fingerprint[:16]}…, that of the dataset {fingerprint[:16]}…; run "
                "preprocessing/extract_features.py again with the same name, which adds what is missing"
            )
        return found


def features_folder(dataset: Dataset, name: str) -> Path:
    """Return ROOT/features/<name>, or the folder that `name` is if it has a slash; raise `FeatureError`.

    >>> features_folder(dataset, "egovlp")
    PosixPath('ROOT/features/egovlp')
    """
    if "/" in name:
        return Path(name)
    if not _NAME.fullmatch(name):
        raise FeatureError(f"{name!r} is no name of a feature set: letters, digits, '.', '_' and '-', at most 90")
    return dataset.root / FEATURES / name


def open_features(folder: Path) -> FeatureSet:
    """Return the feature set in a folder; raise `FeatureError` if it is absent, incomplete, altered or malformed."""
    path = Path(folder) / FEATURE_JSON
    if not path.is_file():
        raise FeatureError(f"{path}: no such file: preprocessing/extract_features.py writes it when all is extracted")
    try:
        value = read_json_object(path)
    except ShardError as error:
        raise FeatureError(str(error)) from None
    if value.get("schema_version") != schema.SCHEMA_VERSION:
        raise FeatureError(
            f"{path}: schema version {value.get('schema_version')!r}, this code reads {schema.SCHEMA_VERSION}"
        )
    if value.pop("sha256", None) != hash_json(value):
        raise FeatureError(f"{path}: altered since it was written (its sha256 differs): extract again")
    try:
        splits: dict[tuple[str, str], FeatureSplit] = {}
        for set_name, entry in value["sets"].items():
            parsed = typed_json.parse(_SetEntry, entry)
            _require_distinct(parsed.arrays)
            for split, part in parsed.splits.items():
                splits[set_name, split] = _split(Path(folder), set_name, split, parsed.arrays, part)
        return FeatureSet(
            folder=Path(folder), name=str(value["name"]), extractor=dict(value["extractor"]), splits=splits
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = str(error) if isinstance(error, (ShardError, typed_json.TypedJsonError)) else repr(error)
        raise FeatureError(f"{path}: malformed: {what}") from None


def array_file(stem: str, arrays: Sequence[ArraySpec], name: str) -> str:
    """Return the file name of an array: the first one of a set has none in it."""
    return f"{stem}.npy" if arrays[0].name == name else f"{stem}.{name}.npy"


def shard_files(stem: str, arrays: Sequence[ArraySpec]) -> list[str]:
    """Return the names of a shard's files in the order in which they are written, without its stats file."""
    return [*(array_file(stem, arrays, spec.name) for spec in arrays), f"{stem}.parquet"]


def index_columns(arrays: Sequence[ArraySpec], name: str) -> tuple[str, str]:
    """Return the columns that hold a sample's first row and number of rows in an array."""
    prefix = "" if arrays[0].name == name else f"{name}_"
    return f"{prefix}first_row", f"{prefix}rows"


def index_schema(arrays: Sequence[ArraySpec], *, has_tags: bool) -> pa.Schema:
    """Return the columns of a shard's parquet."""
    rows = [(column, pa.int64()) for spec in arrays for column in index_columns(arrays, spec.name)]
    tags = [(name, pa.list_(pa.int32())) for name in TAGS] if has_tags else []
    return pa.schema([("key", pa.string()), *rows, *tags])


def has_tags(set_name: str) -> bool:
    """Return whether the samples of a set have verb and noun classes."""
    return set_name in schema.SETS and set(TAGS) <= typed_json.field_types(schema.record_class(set_name)).keys()


def read_index(path: Path, arrays: Sequence[ArraySpec], samples: int) -> pa.Table:
    """Return a shard's parquet; raise `FeatureError` if it cannot be read or its columns are not as they must be."""
    try:
        table = read_bounded(path, rows=samples)
    except ShardError as error:
        raise FeatureError(str(error)) from None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError) as error:
        raise FeatureError(f"{path}: cannot be read: {error}") from None
    expected = index_schema(arrays, has_tags=TAGS[0] in table.column_names)
    for column in expected:
        if table.column_names.count(column.name) != 1:
            raise FeatureError(f"{path}: has no column {column.name}, or two of them: extract again")
        found = table[column.name]
        if pa.types.is_list(column.type):
            matches = pa.types.is_list(found.type) and pa.types.is_integer(found.type.value_type)
        else:
            matches = found.type == column.type
        if not matches or found.null_count:
            raise FeatureError(f"{path}: column {column.name} is {found.type} with {found.null_count} nulls")
    return table


def index_problems(table: pa.Table, arrays: Sequence[ArraySpec], rows: Mapping[str, int]) -> Iterator[str]:
    """Yield where a shard's parquet does not tile its arrays."""
    for spec in arrays:
        first, count = (table[name].to_numpy() for name in index_columns(arrays, spec.name))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
        if (count < 0).any() or not np.array_equal(first, starts[:-1]) or starts[-1] != rows.get(spec.name):
            yield f"{spec.name}: the samples' rows do not follow one another up to {rows.get(spec.name)}, its rows"


def open_array(path: Path, spec: ArraySpec, rows: int) -> np.ndarray:
    """Return a memory-mapped array (rows, *shape); raise `FeatureError` unless the file holds exactly that."""
    try:
        with open_regular(path) as handle:
            version = np.lib.format.read_magic(handle)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"npy version {version}")
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = reader(handle, max_header_size=_MAX_HEADER)
            offset, size = handle.tell(), os.fstat(handle.fileno()).st_size
    except FileNotFoundError:
        raise FeatureError(f"{path}: no such file: extract again") from None
    except (OSError, ValueError, ShardError) as error:
        raise FeatureError(f"{path}: not a readable .npy file: {error}") from None
    expected = (rows, *spec.shape)
    if fortran or dtype != np.dtype(spec.dtype) or shape != expected:
        raise FeatureError(f"{path}: {dtype} {shape}; {spec.dtype} {expected} is stated: extract again")
    if size != offset + int(np.prod(expected, dtype=np.int64)) * dtype.itemsize:
        raise FeatureError(f"{path}: {size} bytes, which is not the size of {dtype} {shape}: extract again")
    if 0 in expected:
        return np.empty(expected, dtype)
    return np.memmap(path, dtype, "r", offset, expected)


def extractor_hash(extractor: Mapping[str, Any]) -> str:
    """Return the hex sha256 of an extractor's identity."""
    return hash_json(json.loads(json.dumps(dict(extractor), sort_keys=True)))


@functools.cache
def _check_set(set_name: str, split: str) -> None:
    if set_name in schema.SETS:
        shard_paths(Path(), set_name, split, 0)
    elif not _NAME.fullmatch(set_name) or not _NAME.fullmatch(split):
        raise FeatureError(f"{set_name!r}/{split!r} are no names of a set and a split")


def _split(folder: Path, set_name: str, split: str, arrays: tuple[ArraySpec, ...], part: _SplitEntry) -> FeatureSplit:
    _check_set(set_name, split)
    shards = []
    for entry in part.shards:
        if not re.fullmatch(r"\d{5,9}\.tar", entry.name):
            raise FeatureError(f"{entry.name!r} is not the name of a shard")
        if set(entry.rows) != {spec.name for spec in arrays} or min(entry.samples, *entry.rows.values()) < 0:
            raise FeatureError(f"{entry.name}: rows {dict(entry.rows)} do not fit the arrays")
        stem = entry.name.removesuffix(".tar")
        if set(entry.files) != {*shard_files(stem, arrays), f"{stem}_stats.json"}:
            raise FeatureError(f"{entry.name}: the listed files are not those of its arrays")
        shards.append(
            ShardFeatures(
                folder=folder / set_name / split,
                name=entry.name,
                samples=entry.samples,
                rows=entry.rows,
                files=entry.files,
                arrays=arrays,
            )
        )
    return FeatureSplit(
        set_name=set_name,
        split=split,
        fingerprint=part.fingerprint,
        samples=part.samples,
        failed=part.failed,
        arrays=arrays,
        shards=tuple(shards),
    )


def _require_distinct(arrays: Sequence[ArraySpec]) -> None:
    if not arrays or len({spec.name for spec in arrays}) != len(arrays):
        raise FeatureError("a set has no arrays, or two of the same name")
