"""Turns a feature set into unit vectors for search: one of each sample, the mean of its rows, made once.

Shapes in names: R rows of a shard, N samples, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shards.dataset import Dataset, hash_file
from shards.features import FeatureError, FeatureSet, FeatureSplit, ShardFeatures
from shards.features.contract import FEATURE_JSON, index_columns, index_problems
from shards.search.making import Progress
from shards.search.vectors import VectorSet, finish_vectors, finished, open_vectors, write_vectors

ARRAYS = ("aggregate", "video")  # of a feature set, the first that a split has: of whole samples, then of their parts


def vectors_of_features(
    features: FeatureSet, dataset: Dataset, folder: Path, *, progress: Progress | None = None
) -> list[VectorSet]:
    """Return the vectors of a feature set's samples, below `folder`, where they are written if they are not there yet.

    A sample's vector is its row of `aggregate`, else the mean of its rows of `video`. Splits that the dataset does not
    have in this state are left out. Raises `FeatureError` if no other has either array.
    """
    current = {(set_name, name): split.fingerprint for set_name, name, split in dataset.splits()}
    splits = {
        pair: name
        for pair, split in features.splits.items()
        if current.get(pair) == split.fingerprint and (name := _array_of(split)) is not None
    }
    if not splits:
        raise FeatureError(f"{features.folder}: no array of {' or '.join(ARRAYS)} of these shards: nothing to search")
    digest = hash_file(features.folder / FEATURE_JSON)
    folder = folder / f"vectors-{digest[:16]}"
    missing = [pair for pair in splits if finished(folder, *pair) != current[pair]]
    done, total = 0, sum(features.splits[pair].samples for pair in missing)
    for set_name, split in missing:
        for shard in features.splits[set_name, split].shards:
            keys, vectors_ND = _pooled(shard, splits[set_name, split])
            write_vectors(folder / set_name / split, shard.name, keys, vectors_ND)
            done += shard.samples
            if progress is not None:
                progress(done, total)
        facts = {"features": str(features.folder), "checkpoint": str(features.extractor.get("checkpoint", ""))}
        finish_vectors(folder, set_name, split, current[set_name, split], **facts)
    return list(open_vectors(folder))


def _array_of(split: FeatureSplit) -> str | None:
    vectors = {spec.name for spec in split.arrays if len(spec.shape) == 1 and spec.dtype != "int32"}
    return next((name for name in ARRAYS if name in vectors), None)


def _pooled(shard: ShardFeatures, array: str) -> tuple[list[str], np.ndarray]:
    """Return the keys of a shard's samples that have rows, and the means of these, (N, D) float32."""
    table, rows_RD = shard.table(), np.asarray(shard.array(array), np.float32)
    problem = next(index_problems(table, shard.arrays, shard.rows), None)
    if problem is not None:
        raise FeatureError(f"{shard.path(array)}: {problem}: run python -m shards.verify")
    first_column, count_column = index_columns(shard.arrays, array)
    first, count = table[first_column].to_numpy(), table[count_column].to_numpy()
    has_rows = count > 0
    keys = [key for key, there in zip(table["key"].to_pylist(), has_rows.tolist(), strict=True) if there]
    if not keys:
        return [], np.empty((0, rows_RD.shape[1]), np.float32)
    sums_ND = np.add.reduceat(rows_RD, first[has_rows], axis=0)
    return keys, sums_ND / count[has_rows, None].astype(np.float32)
