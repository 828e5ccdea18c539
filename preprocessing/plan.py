"""Plans which sample goes into which shard: a pure function of the annotations and the configuration."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocessing.config import ShardConfig
from preprocessing.hierarchy import Hierarchy
from shards.files import replacing
from shards.tar import MAX_MEMBER

NARRATION_STRUCT = pa.struct(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("clip_start", pa.float64()),
        ("clip_end", pa.float64()),
        ("tag_verb", pa.list_(pa.int32())),
        ("tag_noun", pa.list_(pa.int32())),
    ]
)
_SEGMENT_SECONDS = 60
_FIELDS_BYTES = 1 << 11  # bytes of a record's, or a narration's, fields other than texts and tags, at most
_ESCAPED = 6  # bytes of a character in JSON per byte of its UTF-8, at most: `\u0001`
_TAG_BYTES = 5  # bytes of a tag in JSON, at most


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The samples planned for one shard, in packing order."""

    set_name: str  # clips | summaries | a benchmark
    split: str
    number: int
    items: pa.Table  # the annotation columns, `segment` and, for summaries, `narrations`

    @property
    def name(self) -> str:
        """The shard's name in messages and paths, such as `clips/train/00000`."""
        return f"{self.set_name}/{self.split}/{self.number:05d}"


def clip_items(clips: pa.Table) -> pa.Table:
    """Return the annotations of a set as items to plan, with the name of their 60 s segment in column `segment`."""
    return _with_segment(clips)


def seconds_of(items: pa.Table, config: ShardConfig) -> np.ndarray:
    """Return the duration of each item, (N,) in s; a whole video counts as `nominal_seconds`.

    Annotations do not state how long such a video is, and the plan may depend on annotations and configuration only.
    """
    seconds = np.subtract(items["clip_end"].to_numpy(), items["clip_start"].to_numpy())
    return np.where(np.isfinite(seconds), seconds, config.nominal_seconds)


def summary_items(summaries: pa.Table, narrations: pa.Table, hierarchy: Hierarchy) -> pa.Table:
    """Return summaries as items to plan, with their segment and their narrations as structs in time order."""
    inside = narrations.select([field.name for field in NARRATION_STRUCT]).take(pa.array(hierarchy.rows))
    inside = inside.combine_chunks()
    values = pa.StructArray.from_arrays(
        [inside.column(f.name).combine_chunks().cast(f.type) for f in NARRATION_STRUCT], fields=list(NARRATION_STRUCT)
    )
    lists = pa.LargeListArray.from_arrays(pa.array(hierarchy.offsets), values)
    return _with_segment(summaries).append_column("narrations", lists)


def record_sizes(items: pa.Table) -> np.ndarray:
    """Return an estimate of the bytes of each item's JSON record, (N,) int64, never too low.

    It is exact to some hundred bytes for the few items with very long texts, and otherwise an upper bound.
    """
    sizes: np.ndarray = _FIELDS_BYTES + pc.binary_length(items["text"]).to_numpy().astype(np.int64) * _ESCAPED
    if "extra" in items.column_names:
        sizes += pc.binary_length(items["extra"]).to_numpy().astype(np.int64) * _ESCAPED
    if "narrations" not in items.column_names:
        return sizes
    narrations = items["narrations"].combine_chunks()
    flat = narrations.flatten()
    offsets = np.concatenate([[0], np.cumsum(narrations.value_lengths().to_numpy(zero_copy_only=False))])
    each = np.full(len(flat), _FIELDS_BYTES, np.int64)
    each += pc.binary_length(pc.struct_field(flat, "text")).to_numpy(zero_copy_only=False) * _ESCAPED
    for name in ("tag_verb", "tag_noun"):
        each += pc.list_value_length(pc.struct_field(flat, name)).to_numpy(zero_copy_only=False) * _TAG_BYTES
    total = np.concatenate([[0], np.cumsum(each)])
    sizes = sizes + total[offsets[1:]] - total[offsets[:-1]]
    for row in np.flatnonzero(sizes > MAX_MEMBER["json"]).tolist():
        value = [items["text"][row].as_py(), items["narrations"][row].as_py()]
        exact = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
        sizes[row] = exact + _FIELDS_BYTES
    return sizes


