"""A small dataset with everything that verify compares, and tools to forge it: any change, with correct hashes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import companions, files, schema, tar
from shards.dataset import Dataset, hash_file, hash_json, row_schema
from shards.index import split_index, split_to_json, write_dataset
from shards.keys import make_key
from shards.stats import FailedItem, ShardStats
from tests.shards import benchmark_samples, samples

CLIPS, SECOND, SUMMARIES = "clips/train/00000", "clips/train/00002", "summaries/train/00000"
QUESTIONS = "egomcq/test/questions.json"
CHUNK = {
    "seconds": 600, "short_side": 48, "fps": samples.FPS, "gop_seconds": 0.4, "b_frames": 0, "crf": 23,
    "summary_fps": samples.SUMMARY_FPS, "summary_gop_seconds": 4.0, "max_gap_seconds": 0.5,
}  # fmt: skip
TOOLCHAIN = {**samples.TOOLCHAIN, **{f"chunk.{name}": str(value) for name, value in CHUNK.items()}}
_LOST = FailedItem(key=make_key("lost", "c", 1, 0), reason="decode_error", detail="no frame could be decoded")
_GONE = FailedItem(key=make_key("gone", "c", 1, 0), reason="video_missing", detail="no such file")


def make(root: Path) -> Dataset:
    """Write clips in three shards, summaries and EgoMCQ, with a complete ledger, spans, questions and configuration."""
    first = [samples.clip(i, tags=(i + 1, 2)) for i in range(4)]
    second = [samples.clip(i, video=samples.DOTTED_VIDEO, tags=(5,)) for i in range(3)]
    told = [samples.summary(1, narrations=first[1:]), samples.summary(0, narrations=first[:2])]
    asked = [benchmark_samples.sample("egomcq", i) for i in range(3)]
    _write(root, CLIPS, first, [_LOST])
    _write(root, "clips/train/00001", [], [_GONE])
    _write(root, SECOND, second)
    _write(root, "clips/val/00000", [samples.clip(i, video="val-video") for i in range(2)])
    _write(root, SUMMARIES, told)
    _write(root, "egomcq/test/00000", asked)
    companions.write_companion(root / QUESTIONS, benchmark_samples.companion("egomcq", "test"))
    _write_ledger(root)
    _write_spans(root)
    return write_dataset(
        root,
        config={"chunk": CHUNK, "shard": {"max_samples": 4, "max_bytes": 1 << 20}, "end_tolerance": 0.5},
        toolchain=TOOLCHAIN,
        provenance={"code_revision": "0" * 40, "annotations": {}, "licence_notice": "", "counts": _counts(root)},
        companions=[QUESTIONS],
    )


def _write(root: Path, shard: str, made: Sequence[schema.Sample], failed: Sequence[FailedItem] = ()) -> None:
    set_name, split, number = shard.split("/")
    place: dict[str, Any] = {"number": int(number), "set_name": set_name, "split": split}
    samples.write_shard(root, made, failed=failed, toolchain=TOOLCHAIN, **place)


def _write_ledger(root: Path) -> None:
    rows = []
    videos: dict[str, str] = {}
    for parquet in sorted(root.glob("*/*/*.parquet")):
        set_name, split = parquet.parts[-3:-1]
        for row in pq.read_table(parquet, columns=["key", "video_uid"]).to_pylist():
            videos[row["video_uid"]] = "packed"
            place = {"shard": f"{set_name}/{split}/{parquet.stem}.tar", "item": row["key"]}
            rows.append({"set": set_name, "status": "packed", "reason": "", "detail": "", **place, **row})
    for item in (_LOST, _GONE):
        videos[item.key.split("_")[0]] = "failed"
        row = {"set": "clips", "status": "failed", "reason": item.reason, "detail": item.detail, "item": item.key}
        rows.append({**row, "video_uid": item.key.split("_")[0], "key": "", "shard": ""})
    absent = {"item": benchmark_samples.ABSENT, "video_uid": "absent", "reason": "missing", "detail": ""}
    rows.append({"set": "egomcq", "status": "failed", "key": "", "shard": "", **absent})
    videos["absent"] = "failed"
    for uid, status in videos.items():
        reason = "" if status == "packed" else "missing"
        row = {"set": "videos", "item": uid, "video_uid": uid, "status": status, "reason": reason, "detail": ""}
        rows.append({**row, "key": "", "shard": ""})
    names = ("set", "item", "video_uid", "status", "reason", "detail", "key", "shard")
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in names])), root / "ledger.parquet"
    )


def _write_spans(root: Path) -> None:
    rows = []
    for row in pq.read_table(root / "ledger.parquet").to_pylist():
        if row["set"] == "videos":
            span = {"video_uid": row["video_uid"], "start": 0.0, "end": 40.0, "status": row["status"]}
            rows.append({**span, "reason": row["reason"], "chunk": 0})
            if row["video_uid"] == "video-a":
                rows.append({**span, "start": 40.0, "end": 60.0, "status": "failed", "reason": "damaged", "chunk": -1})
    pq.write_table(pa.Table.from_pylist(rows), root / "spans.parquet")


def _counts(root: Path) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for row in pq.read_table(root / "ledger.parquet").to_pylist():
        name = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
        of_set = counts.setdefault(row["set"], {})
        of_set[name] = of_set.get(name, 0) + 1
    return counts


Change = Callable[[Any], object]


def resign(root: Path, change: Change | None = None) -> None:
    """Recompute every size and hash from the files as they are; `change` is applied to `dataset.json` at the end."""
    manifest = json.loads((root / "dataset.json").read_text())
    for set_name, splits in manifest["sets"].items():
        for split in splits:
            stats_list = []
            for path in sorted((root / set_name / split).glob("*_stats.json")):
                value = json.loads(path.read_text())
                tar_path = path.with_name(path.name.replace("_stats.json", ".tar"))
                if value["samples"]:
                    value["bytes"], value["sha256"] = tar_path.stat().st_size, hash_file(tar_path)
                    value["parquet_sha256"] = hash_file(tar_path.with_suffix(".parquet"))
                files.write_json(path, value)
                stats_list.append(ShardStats.read(path))
            for name, value in split_index(stats_list).items():
                files.write_json(root / set_name / split / name, value)
            splits[split] = split_to_json(root, stats_list)
    manifest["files"] = {name: hash_file(root / name) for name in manifest["files"] if (root / name).is_file()}
    manifest.pop("sha256")
    if change is not None:
        change(manifest)
    files.write_json(root / "dataset.json", {**manifest, "sha256": hash_json(manifest)})


def records(root: Path, shard: str, change: Change) -> None:
    """Rewrite a shard with samples changed by `change`, which gets them as a list of dicts of members; re-sign all.

    `json` is parsed; `key` is the key. Tar, parquet and stats agree with each other afterwards.
    """
    made: list[dict[str, Any]] = []
    for member in tar.TarReader(root / f"{shard}.tar"):
        if member.ext == "jpg":
            made.append({"key": member.key})
        assert member.data is not None
        made[-1][member.ext] = json.loads(member.data) if member.ext == "json" else member.data
    change(made)
    data, rows, sizes = b"", [], dict.fromkeys(schema.MEMBERS, 0)
    set_name = shard.split("/")[0]
    for sample in made:
        row = {"key": sample["key"]}
        record = json.dumps(sample["json"], ensure_ascii=False, separators=(",", ":")).encode()
        for ext in schema.MEMBERS:
            content = record if ext == "json" else sample[ext]
            data += tar.header(f"{sample['key']}.{ext}", len(content))
            row[f"{ext}_offset"], row[f"{ext}_size"] = len(data), len(content)
            data += content + bytes(-len(content) % tar.BLOCK)
            sizes[ext] += len(content)
        rows.append({**row, **{name: sample["json"].get(name) for name in schema.scalar_fields(set_name)}})
    (root / f"{shard}.tar").write_bytes(data + tar.end(len(data)))
    with suppress(pa.ArrowInvalid, pa.ArrowTypeError):  # a value that no index can hold: the old one remains
        index = pa.Table.from_pylist(rows, schema=row_schema(set_name))
        pq.write_table(index, root / f"{shard}.parquet", store_schema=False)
    stats_path = root / f"{shard}_stats.json"
    files.write_json(stats_path, {**json.loads(stats_path.read_text()), "samples": len(made), "member_bytes": sizes})
    resign(root)


def record(root: Path, shard: str = CLIPS, at: int = 1, **changes: Any) -> None:
    """Change fields of the record of one sample, everything else to match."""

    def change(made: list[dict[str, Any]]) -> None:
        made[at]["json"].update(changes)
        if "text" in changes:
            made[at]["txt"] = changes["text"].encode()

    records(root, shard, change)


def table(root: Path, name: str, change: Change) -> None:
    """Change a parquet file of the dataset, as a list of rows, and re-sign."""
    old = pq.read_table(root / name)
    rows = old.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=old.schema), root / name, store_schema=False)
    resign(root)


def questions(root: Path, change: Change) -> None:
    """Change the questions of EgoMCQ, and re-sign."""
    value = json.loads((root / QUESTIONS).read_text())
    change(value)
    files.write_json(root / QUESTIONS, value)
    resign(root)
