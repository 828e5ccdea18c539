"""Exports that consist of tars: `features-tar`, a feature set as members, and `hf`, a folder ready for the hub."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards import files, tar
from shards.dataset import CARD, DENYLIST, FEATURES, MANIFEST, Dataset, Shard, Split, hash_file
from shards.export.job import ExportError, Format, Options, ShardExport
from shards.features import FeatureSplit, features_folder, open_features
from shards.features.contract import index_columns

_Results = Sequence[tuple[Split, Shard, Mapping[str, Any]]]
_INDEXES = ("sizes.json", "shardindex.json")


def _features_of(dataset: Dataset, split: Split, options: Options) -> FeatureSplit:
    if options.features is None:
        raise ExportError("features-tar: --features NAME says which feature set; see preprocessing/extract_features.py")
    found = open_features(features_folder(dataset, options.features))
    return found.split(split.set_name, split.split, fingerprint=split.fingerprint)


def _has_features(split: Split, options: Options) -> bool:
    if options.features is None:
        raise ExportError("features-tar: --features NAME says which feature set; see preprocessing/extract_features.py")
    return True


def _features_shard(work: ShardExport) -> dict[str, Any]:
    """Write OUT/<set>/<split>/<number>.tar with a member `<key>.<array>.npy` of each array of each sample."""
    features = _features_of(work.dataset, work.split, work.options)
    shard = next(one for one in features.shards if one.name == work.shard.name)
    table = shard.table()
    arrays = {spec.name: shard.array(spec.name) for spec in shard.arrays}
    columns = {spec.name: index_columns(shard.arrays, spec.name) for spec in shard.arrays}
    denied = work.dataset.denylist
    videos = work.shard.rows(["video_uid"])["video_uid"].to_pylist()
    digest, position, samples = hashlib.sha256(), 0, 0
    path = work.out / f"{work.place}.tar"
    with files.replacing(path) as temporary, temporary.open("wb") as handle:

        def write(data: bytes) -> None:
            nonlocal position
            handle.write(data)
            digest.update(data)
            position += len(data)

        for row, video in zip(table.to_pylist(), videos, strict=True):
            if video in denied:
                continue
            samples += 1
            for name, array in arrays.items():
                first, count = (row[column] for column in columns[name])
                data = _npy(np.asarray(array[first : first + count]))
                write(tar.header(f"{row['key']}.{name}.npy", len(data)) + data + bytes(-len(data) % tar.BLOCK))
        write(tar.end(position))
    return {"samples": samples, "bytes": position, "sha256": digest.hexdigest()}


def _features_finish(dataset: Dataset, out: Path, options: Options, results: _Results) -> None:
    """Write sizes.json beside the tars of each split, as open_clip reads it."""
    for set_name, split in dict.fromkeys((split.set_name, split.split) for split, _, _ in results):
        sizes = {
            shard.name: int(result["samples"])
            for one, shard, result in results
            if (one.set_name, one.split) == (set_name, split)
        }
        files.write_json(out / set_name / split / "sizes.json", sizes)


def _npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return sink.getvalue()


def _hub_shard(work: ShardExport) -> dict[str, Any]:
    """Link or copy a shard's tar, index and stats file."""
    for path in (work.shard.path, work.shard.parquet, work.shard.path.with_name(f"{work.stem}_stats.json")):
        _place(path, work.out / path.relative_to(work.dataset.root))
    if hash_file(work.out / f"{work.place}.tar") != work.shard.sha256:
        raise ExportError(f"{work.shard.path}: altered since it was written: run shards.verify")
    return {"samples": work.shard.samples}


def _hub_finish(dataset: Dataset, out: Path, options: Options, results: _Results) -> None:
    """Add what is about the whole dataset, and .gitattributes that has the hub store tars as large files."""
    known = {(split.set_name, split.split) for split, _, _ in results}
    every = {(set_name, split) for set_name, split, _ in dataset.splits()}
    if known != every:
        absent = ", ".join(f"{a}/{b}" for a, b in sorted(every - known))
        raise ExportError(f"hf: exports whole datasets, as {MANIFEST} lists {absent}: leave out --sets and --splits")
    for set_name, split, entry in dataset.splits():
        folder = dataset.root / set_name / split
        for name in (*_INDEXES, *(f"{Path(tar_name).stem}_stats.json" for tar_name in entry.empty)):
            _place(folder / name, out / set_name / split / name)
    for name in (*dataset.files, DENYLIST):
        if (dataset.root / name).is_file():
            _place(dataset.root / name, out / name)
    if options.features is not None:
        features = open_features(features_folder(dataset, options.features))
        for path in sorted(features.folder.rglob("*")):
            if path.is_file() and not path.name.startswith(files.TEMPORARY):
                _place(path, out / FEATURES / features.name / path.relative_to(features.folder))
    files.write_bytes(
        out / ".gitattributes",
        b"".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n".encode() for pattern in _LARGE),
    )
    _place(dataset.root / MANIFEST, out / MANIFEST)
    if not (out / CARD).is_file():
        raise ExportError(f"{dataset.root}: it has no card ({CARD}): rerun the build")


_LARGE = ("*.tar", "*.parquet", "*.npy", "*.mp4")


def _place(path: Path, target: Path) -> None:
    """Link a file, or copy it where another file system is; leave one that is there with the same size and time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(target) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


FEATURES_TAR = Format(
    name="features-tar",
    title="a feature set as tars with a .npy member per sample and array (--features NAME)",
    shard=_features_shard,
    finish=_features_finish,
    splits=_has_features,
)
HF = Format(name="hf", title="a folder ready for the Hugging Face hub", shard=_hub_shard, finish=_hub_finish)
