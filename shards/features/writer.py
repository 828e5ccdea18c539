"""Writes a feature set: a shard's arrays, index and stats file, and at the end feature.json.

Every file is written under a temporary name and renamed, the stats file last: a shard that has it is complete, and one
without is extracted again. Equal rows give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import files, schema, typed_json
from shards.dataset import hash_file, hash_json
from shards.features.contract import (
    FEATURE_JSON,
    TAGS,
    ArraySpec,
    FeatureError,
    FeatureSet,
    FeatureStats,
    array_file,
    extractor_hash,
    has_tags,
    index_columns,
    index_schema,
    open_features,
    shard_files,
)
from shards.stats import FailedItem, read_json_object


@dataclass(frozen=True, kw_only=True, eq=False)
class Extracted:
    """The features of one sample: the rows of each array, or why there are none."""

    key: str
    rows: Mapping[str, np.ndarray]  # array → (rows, *shape); absent arrays have no rows
    tags: tuple[Sequence[int], Sequence[int]] | None = None  # verb and noun classes, of sets that have them
    failed: FailedItem | None = None


class FeatureWriter:
    """Writes the shards of a feature set, in any order and from any number of processes.

    writer = FeatureWriter(folder, name="egovlp", extractor={"kind": "towers", …})
    writer.write("clips", "train", "00000.tar", tar_sha256, arrays, samples)
    writer.finish({"clips": arrays}, {("clips", "train"): (fingerprint, ["00000.tar"])})
    """

    def __init__(self, folder: Path, *, name: str, extractor: Mapping[str, Any]) -> None:
        """`extractor` is JSON-ready and holds all that affects the features: kind, settings, sha256 of weights."""
        self.folder, self._name, self._extractor = Path(folder), name, dict(extractor)
        self._identity = extractor_hash(extractor)

    def is_done(self, set_name: str, split: str, shard: str, tar_sha256: str, arrays: Sequence[ArraySpec]) -> bool:
        """Return whether a shard's features are complete, of this tar and by this extractor.

        Raises `FeatureError` where they are by another one, or of another tar of that name.
        """
        stem = shard.removesuffix(".tar")
        path = self.folder / set_name / split / f"{stem}_stats.json"
        if not path.exists():
            return False
        stats = FeatureStats.read(path)
        if stats.extractor != self._identity or set(stats.rows) != {spec.name for spec in arrays}:
            raise FeatureError(
                f"{path}: made by another extractor (other weights or settings): choose another `name`, or delete "
                f"{self.folder}"
            )
        if stats.tar_sha256 != tar_sha256:
            raise FeatureError(
                f"{path}: made of another {set_name}/{split}/{shard} (its sha256 differs): choose another `name`, or "
                f"delete {self.folder}"
            )
        for name, size in stats.bytes.items():
            file = path.parent / name
            if not file.is_file() or file.stat().st_size != size:
                return False
        return True

    def write(
        self,
        set_name: str,
        split: str,
        shard: str,
        tar_sha256: str,
        arrays: Sequence[ArraySpec],
        samples: Iterable[Extracted],
    ) -> FeatureStats:
        """Write the features of one shard, its samples in their order; return the stats. Raises `FeatureError`."""
        listed = list(samples)
        stem, folder = shard.removesuffix(".tar"), self.folder / set_name / split
        columns: dict[str, Any] = {"key": [sample.key for sample in listed]}
        rows: dict[str, int] = {}
        digests: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for spec in arrays:
            parts = [_checked(sample, spec) for sample in listed]
            counts = np.array([len(part) for part in parts], np.int64)
            first, count = index_columns(arrays, spec.name)
            columns[first], columns[count] = np.cumsum(counts) - counts, counts
            rows[spec.name] = int(counts.sum())
            empty = np.empty((0, *spec.shape), spec.dtype)
            name = array_file(stem, arrays, spec.name)
            digests[name], sizes[name] = _write_array(folder / name, np.concatenate([empty, *parts]))
        tags = [sample.tags for sample in listed if sample.tags is not None]
        tagged = has_tags(set_name) and len(tags) == len(listed)
        if tagged:
            for place, name in enumerate(TAGS):
                columns[name] = [list(pair[place]) for pair in tags]
        table = pa.table(columns, schema=index_schema(arrays, has_tags=tagged))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=3, store_schema=False)
        index = folder / f"{stem}.parquet"
        files.write_bytes(index, sink.getvalue().to_pybytes())
        digests[index.name], sizes[index.name] = hash_file(index), index.stat().st_size
        failed = sorted((s.failed for s in listed if s.failed is not None), key=lambda item: item.key)
        stats = FeatureStats(
            schema_version=schema.SCHEMA_VERSION,
            shard=f"{set_name}/{split}/{shard}",
            tar_sha256=tar_sha256,
            extractor=self._identity,
            samples=len(listed),
            rows=rows,
            files=digests,
            bytes=sizes,
            failed=tuple(failed),
        )
        files.write_json(folder / f"{stem}_stats.json", typed_json.dump(stats))
        return stats

    def finish(
        self,
        arrays: Mapping[str, Sequence[ArraySpec]],
        splits: Mapping[tuple[str, str], tuple[str, Sequence[str]]],
    ) -> FeatureSet:
        """Write feature.json over complete splits, (set, split) → (fingerprint, shards); return the opened set.

        Splits that an earlier run finished and this one does not name are kept. Raises `FeatureError` where a shard is
        not complete, or was made by another extractor.
        """
        sets = self._finished()
        for (set_name, split), (fingerprint, shards) in splits.items():
            entry = sets.setdefault(set_name, {"arrays": [], "splits": {}})
            entry["arrays"] = typed_json.dump(list(arrays[set_name]))
            entry["splits"][split] = self._split_entry(set_name, split, fingerprint, shards, arrays[set_name])
        value: dict[str, Any] = {
            "schema_version": schema.SCHEMA_VERSION,
            "name": self._name,
            "extractor": self._extractor,
            "sets": sets,
        }
        files.write_json(self.folder / FEATURE_JSON, {**value, "sha256": hash_json(value)})
        return open_features(self.folder)

    def _finished(self) -> dict[str, Any]:
        """Return the sets that an existing feature.json of this extractor lists."""
        path = self.folder / FEATURE_JSON
        if not path.exists():
            return {}
        found = open_features(self.folder)
        if extractor_hash(found.extractor) != self._identity:
            raise FeatureError(f"{path}: made by another extractor: choose another `name`, or delete {self.folder}")
        sets: dict[str, Any] = read_json_object(path)["sets"]
        return sets

    def _split_entry(
        self, set_name: str, split: str, fingerprint: str, shards: Sequence[str], arrays: Sequence[ArraySpec]
    ) -> dict[str, Any]:
        entries: list[dict[str, Any]] = []
        failed = 0
        for shard in shards:
            stem, folder = shard.removesuffix(".tar"), self.folder / set_name / split
            path = folder / f"{stem}_stats.json"
            stats = FeatureStats.read(path)
            if stats.extractor != self._identity or set(stats.files) != set(shard_files(stem, arrays)):
                raise FeatureError(f"{path}: made by another extractor: delete {self.folder} and extract again")
            failed += len(stats.failed)
            entries.append(
                {
                    "name": shard,
                    "samples": stats.samples,
                    "rows": stats.rows,
                    "files": {**stats.files, path.name: hash_file(path)},
                }
            )
        samples = sum(int(entry["samples"]) for entry in entries)
        return {"fingerprint": fingerprint, "samples": samples, "failed": failed, "shards": entries}


def _checked(sample: Extracted, spec: ArraySpec) -> np.ndarray:
    rows = sample.rows.get(spec.name)
    if rows is None:
        return np.empty((0, *spec.shape), spec.dtype)
    if rows.shape[1:] != spec.shape:
        raise FeatureError(f"{sample.key}: {spec.name} has rows of {rows.shape[1:]}; {spec.shape} is declared")
    if spec.dtype == "float16" and len(rows) and float(np.abs(rows).max()) > float(np.finfo(np.float16).max):
        raise FeatureError(f"{sample.key}: {spec.name} has values beyond float16 (65504): set dtype=float32")
    return rows.astype(spec.dtype, copy=False)


def _write_array(path: Path, array: np.ndarray) -> tuple[str, int]:
    """Write a .npy atomically; return its sha256 and its bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with files.replacing(path) as temporary:
        with temporary.open("wb") as handle:
            handle.write(header.getvalue())
            handle.write(np.ascontiguousarray(array).tobytes())
        digest, size = hash_file(temporary), temporary.stat().st_size
    return digest, size
