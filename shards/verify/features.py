"""Checks the feature sets in ROOT/features: their files against their hashes, their rows against the samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards import files, schema
from shards.dataset import FEATURES, hash_file, read_rows
from shards.features.contract import (
    FEATURE_JSON,
    FeatureSet,
    FeatureSplit,
    FeatureStats,
    ShardFeatures,
    extractor_hash,
    index_problems,
    open_features,
)
from shards.stats import ShardError, file_problem
from shards.verify.findings import MOVE, Finding, without_root

EXTRACT = "run preprocessing/extract_features.py again, after deleting what is wrong"
_ROWS = 1 << 16  # that are read at a time


def feature_notes(root: Path) -> Iterator[str]:
    """Yield which folders in ROOT/features are not finished, so that nothing reads them."""
    for folder in _folders(root):
        if not os.path.lexists(folder / FEATURE_JSON):
            yield f"{FEATURES}/{folder.name}: no {FEATURE_JSON}: an extraction that is not finished"


def feature_findings(root: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield problems of all finished feature sets: each file, fingerprint, row and key is compared."""
    for folder in _folders(root):
        name = f"{FEATURES}/{folder.name}"
        if not os.path.lexists(folder / FEATURE_JSON):
            continue
        try:
            features = open_features(folder)
        except (ShardError, OSError) as error:
            yield Finding(file=f"{name}/{FEATURE_JSON}", problem=without_root(error, root), remedy=EXTRACT)
            continue
        if features.name != folder.name:
            problem = f"its name is {features.name!r}, that of its folder {folder.name!r}"
            yield Finding(file=f"{name}/{FEATURE_JSON}", problem=problem, remedy="rename the folder")
        yield from _unexpected(root, features)
        for split in features.splits.values():
            yield from _split_findings(root, features, split, manifest)


def _folders(root: Path) -> list[Path]:
    folder = root / FEATURES
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _unexpected(root: Path, features: FeatureSet) -> Iterator[Finding]:
    expected = {features.folder / FEATURE_JSON}
    for split in features.splits.values():
        expected |= {shard.folder / name for shard in split.shards for name in shard.files}
    for path in sorted(features.folder.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            problem = f"a symbolic link to {os.readlink(path)}, outside the dataset: a copy of the folder would lack it"
            yield Finding(file=name, problem=problem, remedy="copy what the link leads to: cp -RL FROM TO")
        elif path.is_dir() or path in expected:
            continue
        elif path.name.startswith(files.TEMPORARY):
            problem = "temporary file of a killed writer"
            yield Finding(file=name, problem=problem, remedy="delete it, unless an extraction is running")
        else:
            problem = f"unexpected file: {FEATURE_JSON} does not list it"
            yield Finding(file=name, problem=problem, remedy=f"finish the extraction, or {MOVE}")


def _split_findings(
    root: Path, features: FeatureSet, split: FeatureSplit, manifest: Mapping[str, Any]
) -> Iterator[Finding]:
    name = f"{FEATURES}/{features.folder.name}/{FEATURE_JSON}"
    place = f"{split.set_name}/{split.split}"
    listed = manifest.get("sets", {}).get(split.set_name, {}).get(split.split) if manifest else None
    if split.set_name in schema.SETS and listed is None:
        yield Finding(file=name, problem=f"it has features of {place}, which the dataset has not", remedy=EXTRACT)
        return
    if listed is not None and listed.get("fingerprint") != split.fingerprint:
        problem = (
            f"its features of {place} are of other shards: fingerprint {split.fingerprint!r:.80}, that of the dataset "
            f"{listed.get('fingerprint')!r:.80}"
        )
        yield Finding(file=name, problem=problem, remedy=EXTRACT)
    tars = {shard.get("name"): shard for shard in (listed or {}).get("shards", []) if isinstance(shard, dict)}
    for shard in split.shards:
        entry = tars.get(shard.name)
        yield from _shard_findings(root, features, split, shard, entry)


def _shard_findings(
    root: Path, features: FeatureSet, split: FeatureSplit, shard: ShardFeatures, tar: Mapping[str, Any] | None
) -> Iterator[Finding]:
    is_whole = True
    for file, sha256 in shard.files.items():
        path = shard.folder / file
        name = path.relative_to(root).as_posix()
        if not os.path.lexists(path):
            problem = f"absent; {FEATURE_JSON} lists it"
        elif kind := file_problem(path):
            problem = f"{kind} in place of a file"
        elif (actual := hash_file(path)) != sha256:
            problem = f"sha256 is {actual}; in {FEATURE_JSON} it is {sha256}"
        else:
            continue
        is_whole = False
        yield Finding(file=name, problem=problem, remedy=EXTRACT)
    if not is_whole:
        return
    stem = (shard.folder / shard.stem).relative_to(root).as_posix()
    try:
        for problem in _row_problems(root, features, split, shard, tar):
            yield Finding(file=f"{stem}.parquet", problem=problem, remedy=EXTRACT)
    except ShardError as error:
        yield Finding(file=f"{stem}.npy", problem=without_root(error, root), remedy=EXTRACT)


def _row_problems(
    root: Path, features: FeatureSet, split: FeatureSplit, shard: ShardFeatures, tar: Mapping[str, Any] | None
) -> Iterator[str]:
    stats = FeatureStats.read(shard.folder / f"{shard.stem}_stats.json")
    if stats.extractor != extractor_hash(features.extractor):
        yield "its stats file is of another extractor"
    if stats.samples != shard.samples or dict(stats.rows) != dict(shard.rows):
        yield f"its stats file has {stats.samples} samples with rows {dict(stats.rows)}"
    if tar is not None and stats.tar_sha256 != tar.get("sha256"):
        yield f"made of a tar with sha256 {stats.tar_sha256}; that of the dataset has {tar.get('sha256')!r:.80}"
    table = shard.table()
    yield from index_problems(table, shard.arrays, shard.rows)
    if tar is not None:
        parquet = root / split.set_name / split.split / f"{shard.stem}.parquet"
        if table["key"].to_pylist() != read_rows(parquet, ["key"])["key"].to_pylist():
            yield f"its keys are not those of {split.set_name}/{split.split}/{shard.name}, in order"
    for spec in shard.arrays:
        array = shard.array(spec.name)
        if spec.dtype != "int32" and not all(np.isfinite(part).all() for part in _parts(array)):
            yield f"{spec.name}: some values are not finite"


def _parts(array: np.ndarray) -> Sequence[np.ndarray]:
    return [array[start : start + _ROWS] for start in range(0, len(array), _ROWS)]
