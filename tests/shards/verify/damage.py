"""Helpers that damage or forge a dataset, and that list what verify finds."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards import files, tar
from shards.dataset import hash_file
from shards.index import finish_split, write_dataset
from shards.stats import ShardStats
from shards.verify.run import verify
from tests.shards import samples

TAR = "clips/train/00000.tar"


def findings_text(root: Path) -> str:
    """Return what verify finds as lines of `file [key] problem`."""
    return "\n".join(f"{finding.file} [{finding.key}] {finding.problem}" for finding in verify(root).findings)


def flip(path: Path, at: int) -> None:
    """Flip a bit of the byte at `at`."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def rehash(root: Path, name: str = TAR) -> None:
    """Update the hashes in the stats file and dataset.json after a tar was changed, as a forger would."""
    tar_path, stats_path = root / name, root / name.replace(".tar", "_stats.json")
    stats = json.loads(stats_path.read_text())
    stats["bytes"], stats["sha256"] = tar_path.stat().st_size, hash_file(tar_path)
    stats["parquet_sha256"] = hash_file(tar_path.with_suffix(".parquet"))
    files.write_json(stats_path, stats)
    set_name, split, _ = name.split("/")
    finish_split(root, set_name, split)
    manifest = json.loads((root / "dataset.json").read_text())
    arguments = {key: manifest[key] for key in ("config", "toolchain", "provenance")}
    write_dataset(root, **arguments)


Members = list[tuple[str, bytes]]


def rewrite(path: Path, change: Callable[[Members], object]) -> None:
    """Rewrite a tar with changed members in the writer's format, but keep the recorded hashes."""
    with tarfile.open(path) as old:
        members = [(info.name, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
    change(members)
    data = b""
    for name, content in members:
        data += tar.header(name, len(content)) + content + bytes(-len(content) % tar.BLOCK)
    path.write_bytes(data + tar.end(len(data)))


def forge(root: Path, **changes: Any) -> None:
    """Rewrite shard 0 with changes to its first sample; all hashes are correct, but the sample is not."""
    made = [samples.clip(1, tags=(1, 2)), samples.clip(0, tags=())]
    for path in (root / "clips" / "train").glob("00000*"):
        path.unlink()
    sample = replace(made[0], **{name: value for name, value in changes.items() if name in ("jpg", "mp4")})
    fields = {name: value for name, value in changes.items() if name not in ("jpg", "mp4")}
    samples.write_shard(root, [replace(sample, record=replace(sample.record, **fields)), made[1]])
    rehash(root)
    (root / "ledger.parquet").unlink()
    samples.write_ledger(root, failed={"clips": list(ShardStats.read(root / "clips/train/00001_stats.json").failed)})
    rehash(root)
