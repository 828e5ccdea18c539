"""Unit vectors of samples on disk, and the exact search for those nearest to another vector.

    FOLDER/vectors.json               what the vectors are of, and which splits are complete; written last
    FOLDER/<set>/<split>/00000.npy    float16 (N, D), each row of length 1: the samples of shard 00000
    FOLDER/<set>/<split>/00000.parquet    key, first_row, rows (always 1): the layout of `features/` in a dataset

Vectors are memory-mapped and compared block by block, so 4 million of 256 numbers need 2 GB of page cache and no copy.

Shapes in names: N samples, D width.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.dataset import read_bounded
from shards.files import replacing, write_json
from shards.schema import SETS
from shards.stats import SPLITS, ShardError, read_json_object

FACTS = "vectors.json"
_MANY = 200_000  # vectors from which on torch, which converts float16 four times as fast as NumPy, is worth its import
_BLOCK = 1024  # rows that are converted at a time by NumPy: they stay in the processor's cache
_MAX_TIES = 10_000  # vectors of one similarity that are told apart by their keys


class VectorError(ValueError):
    """Vectors that are absent or damaged, or that do not fit the query."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Near:
    """A sample among the nearest ones."""

    score: float  # cosine of its vector and the query's
    key: str
    set_name: str
    split: str


class VectorSet:
    """The vectors of one split, memory-mapped."""

    def __init__(self, folder: Path, set_name: str, split: str) -> None:
        """`folder` is that of the split; raises `VectorError` if a file in it does not fit the others."""
        self.folder, self.set_name, self.split = folder, set_name, split
        self._paths = sorted(folder.glob("*.npy"), key=lambda path: (len(path.stem), path.stem))
        self._parts = [_map(path) for path in self._paths]
        widths = {part.shape[1] for part in self._parts}
        if len(widths) > 1:
            raise VectorError(f"{folder}: vectors of different widths: {', '.join(map(str, sorted(widths)))}")
        self.width = next(iter(widths), 0)
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self._keys = functools.lru_cache(maxsize=256)(self._read_keys)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def vector_of(self, key: str, shard: str) -> np.ndarray | None:
        """Return the vector (D,) of a sample in the tar `shard`, float32; None if it has none."""
        for number, path in enumerate(self._paths):
            if path.stem == Path(shard).stem:
                keys = self._keys(number)
                return np.asarray(self._parts[number][keys.index(key)], np.float32) if key in keys else None
        return None

    def scores(self, query_D: np.ndarray) -> np.ndarray:
        """Return the cosine of each vector and a query of length 1, (N,) float32."""
        if len(self) and query_D.shape != (self.width,):
            raise VectorError(f"{self.folder}: vectors of {self.width} numbers; the query has {query_D.shape}")
        scores_N: np.ndarray = np.empty(len(self), np.float32)
        _score(self._parts, np.ascontiguousarray(query_D, np.float32), scores_N)
        return scores_N

    def nearest(self, query_D: np.ndarray, count: int) -> list[Near]:
        """Return the `count` nearest samples, nearest first, ties in the order of keys."""
        scores_N = self.scores(query_D)
        if count < len(scores_N):
            edge = np.partition(scores_N, -count)[-count]
            above = np.flatnonzero(scores_N > edge)
            rows = np.concatenate([above, np.flatnonzero(scores_N == edge)[:_MAX_TIES]])
        else:
            rows = np.arange(len(scores_N))
        found = [
            Near(score=float(scores_N[row]), key=key, set_name=self.set_name, split=self.split)
            for row, key in zip(rows.tolist(), self._keys_of(rows), strict=True)
        ]
        return sorted(found, key=lambda near: (-near.score, near.key))[:count]

    def _keys_of(self, rows: np.ndarray) -> list[str]:
        parts = np.searchsorted(self._ends, rows, side="right")
        starts = self._ends - [len(part) for part in self._parts] if self._parts else self._ends
        return [self._keys(part)[row - starts[part]] for part, row in zip(parts.tolist(), rows.tolist(), strict=True)]

    def _read_keys(self, number: int) -> list[str]:
        path = self._paths[number].with_suffix(".parquet")
        try:
            keys: list[str] = read_bounded(path, ["key"], rows=len(self._parts[number]))["key"].to_pylist()
        except (OSError, ShardError, pa.ArrowException, KeyError) as error:
            raise VectorError(f"{path}: cannot be read: {error}") from None
        return keys


