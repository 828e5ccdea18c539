"""Decides what is still to be built: which videos, which samples, after what was published before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing import ledger
from preprocessing.annotations import Annotations
from preprocessing.config import BuildConfig
from preprocessing.errors import UsageError
from preprocessing.hierarchy import join
from preprocessing.plan import ShardPlan, clip_items, plan_shards, summary_items
from preprocessing.video.sources import subset
from shards.dataset import MANIFEST, open_dataset, read_rows
from shards.index import done_shards, splits_of
from shards.schema import SetSpec, set_spec
from shards.stats import shard_number, shard_paths

ABSENT = "missing"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a dataset that was finished before holds; all empty for a new one."""

    next_number: dict[tuple[str, str], int] = field(default_factory=dict)  # (set, split) → first number to append
    packed: set[str] = field(default_factory=set)  # keys
    failed: dict[str, str] = field(default_factory=dict)  # key → reason
    annotations: dict[str, str] = field(default_factory=dict)  # file name → sha256, as of then
    config: dict[str, Any] = field(default_factory=dict)  # of the build that finished it
    provenance: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # path below the root → sha256


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The work of this run."""

    plans: list[ShardPlan]
    videos: set[str]  # those whose samples are planned
    filtered: pa.Table  # ledger rows of items that the rules leave out
    items: int  # planned samples


def read_published(root: Path) -> Published:
    """Return what `root/dataset.json` vouches for; shards that a killed run left beside it are not published."""
    if not (root / MANIFEST).exists():
        return Published()
    dataset = open_dataset(root)
    next_number: dict[tuple[str, str], int] = {}
    packed: set[str] = set()
    failed: dict[str, str] = {}
    for set_name, split, entry in dataset.splits():
        names = {*(shard.name for shard in entry.shards), *entry.empty}
        next_number[set_name, split] = max(map(shard_number, names)) + 1
        packed.update(entry.rows(["key"])["key"].to_pylist())
        for stats in done_shards(root, set_name, split):
            if Path(stats.shard).name in names:
                failed.update((item.key, item.reason) for item in stats.failed)
    return Published(
        next_number=next_number,
        packed=packed,
        failed=failed,
        annotations=dict(dataset.provenance.get("annotations", {})),
        config=dataset.config,
        provenance=dataset.provenance,
        files=dataset.files,
    )


def is_accounted_for(annotations: Annotations, published: Published, root: Path) -> bool:
    """Return whether what is published was accounted for from these very files, so that nothing would be written."""
    files = {Path(name).name: digest for name, digest in annotations.sources.items()}
    is_known = files.items() <= published.annotations.items()
    return is_known and all(path in published.files and (root / path).exists() for path in annotations.companions)


def select(annotations: Annotations, found: Mapping[str, Path], published: Published, config: BuildConfig) -> Selection:
    """Return the plan of this run: what the annotations name, less what rules leave out and what is there already."""
    split_of = dict(zip(*(annotations.videos[name].to_pylist() for name in ("video_uid", "split")), strict=True))
    annotated = {uid for table in annotations.sets.values() for uid in table["video_uid"].unique().to_pylist()}
    present = annotated & found.keys()
    chosen = subset(present if config.videos.limit else annotated, limit=config.videos.limit, seed=config.shard.seed)
    kept: dict[str, pa.Table] = {}
    filtered: list[pa.Table] = []
    for set_name, table in annotations.sets.items():
        reasons = {
            uid: reason
            for uid in table["video_uid"].unique().to_pylist()
            if (reason := _left_out(uid, set_spec(set_name), split_of, uid in chosen, uid in present, config))
        }
        kept[set_name], without = _drop(table, set_name, reasons)
        filtered.append(without)
    plans: list[ShardPlan] = []
    videos: set[str] = set()
    for set_name, table in _items(kept, config).items():
        spec = set_spec(set_name)
        table = table.filter(pa.array(_is_due(table, published, found, config)))
        splits = np.array(_splits(table, split_of), dtype=object)
        for split in spec.splits:
            part = table.filter(pa.array(splits == split, pa.bool_()))
            videos.update(part["video_uid"].unique().to_pylist())
            plans += plan_shards(
                part,
                set_name=set_name,
                split=split,
                first_number=published.next_number.get((set_name, split), 0),
                kbps=config.shard.nominal_summary_kbps if spec.is_long else config.shard.nominal_kbps,
                config=config.shard,
            )
    return Selection(
        plans=plans,
        videos=videos,
        filtered=pa.concat_tables([ledger.LEDGER.empty_table(), *filtered]),
        items=sum(len(plan.items) for plan in plans),
    )


def require_same_plan(root: Path, plans: list[ShardPlan], published: Published) -> set[str]:
    """Return the planned shards that an unfinished run has written; raise `UsageError` where its plan was another."""
    planned = {(plan.set_name, plan.split, plan.number): plan for plan in plans}
    done = set()
    for set_name, split in splits_of(root):
        for stats in done_shards(root, set_name, split):
            number = shard_number(Path(stats.shard).name)
            if number < published.next_number.get((set_name, split), 0):
                continue
            plan = planned.get((set_name, split, number))
            keys = {item.key for item in stats.failed}
            if stats.samples:
                keys.update(read_rows(shard_paths(root, set_name, split, number)[1], ["key"])["key"].to_pylist())
            wanted = set(plan.items["key"].to_pylist()) if plan else set()
            if plan is None or keys != wanted:
                raise UsageError(
                    f"{root / stats.shard} is of an unfinished build with another plan ({len(keys)} samples, of which "
                    f"{len(keys & wanted)} are planned there now): finish it with the annotations and configuration "
                    "that it began with (WORK/config.yaml), then build again to append; or use another output"
                )
            done.add(plan.name)
    return done


def _items(kept: Mapping[str, pa.Table], config: BuildConfig) -> dict[str, pa.Table]:
    """Return what to plan of each set; the hierarchy is joined over all that the rules keep, packed before or not."""
    items = {set_name: clip_items(table) for set_name, table in kept.items() if set_name != "summaries"}
    if "summaries" in kept:
        hierarchy = join(kept["clips"], kept["summaries"], match_pass=config.annotations.match_pass)
        items["summaries"] = summary_items(kept["summaries"], kept["clips"], hierarchy)
    return items


def _splits(table: pa.Table, split_of: Mapping[str, str]) -> list[str]:
    """Return each item's split: a benchmark's files say it, else it is the video's."""
    if "split" in table.column_names:
        return table["split"].to_pylist()
    return [split_of.get(uid, "train") for uid in table["video_uid"].to_pylist()]


