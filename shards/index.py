"""Finishes splits and datasets: sizes.json, shardindex.json, the card and, last, dataset.json over all of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards import card, files, schema
from shards.dataset import (
    CARD,
    MANIFEST,
    TABLES,
    Dataset,
    Shard,
    Split,
    dataset_from_json,
    fingerprint,
    hash_file,
    hash_json,
    open_dataset,
    read_denylist,
    read_member,
    read_rows,
)
from shards.stats import SPLITS, FailedItem, ShardError, ShardStats, is_done, shard_number, shard_paths

__all__ = [
    "Dataset",
    "FailedItem",
    "Shard",
    "ShardError",
    "ShardStats",
    "Split",
    "fingerprint",
    "finish_split",
    "is_done",
    "open_dataset",
    "read_denylist",
    "read_member",
    "read_rows",
    "require_toolchain",
    "shard_number",
    "shard_paths",
    "write_dataset",
]


_STATS_NAME = re.compile(r"(\d{5,9})_stats\.json")


def done_shards(root: Path, set_name: str, split: str) -> list[ShardStats]:
    """Return the stats of a split's finished shards by number; numbers may have holes.

    Raise `ShardError` where a shard's stats are there but its tar is not what they say.
    """
    found = []
    for number in stats_numbers(root, set_name, split):
        tar, _, stats_path = shard_paths(root, set_name, split, number)
        stats = ShardStats.read(stats_path)
        if stats.shard != f"{set_name}/{split}/{tar.name}":
            raise ShardError(f"{stats_path}: speaks of {stats.shard}; a file of another shard was copied here")
        if not is_done(root, set_name, split, number):
            raise ShardError(f"{tar}: absent, or not of {stats.bytes} bytes as its stats say: run the build again")
        found.append(stats)
    return found


def stats_numbers(root: Path, set_name: str, split: str) -> list[int]:
    """Return the numbers of the shards of a split that have a stats file, in order."""
    matches = (_STATS_NAME.fullmatch(path.name) for path in (root / set_name / split).glob("*_stats.json"))
    return sorted(int(match[1]) for match in matches if match)


def splits_of(root: Path) -> list[tuple[str, str]]:
    """Return the (set, split) pairs with a folder below `root`, sets in the order of the contract."""
    return [(name, split) for name in schema.RECORDS for split in SPLITS if (root / name / split).is_dir()]


def require_toolchain(root: Path, toolchain: Mapping[str, str]) -> None:
    """Raise `ShardError` with both values where a finished shard below `root` was made by another toolchain."""
    for set_name, split in splits_of(root):
        for number in stats_numbers(root, set_name, split):
            if is_done(root, set_name, split, number):
                _require_same_toolchain(ShardStats.read(shard_paths(root, set_name, split, number)[2]), toolchain)


def finish_split(root: Path, set_name: str, split: str) -> list[ShardStats]:
    """Write `sizes.json` and `shardindex.json` of a split from its finished shards; return their stats by number."""
    found = done_shards(root, set_name, split)
    for name, value in split_index(found).items():
        files.write_json(root / set_name / split / name, value)
    return found


def split_index(shards: Sequence[ShardStats]) -> dict[str, Any]:
    """Return what belongs into a split's `sizes.json` and `shardindex.json`: shards without samples are left out."""
    filled = [(Path(stats.shard).name, stats) for stats in shards if stats.samples]
    entries = [{"url": name, "nsamples": stats.samples, "filesize": stats.bytes} for name, stats in filled]
    return {
        "sizes.json": {name: stats.samples for name, stats in filled},
        "shardindex.json": {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries},
    }