def plan_shards(
    items: pa.Table, *, set_name: str, split: str, first_number: int, kbps: int, config: ShardConfig
) -> list[ShardPlan]:
    """Assign items to shards numbered from `first_number`.

    A segment of a video stays in one shard unless it exceeds a bound by itself. Segments are assigned in a seeded
    random order, each to the least full shard, so that shards mix many videos and are of similar size.
    Sizes are nominal (duration × `kbps`), because the real ones are unknown before encoding.
    """
    if not len(items):
        return []
    seconds = seconds_of(items, config)
    weight = np.maximum(1, (seconds * kbps * 125).astype(np.int64))
    groups = list(_groups(items, weight, config))
    # Groups that contain a sample without empty lists go first, so that each shard starts with one while they last:
    # readers that infer types from the first sample then see the type of every list (docs/shards.md).
    filled = _all_lists_filled(items)
    groups.sort(key=lambda group: not filled[group].any())
    shards = max(math.ceil(len(items) / config.max_samples), math.ceil(int(weight.sum()) / config.max_bytes), 1)
    while (assigned := _assign(groups, weight, shards, config)) is None:
        shards += max(1, shards // 50)
    rows = [np.concatenate(shard) for shard in assigned if shard]
    # One gather followed by slices: a gather per shard would copy the whole table each time.
    ordered = items.combine_chunks().take(pa.array(np.concatenate(rows)))
    ends = np.cumsum([len(shard) for shard in rows])
    return [
        ShardPlan(
            set_name=set_name,
            split=split,
            number=first_number + i,
            items=ordered.slice(end - len(shard), len(shard)),
        )
        for i, (shard, end) in enumerate(zip(rows, ends, strict=True))
    ]


def plan_path(work: Path, set_name: str, split: str, number: int) -> Path:
    """Return the path of a shard's plan in the work folder."""
    return work / "plan" / set_name / split / f"{number:05d}.parquet"


def write_plan(work: Path, plan: ShardPlan) -> Path:
    """Save a shard's plan for the task that packs it; return its path."""
    path = plan_path(work, plan.set_name, plan.split, plan.number)
    with replacing(path) as temporary:
        pq.write_table(plan.items, temporary, compression="zstd")
    return path


def _with_segment(table: pa.Table) -> pa.Table:
    time = table["narration_time" if "narration_time" in table.column_names else "clip_start"]
    minute = pc.floor(pc.divide(time, float(_SEGMENT_SECONDS))).cast(pa.int64()).cast(pa.string())
    return table.append_column("segment", pc.binary_join_element_wise(table["video_uid"], minute, "_"))


def _groups(items: pa.Table, weight: np.ndarray, config: ShardConfig) -> Iterator[np.ndarray]:
    """Yield the row numbers of each segment in seeded hash order; a segment over a bound is yielded in parts."""
    encoded = items["segment"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    names = encoded.dictionary.to_pylist()
    by_segment = np.argsort(codes, kind="stable")  # keeps the rows of a segment in time order
    bounds = np.searchsorted(codes[by_segment], np.arange(len(names) + 1))
    salt = f"{config.seed}:".encode()
    order = sorted(range(len(names)), key=lambda i: hashlib.blake2b(salt + names[i].encode(), digest_size=8).digest())
    for segment in order:
        rows = by_segment[bounds[segment] : bounds[segment + 1]]
        if len(rows) <= config.max_samples and weight[rows].sum() <= config.max_bytes:
            yield rows
        else:
            yield from _split(rows, weight, config)


def _split(rows: np.ndarray, weight: np.ndarray, config: ShardConfig) -> Iterator[np.ndarray]:
    """Yield consecutive parts of a segment, each within both bounds."""
    part: list[int] = []
    size = 0  # nominal bytes
    for row in rows:
        if part and (len(part) == config.max_samples or size + weight[row] > config.max_bytes):
            yield np.array(part)
            part, size = [], 0
        part.append(int(row))
        size += int(weight[row])
    yield np.array(part)


def _assign(
    groups: list[np.ndarray], weight: np.ndarray, shards: int, config: ShardConfig
) -> list[list[np.ndarray]] | None:
    """Return the groups of each of `shards` shards, each group given to the least full one; None if they do not fit.

    A shard's fill level is measured against the bound (samples or bytes) that it is closer to.
    """
    assigned: list[list[np.ndarray]] = [[] for _ in range(shards)]
    heap = [(0.0, shard, 0, 0) for shard in range(shards)]  # fill level, shard, samples, nominal bytes
    for group in groups:
        _, shard, samples, size = heap[0]
        samples, size = samples + len(group), size + int(weight[group].sum())
        if assigned[shard] and (samples > config.max_samples or size > config.max_bytes):
            return None
        assigned[shard].append(group)
        level = max(samples / config.max_samples, size / config.max_bytes)
        heapq.heapreplace(heap, (level, shard, samples, size))
    return assigned


def _all_lists_filled(items: pa.Table) -> np.ndarray:
    """Return (N,) bool: whether a sample has no empty list at any depth."""
    filled = np.ones(len(items), bool)
    for name, kind in zip(items.schema.names, items.schema.types, strict=True):
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            filled &= _filled(items[name]) & _structs_filled(items[name].combine_chunks())
    return filled


def _structs_filled(lists: pa.Array) -> np.ndarray:
    """Return (N,) bool: whether no struct in the list has an empty list; True for lists of anything else."""
    filled = np.ones(len(lists), bool)
    if not pa.types.is_struct(lists.type.value_type):
        return filled
    flat = lists.flatten()
    parents = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy(zero_copy_only=False))
    for field in lists.type.value_type:
        if pa.types.is_list(field.type):
            filled[parents[~_filled(pc.struct_field(flat, field.name))]] = False
    return filled


def _filled(lists: pa.Array | pa.ChunkedArray) -> np.ndarray:
    filled: np.ndarray = pc.greater(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return filled.astype(bool)
