"""Keeps embeddings on disk by all that decides them: whole, checked, and in parts that outlive a killed evaluation.

CACHE/<16 hex digits>/identity.json            what the folder's name is the hash of, for people
                      whole.safetensors .json  all rows
                      part-….safetensors .json some of them, until all are there

A JSON file has the SHA-256 of the tensors beside it and is written after them. What does not fit is computed again,
with a warning that names it; nothing of a cache is ever needed.
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

from shards.files import replacing, write_json

VERSION = 1
WHOLE = "whole"
IDENTITY = "identity.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedRows:
    """Some rows of what is embedded: which, their embeddings, and what stands in the way of the others."""

    rows: np.ndarray  # int64, ascending, those embedded
    values: np.ndarray  # float32, one entry a row
    failed: Mapping[int, str]  # row → reason
    covered: tuple[tuple[int, int], ...] = ()  # batches, as half-open ranges, whose rows these are


class CacheEntry:
    """One folder of the cache."""

    def __init__(self, cache: Path, identity: Mapping[str, Any]) -> None:
        """`identity` is plain JSON; everything that decides a number belongs into it."""
        text = json.dumps({"version": VERSION, **identity}, sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        self._identity = dict(identity)
        self.folder = cache / self._digest[:16]

    def read(self) -> CachedRows | None:
        """Return all rows, None where they are not there or not sound."""
        return self._read(self.folder / f"{WHOLE}.json")

    def write(self, rows: CachedRows) -> None:
        """Keep all rows; the parts are then of no use and go."""
        self._write(WHOLE, rows)
        for path in self.folder.glob("part-*"):
            path.unlink(missing_ok=True)

    def read_parts(self) -> Iterator[CachedRows]:
        """Yield the sound parts, in no order; they may overlap where an evaluation ran twice at a time."""
        for path in sorted(self.folder.glob("part-*.json")):
            rows = self._read(path)
            if rows is not None:
                yield rows

    def write_part(self, rows: CachedRows) -> None:
        """Keep some rows, named by the batches they cover."""
        (begin, end), *_ = rows.covered
        self._write(f"part-{begin:08d}-{end:08d}", rows)

    def _write(self, name: str, rows: CachedRows) -> None:
        if not (self.folder / IDENTITY).exists():
            write_json(self.folder / IDENTITY, self._identity)
        tensors = self.folder / f"{name}.safetensors"
        with replacing(tensors) as temporary:
            save_file({"rows": np.ascontiguousarray(rows.rows), "values": np.ascontiguousarray(rows.values)}, temporary)
            digest = _sha256(temporary)
        about = {
            "identity": self._digest,
            "sha256": digest,
            "failed": {str(row): reason for row, reason in rows.failed.items()},
            "covered": [list(span) for span in rows.covered],
        }
        write_json(self.folder / f"{name}.json", about)

    def _read(self, path: Path) -> CachedRows | None:
        tensors = path.with_suffix(".safetensors")
        try:
            about = json.loads(path.read_bytes())
            if about["identity"] != self._digest:
                raise ValueError("it is of something else")
            if _sha256(tensors) != about["sha256"]:
                raise ValueError(f"the SHA-256 of {tensors.name} is another")
            found = load_file(tensors)
            failed = {int(row): str(reason) for row, reason in about["failed"].items()}
            covered = tuple((int(begin), int(end)) for begin, end in about["covered"])
            rows = CachedRows(rows=found["rows"], values=found["values"], failed=failed, covered=covered)
            if len(rows.rows) != len(rows.values):
                raise ValueError(f"{len(rows.rows)} rows and {len(rows.values)} embeddings")
            return rows
        except FileNotFoundError as error:
            if Path(error.filename or "") != path:
                logger.warning("%s: passed over, made again: %s", path, error)
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            logger.warning("%s: passed over, made again: %s", path, error)
            return None


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