def _left_out(
    uid: str, spec: SetSpec, split_of: Mapping[str, str], is_chosen: bool, is_present: bool, config: BuildConfig
) -> str:
    """Return the rule that leaves a video's items out of a set; empty where none does."""
    split = split_of.get(uid, "train")
    if not spec.is_benchmark and split not in spec.splits:
        return f"{split} split"
    if not is_present and (config.videos.allow_missing or config.videos.limit):
        return "video absent"
    return "" if is_chosen else "beyond videos.limit"


def _drop(table: pa.Table, set_name: str, reasons: Mapping[str, str]) -> tuple[pa.Table, pa.Table]:
    """Return the rows of videos without a reason, and ledger rows of the others."""
    out = pc.is_in(table["video_uid"], pa.array(list(reasons), pa.string()))
    left = table.filter(out)
    why = [reasons[uid] for uid in left["video_uid"].to_pylist()]
    rows = ledger.rows(set_name, left["key"], left["video_uid"], status=ledger.FILTERED, reason=why)
    return table.filter(pc.invert(out)), rows


def _is_due(table: pa.Table, published: Published, found: Mapping[str, Path], config: BuildConfig) -> list[bool]:
    """Return for each item whether to build it: not packed, and not failed before unless asked to try again."""
    retry = config.retry == "failed"
    due = []
    for key, uid in zip(table["key"].to_pylist(), table["video_uid"].to_pylist(), strict=True):
        reason = published.failed.get(key)
        has_come = reason == ABSENT and uid in found
        due.append(key not in published.packed and (reason is None or retry or has_come))
    return due