def write_dataset(
    root: Path,
    *,
    config: Mapping[str, Any],
    toolchain: Mapping[str, str],
    provenance: Mapping[str, Any],
    companions: Sequence[str] = (),
) -> Dataset:
    """Write every split's index files, the card and, last of all, `dataset.json`; return the dataset as it reads now.

    `config` is the resolved configuration. `provenance` says what a reader must know: `code_revision`, `annotations`
    (file name → sha256), `licence_notice` (text), `counts`, and whatever else is worth keeping; nothing of time or
    host, or equal inputs would not give equal bytes. `companions` are further files to be hashed, relative to `root`
    (`egomcq/test/questions.json`); `ledger.parquet` and `spans.parquet` are taken where they are.
    Raise `ShardError` for shards of different toolchains, for a key that is there twice, and where there is no shard.
    """
    sets: dict[str, dict[str, Any]] = {}
    for set_name, split in splits_of(root):
        found = finish_split(root, set_name, split)
        for stats in found:
            _require_same_toolchain(stats, toolchain)
        if found:
            sets.setdefault(set_name, {})[split] = split_to_json(root, found)
    if not sets:
        raise ShardError(f"{root}: there is no finished shard; sets are {', '.join(schema.RECORDS)}")
    value: dict[str, Any] = {
        "schema_version": schema.SCHEMA_VERSION,
        "config": dict(config),
        "toolchain": dict(sorted(toolchain.items())),
        "provenance": dict(provenance),
        "sets": sets,
        "files": {},
    }
    _require_unique_keys(dataset_from_json(root, value))
    tables = [name for name in TABLES if (root / name).exists()]
    value["files"] = {name: hash_file(root / name) for name in (*tables, *sorted(companions))}
    files.write_bytes(root / CARD, card.render(dataset_from_json(root, value)).encode())
    value["files"] = {CARD: hash_file(root / CARD), **value["files"]}
    files.write_json(root / MANIFEST, {**value, "sha256": hash_json(value)})
    return open_dataset(root)


def split_to_json(root: Path, found: Sequence[ShardStats]) -> dict[str, Any]:
    """Return what `dataset.json` says of a split with these shards."""
    filled = [stats for stats in found if stats.samples]
    entries = []
    for stats in found:
        stats_path = root / stats.shard.replace(".tar", "_stats.json")
        entry = {"name": Path(stats.shard).name, "samples": stats.samples, "bytes": stats.bytes, "sha256": stats.sha256}
        entries.append({**entry, "parquet_sha256": stats.parquet_sha256, "stats_sha256": hash_file(stats_path)})
    return {
        "samples": sum(stats.samples for stats in filled),
        "bytes": sum(stats.bytes for stats in filled),
        "failed": sum(len(stats.failed) for stats in found),
        "fingerprint": fingerprint((Path(stats.shard).name, stats.sha256) for stats in filled),
        "shards": [entry for entry in entries if entry["samples"]],
        "empty": [{"name": e["name"], "stats_sha256": e["stats_sha256"]} for e in entries if not e["samples"]],
    }


def _require_unique_keys(dataset: Dataset) -> None:
    keys = [shard.rows(["key"]) for _, _, split in dataset.splits() for shard in split.shards]
    column = pa.concat_tables(keys)["key"] if keys else pa.chunked_array([], pa.string())
    if pc.count_distinct(column).as_py() != len(column):
        counts = column.value_counts()
        twice = [entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1]
        raise ShardError(f"{dataset.root}: {len(twice)} keys are in the dataset twice: {', '.join(twice[:5])}")


def _require_same_toolchain(stats: ShardStats, toolchain: Mapping[str, str]) -> None:
    if stats.toolchain != dict(toolchain):
        changed = sorted(
            name for name in {*stats.toolchain, *toolchain} if stats.toolchain.get(name) != toolchain.get(name)
        )
        was = ", ".join(f"{name} {stats.toolchain.get(name)}" for name in changed)
        now = ", ".join(f"{name} {toolchain.get(name)}" for name in changed)
        raise ShardError(
            f"{stats.shard} was made by another toolchain: {was}; now: {now}. Install what it was made by "
            "to go on with this dataset, or build anew in an empty folder"
        )
