"""Caches embeddings on disk, keyed by everything that affects them; an interrupted evaluation keeps its parts.

CACHE/<16 hex digits>/identity.json            the cache key: the folder's name is its hash
                      whole.safetensors .json  all rows
                      part-….safetensors .json some rows, until all are there

Each JSON file holds the SHA-256 of the tensors of the same name and is written after them. An entry that is damaged or
has another key is ignored with a warning and computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from eval.embed.rows import EmbeddedRows
from eval.embed.settings import EmbedError
from shards import typed_json
from shards.files import replacing, write_json

VERSION = 1
WHOLE = "whole"
IDENTITY = "identity.json"
logger = logging.getLogger(__name__)


class _UnusableEntryError(ValueError):
    """A cache entry that is damaged or has another key."""


@dataclass(frozen=True, kw_only=True)
class _EntryFacts:
    """The JSON file of an entry."""

    identity: str  # the cache key
    sha256: str  # of the tensors' file
    failed: dict[str, str]  # row → reason
    covered: list[list[int]]  # ranges of batches


class CacheEntry:
    """The folder of one cache key."""

    def __init__(self, cache: Path, identity: Mapping[str, Any]) -> None:
        """`identity` is JSON-ready and holds everything that affects the embeddings."""
        text = json.dumps({"version": VERSION, **identity}, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._identity = dict(identity)
        self.folder = cache / self._key[:16]

    def read(self) -> EmbeddedRows | None:
        """Return all rows, or None if they are absent or unusable."""
        return self._read(self.folder / f"{WHOLE}.json")

    def write(self, rows: EmbeddedRows) -> None:
        """Write all rows and remove the parts; raise `EmbedError` if the folder cannot be written."""
        self._write(WHOLE, rows)
        for path in self.folder.glob("part-*"):
            path.unlink(missing_ok=True)

    def read_parts(self) -> Iterator[EmbeddedRows]:
        """Yield the usable parts in any order; they overlap if two evaluations ran at the same time."""
        for path in sorted(self.folder.glob("part-*.json")):
            rows = self._read(path)
            if rows is not None:
                yield rows

    def write_part(self, rows: EmbeddedRows) -> None:
        """Write some rows, named by the first range of batches that they cover; raise `EmbedError` as `write` does."""
        (begin, end), *_ = rows.covered
        self._write(f"part-{begin:08d}-{end:08d}", rows)

    def _write(self, name: str, rows: EmbeddedRows) -> None:
        arrays = {"rows": np.ascontiguousarray(rows.rows), "values": np.ascontiguousarray(rows.values)}
        try:
            if not (self.folder / IDENTITY).exists():
                write_json(self.folder / IDENTITY, self._identity)
            with replacing(self.folder / f"{name}.safetensors") as temporary:
                save_file(arrays, temporary)
                sha256 = _sha256(temporary)
            facts = _EntryFacts(
                identity=self._key,
                sha256=sha256,
                failed={str(row): reason for row, reason in rows.failed.items()},
                covered=[list(batches) for batches in rows.covered],
            )
            write_json(self.folder / f"{name}.json", vars(facts))
        except (OSError, SafetensorError) as error:
            raise EmbedError(f"{self.folder}: embeddings cannot be cached: {error}; cache=null does without") from error

    def _read(self, path: Path) -> EmbeddedRows | None:
        if not path.exists():
            return None
        try:
            return self._parse(path)
        except (OSError, _UnusableEntryError) as error:
            logger.warning("%s: ignored, computing it again: %s", path, error)
            return None

    def _parse(self, path: Path) -> EmbeddedRows:
        tensors = path.with_suffix(".safetensors")
        try:
            facts = typed_json.parse(_EntryFacts, json.loads(path.read_bytes()))
            if facts.identity != self._key:
                raise _UnusableEntryError("cache key mismatch")
            if _sha256(tensors) != facts.sha256:
                raise _UnusableEntryError(f"{tensors.name}: SHA-256 mismatch")
            arrays = load_file(tensors)
        except (typed_json.TypedJsonError, json.JSONDecodeError, UnicodeDecodeError) as error:
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


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