def nearest(query_D: np.ndarray, sets: Iterable[VectorSet], count: int) -> dict[str, list[Near]]:
    """Return set → its `count` samples nearest to a query of any length; the splits of a set are ranked together."""
    query_D = unit(query_D[None].astype(np.float32))[0]
    found: dict[str, list[Near]] = {}
    for one in sets:
        found.setdefault(one.set_name, []).extend(one.nearest(query_D, count))
    return {name: sorted(near, key=lambda each: (-each.score, each.key))[:count] for name, near in found.items()}


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Return float32 rows of length 1; rows of length 0 stay."""
    lengths_N1 = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))[:, None]
    result_ND: np.ndarray = (vectors_ND / np.maximum(lengths_N1, 1e-12).astype(np.float32)).astype(np.float32)
    return result_ND


def write_vectors(folder: Path, shard: str, keys: Sequence[str], vectors_ND: np.ndarray) -> None:
    """Write the vectors of one shard's samples into the folder of their split, as rows of length 1."""
    stem = Path(shard).stem
    rows = pa.array(np.arange(len(keys)))
    table = pa.table(
        {"key": pa.array(list(keys), pa.string()), "first_row": rows, "rows": pa.array([1] * len(keys), pa.int64())}
    )
    with replacing(folder / f"{stem}.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd", store_schema=False)
    with replacing(folder / f"{stem}.npy") as temporary, temporary.open("wb") as handle:
        np.save(handle, unit(vectors_ND).astype(np.float16), allow_pickle=False)


def finish_vectors(folder: Path, set_name: str, split: str, fingerprint: str, **facts: Any) -> None:
    """Mark the vectors of a split as complete: of the shards with a fingerprint; `facts` are what else is known."""
    known = read_facts(folder) or {}
    splits = known.get("splits") if isinstance(known.get("splits"), dict) else {}
    write_json(folder / FACTS, {**known, **facts, "splits": {**(splits or {}), f"{set_name}/{split}": fingerprint}})


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return what the vectors in a folder are of; None if there are none that are complete."""
    try:
        return read_json_object(folder / FACTS)
    except ShardError:
        return None


def finished(folder: Path, set_name: str, split: str) -> str:
    """Return the fingerprint of the shards that the complete vectors of a split are of; empty without any."""
    splits = (read_facts(folder) or {}).get("splits")
    return str(splits.get(f"{set_name}/{split}", "")) if isinstance(splits, dict) else ""


def open_vectors(folder: Path) -> Iterator[VectorSet]:
    """Yield the complete vectors in a folder, split by split in the order of `schema.SETS`."""
    for set_name in SETS:
        for split in SPLITS:
            if finished(folder, set_name, split):
                yield VectorSet(folder / set_name / split, set_name, split)


def _map(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # copy on write: torch wants writable memory
    except (OSError, ValueError) as error:
        raise VectorError(f"{path}: cannot be read: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype != np.float16:
        raise VectorError(f"{path}: expected rows of float16, found {array.dtype} {array.shape}")
    return array


def _score(parts: Sequence[np.ndarray], query_D: np.ndarray, scores_N: np.ndarray) -> None:
    """Write the products of the rows of all parts and a query into `scores_N`."""
    ends = np.cumsum([len(part) for part in parts])
    outs = [scores_N[end - len(part) : end] for part, end in zip(parts, ends.tolist(), strict=True)]
    if len(scores_N) < _MANY or importlib.util.find_spec("torch") is None:
        for part, out in zip(parts, outs, strict=True):
            _by_numpy(part, query_D, out)
        return
    import torch

    local, none = threading.local(), torch.empty(0)

    def by_torch(part_ND: np.ndarray, out_N: np.ndarray) -> None:
        if getattr(local, "buffer", none).numel() < part_ND.size:
            local.buffer = torch.empty(part_ND.size)
        rows = local.buffer[: part_ND.size].view(part_ND.shape)
        rows.copy_(torch.from_numpy(part_ND))
        torch.mv(rows, torch.from_numpy(query_D), out=torch.from_numpy(out_N))

    # A thread a core, each with its own parts: OpenMP's threads would wait for each other after every part.
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(by_torch, parts, outs):
                pass
    finally:
        torch.set_num_threads(threads)


def _by_numpy(part_ND: np.ndarray, query_D: np.ndarray, out_N: np.ndarray) -> None:
    for begin in range(0, len(part_ND), _BLOCK):
        np.dot(part_ND[begin : begin + _BLOCK].astype(np.float32), query_D, out=out_N[begin : begin + _BLOCK])
