"""Finishes splits and datasets: writes sizes.json, shardindex.json, the card and, last of all, dataset.json."""

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
    """Return the stats of a split's complete shards in the order of their numbers, which may have gaps.

    Raises `ShardError` if a shard's tar is absent or differs from its stats file.
    """
    done = []
    for number in stats_numbers(root, set_name, split):
        tar, _, stats_path = shard_paths(root, set_name, split, number)
        stats = ShardStats.read(stats_path)
        if stats.shard != f"{set_name}/{split}/{tar.name}":
            raise ShardError(f"{stats_path}: describes {stats.shard}; it was copied from another shard")
        if not is_done(root, set_name, split, number):
            raise ShardError(f"{tar}: absent, or not {stats.bytes} bytes long as its stats say: rerun the build")
        done.append(stats)
    return done


def stats_numbers(root: Path, set_name: str, split: str) -> list[int]:
    """Return the numbers of a split's shards that have a stats file, in ascending order."""
    matches = (_STATS_NAME.fullmatch(path.name) for path in (root / set_name / split).glob("*_stats.json"))
    return sorted(int(match[1]) for match in matches if match)


def splits_of(root: Path) -> list[tuple[str, str]]:
    """Return the (set, split) pairs that have a folder below `root`, in the order of `schema.SETS`."""
    return [(name, split) for name in schema.RECORDS for split in SPLITS if (root / name / split).is_dir()]


def require_toolchain(root: Path, toolchain: Mapping[str, str]) -> None:
    """Raise `ShardError`, naming the differences, if a shard below `root` was built with a different toolchain."""
    for set_name, split in splits_of(root):
        for number in stats_numbers(root, set_name, split):
            if is_done(root, set_name, split, number):
                _require_same_toolchain(ShardStats.read(shard_paths(root, set_name, split, number)[2]), toolchain)


def finish_split(root: Path, set_name: str, split: str) -> list[ShardStats]:
    """Write a split's `sizes.json` and `shardindex.json` from its complete shards; return their stats by number."""
    done = done_shards(root, set_name, split)
    for name, value in split_index(done).items():
        files.write_json(root / set_name / split / name, value)
    return done


def split_index(shards: Sequence[ShardStats]) -> dict[str, Any]:
    """Return the contents of a split's `sizes.json` and `shardindex.json`; shards without samples are omitted."""
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
    """Write the index files of all splits, the card and finally `dataset.json`; return the dataset.

    `config` is the resolved configuration. `provenance` has `code_revision`, `annotations` (file name → sha256),
    `licence_notice` (text), `counts` and whatever else readers should know, but no times or hosts, so that equal inputs
    give equal bytes. `companions` are paths relative to `root` (`egomcq/test/questions.json`) whose hashes are to be
    listed; `ledger.parquet` and `spans.parquet` are listed if they exist. Raises `ShardError` if there is no shard, a
    key occurs twice or the toolchains of shards differ.
    """
    sets: dict[str, dict[str, Any]] = {}
    for set_name, split in splits_of(root):
        done = finish_split(root, set_name, split)
        for stats in done:
            _require_same_toolchain(stats, toolchain)
        if done:
            sets.setdefault(set_name, {})[split] = split_to_json(root, done)
    if not sets:
        raise ShardError(f"{root}: no complete shard in any of {', '.join(schema.RECORDS)}")
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


def split_to_json(root: Path, shards: Sequence[ShardStats]) -> dict[str, Any]:
    """Return the entry in `dataset.json` of a split with these shards."""
    filled = [stats for stats in shards if stats.samples]
    entries = []
    for stats in shards:
        stats_path = root / stats.shard.replace(".tar", "_stats.json")
        entry = {"name": Path(stats.shard).name, "samples": stats.samples, "bytes": stats.bytes, "sha256": stats.sha256}
        entries.append({**entry, "parquet_sha256": stats.parquet_sha256, "stats_sha256": hash_file(stats_path)})
    return {
        "samples": sum(stats.samples for stats in filled),
        "bytes": sum(stats.bytes for stats in filled),
        "failed": sum(len(stats.failed) for stats in shards),
        "fingerprint": fingerprint((Path(stats.shard).name, stats.sha256) for stats in filled),
        "shards": [entry for entry in entries if entry["samples"]],
        "empty": [{"name": e["name"], "stats_sha256": e["stats_sha256"]} for e in entries if not e["samples"]],
    }


def _require_unique_keys(dataset: Dataset) -> None:
    keys = [shard.rows(["key"]) for _, _, split in dataset.splits() for shard in split.shards]
    column = pa.concat_tables(keys)["key"] if keys else pa.chunked_array([], pa.string())
    if pc.count_distinct(column).as_py() != len(column):
        counts = column.value_counts()
        repeated = [entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1]
        raise ShardError(f"{dataset.root}: {len(repeated)} keys occur more than once: {', '.join(repeated[:5])}")


def _require_same_toolchain(stats: ShardStats, toolchain: Mapping[str, str]) -> None:
    if stats.toolchain != dict(toolchain):
        changed = sorted(
            name for name in {*stats.toolchain, *toolchain} if stats.toolchain.get(name) != toolchain.get(name)
        )
        old = ", ".join(f"{name} {stats.toolchain.get(name)}" for name in changed)
        new = ", ".join(f"{name} {toolchain.get(name)}" for name in changed)
        raise ShardError(
            f"{stats.shard} was built with a different toolchain: {old}; now: {new}. Install the former versions to "
            "continue this dataset, or build in an empty folder"
        )
