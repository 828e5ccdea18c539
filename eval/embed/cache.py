"""Caches embeddings on disk, keyed by everything that affects them; an interrupted evaluation keeps its parts.

CACHE/<16 hex digits>/feature.json …           all rows: a feature set, see docs/shards.md
                      part-….safetensors .json some rows, until all are there

The folder's name is the hash of the cache key, which is the feature set's `extractor`. Each JSON file of a part holds
the SHA-256 of its tensors and is written after them. An entry that is damaged or has another key is ignored with a
warning and computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from eval.embed.rows import EmbeddedRows
from eval.embed.settings import EmbedError
from shards import typed_json
from shards.dataset import hash_file
from shards.features import ArraySpec, Extracted, FeatureSet, FeatureWriter, open_features
from shards.features.contract import FEATURE_JSON
from shards.files import replacing, write_json
from shards.stats import FailedItem, ShardError

VERSION = 2
logger = logging.getLogger(__name__)


class _UnusableEntryError(ValueError):
    """A cache entry that is damaged or has another key."""


@dataclass(frozen=True, kw_only=True)
class Covered:
    """What the rows of an entry are of: the samples of a split, shard by shard, or a list of texts."""

    set_name: str
    split: str
    fingerprint: str
    shards: Sequence[tuple[str, str, Sequence[str]]]  # name of the tar, its sha256, the keys of all samples in it
    keys: Sequence[str]  # of the samples that are embedded, in the order of the shards: row 0, 1, …
    array: str  # name
    level: str  # of a row; see shards.features
    width: int
    extractor: Mapping[str, Any]  # what made them, besides the cache key


@dataclass(frozen=True, kw_only=True)
class _EntryFacts:
    """The JSON file of a part."""

    identity: str  # the cache key
    sha256: str  # of the tensors' file
    failed: dict[str, str]  # row → reason
    covered: list[list[int]]  # ranges of batches


class CacheEntry:
    """The folder of one cache key."""

    def __init__(self, cache: Path, identity: Mapping[str, Any], covered: Covered) -> None:
        """`identity` is JSON-ready and holds everything that affects the embeddings."""
        text = json.dumps({"version": VERSION, **identity}, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._covered = covered
        self.folder = cache / self._key[:16]
        self._extractor = {**covered.extractor, "cache_key": self._key, "evaluation": dict(identity)}
        self._spec = ArraySpec(name=covered.array, level=covered.level, dtype="float32", shape=(covered.width,))

    def read(self) -> EmbeddedRows | None:
        """Return all rows, or None if they are absent or unusable."""
        path = self.folder / FEATURE_JSON
        if not path.exists():
            return None
        try:
            return self._rows(open_features(self.folder))
        except (OSError, ShardError, _UnusableEntryError) as error:
            logger.warning("%s: ignored, computing it again: %s", path, error)
            return None

    def write(self, rows: EmbeddedRows) -> None:
        """Write all rows and remove the parts; raise `EmbedError` if the folder cannot be written."""
        covered, spec = self._covered, self._spec
        values = rows.values if rows.values.ndim == 3 else rows.values[:, None]
        found = dict(zip((covered.keys[row] for row in rows.rows.tolist()), values, strict=True))
        failed = {covered.keys[row]: reason for row, reason in rows.failed.items()}
        try:
            (self.folder / FEATURE_JSON).unlink(missing_ok=True)  # of a damaged entry
            writer = FeatureWriter(self.folder, name=self.folder.name, extractor=self._extractor)
            for name, sha256, keys in covered.shards:
                samples = [self._sample(key, found, failed) for key in keys]
                writer.write(covered.set_name, covered.split, name, sha256, [spec], samples)
            names = [name for name, _, _ in covered.shards]
            writer.finish({covered.set_name: [spec]}, {(covered.set_name, covered.split): (covered.fingerprint, names)})
            for path in self.folder.glob("part-*"):
                path.unlink(missing_ok=True)
        except (OSError, ShardError) as error:
            raise self._unwritable(error) from error

    def read_parts(self) -> Iterator[EmbeddedRows]:
        """Yield the usable parts in any order; they overlap if two evaluations ran at the same time."""
        for path in sorted(self.folder.glob("part-*.json")):
            try:
                yield self._parse(path)
            except (OSError, _UnusableEntryError) as error:
                logger.warning("%s: ignored, computing it again: %s", path, error)

    def write_part(self, rows: EmbeddedRows) -> None:
        """Write some rows, named by the first range of batches that they cover; raise `EmbedError` as `write` does."""
        (begin, end), *_ = rows.covered
        name = f"part-{begin:08d}-{end:08d}"
        arrays = {"rows": np.ascontiguousarray(rows.rows), "values": np.ascontiguousarray(rows.values)}
        try:
            with replacing(self.folder / f"{name}.safetensors") as temporary:
                save_file(arrays, temporary)
                sha256 = hash_file(temporary)
            facts = _EntryFacts(
                identity=self._key,
                sha256=sha256,
                failed={str(row): reason for row, reason in rows.failed.items()},
                covered=[list(batches) for batches in rows.covered],
            )
            write_json(self.folder / f"{name}.json", vars(facts))
        except (OSError, SafetensorError) as error:
            raise self._unwritable(error) from error

    def _sample(self, key: str, found: Mapping[str, np.ndarray], failed: Mapping[str, str]) -> Extracted:
        if key in found:
            return Extracted(key=key, rows={self._spec.name: found[key]})
        item = FailedItem(key=key, reason="embedding", detail=failed[key]) if key in failed else None
        return Extracted(key=key, rows={}, failed=item)

    def _rows(self, features: FeatureSet) -> EmbeddedRows:
        """Return the rows of a complete entry; raise where it is altered or of another key."""
        if features.extractor.get("cache_key") != self._key:
            raise _UnusableEntryError("cache key mismatch")
        split = features.split(self._covered.set_name, self._covered.split, fingerprint=self._covered.fingerprint)
        place = {key: row for row, key in enumerate(self._covered.keys)}
        rows: list[int] = []
        values: list[np.ndarray] = []
        failed: dict[int, str] = {}
        for shard, (name, _, keys) in zip(split.shards, self._covered.shards, strict=True):
            for file, sha256 in shard.files.items():
                if hash_file(shard.folder / file) != sha256:
                    raise _UnusableEntryError(f"{name}: {file}: SHA-256 mismatch")
            table = shard.table()
            if table["key"].to_pylist() != list(keys):
                raise _UnusableEntryError(f"{name}: other keys")
            embedded = [keys[at] for at in np.flatnonzero(table["rows"].to_numpy()).tolist()]
            rows += [place[key] for key in embedded]
            values.append(shard.array(self._spec.name).reshape(len(embedded), -1, self._spec.shape[0]))
            failed |= {place[key]: reason for key, reason in shard.failed().items()}
        joined = values[0] if len(values) == 1 else np.concatenate(values)
        if self._spec.level != "window":
            joined = joined[:, 0]
        return EmbeddedRows(rows=np.array(rows, np.int64), values=joined, failed=failed)

    def _parse(self, path: Path) -> EmbeddedRows:
        tensors = path.with_suffix(".safetensors")
        try:
            facts = typed_json.parse(_EntryFacts, json.loads(path.read_bytes()))
            if facts.identity != self._key:
                raise _UnusableEntryError("cache key mismatch")
            if hash_file(tensors) != facts.sha256:
                raise _UnusableEntryError(f"{tensors.name}: SHA-256 mismatch")
            arrays = load_file(tensors)
        except (typed_json.TypedJsonError, json.JSONDecodeError, UnicodeDecodeError, ShardError) as error:
            raise _UnusableEntryError(f"malformed: {error}") from None
        except SafetensorError as error:
            raise _UnusableEntryError(f"{tensors.name}: {error}") from None
        if not all(row.isdecimal() for row in facts.failed) or any(len(batches) != 2 for batches in facts.covered):
            raise _UnusableEntryError("malformed row numbers or ranges of batches")
        return EmbeddedRows(
            rows=arrays["rows"],
            values=arrays["values"],
            failed={int(row): reason for row, reason in facts.failed.items()},
            covered=tuple((begin, end) for begin, end in facts.covered),
        )

    def _unwritable(self, error: Exception) -> EmbedError:
        return EmbedError(f"{self.folder}: embeddings cannot be cached: {error}; cache=null does without")
