"""Decides what is still to be built: which videos, which samples, after what was published before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing import ledger
from preprocessing.annotations import Annotations
from preprocessing.config import BuildConfig
from preprocessing.errors import UsageError
from preprocessing.hierarchy import join
from preprocessing.plan import ShardPlan, clip_items, plan_shards, summary_items
from preprocessing.sources import subset
from shards.dataset import MANIFEST, open_dataset, read_rows
from shards.index import done_shards, splits_of
from shards.stats import shard_number, shard_paths

SPLITS = ("train", "val")
ABSENT = "missing"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a dataset that was finished before holds; all empty for a new one."""

    next_number: dict[tuple[str, str], int] = field(default_factory=dict)  # (set, split) → first number to append
    packed: set[str] = field(default_factory=set)  # keys
    failed: dict[str, str] = field(default_factory=dict)  # key → reason
    annotations: dict[str, str] = field(default_factory=dict)  # file name → sha256, as of then


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
    )


def select(annotations: Annotations, found: Mapping[str, Path], published: Published, config: BuildConfig) -> Selection:
    """Return the plan of this run: what the annotations name, less what rules leave out and what is there already."""
    split_of = dict(zip(*(annotations.videos[name].to_pylist() for name in ("video_uid", "split")), strict=True))
    annotated = set(annotations.narrations["video_uid"].unique().to_pylist())
    annotated |= set(annotations.summaries["video_uid"].unique().to_pylist())
    present = annotated & found.keys()
    chosen = subset(present if config.videos.limit else annotated, limit=config.videos.limit, seed=config.shard.seed)
    reasons = {
        uid: reason
        for uid in annotated
        if (reason := _left_out(uid, split_of.get(uid, "train"), uid in chosen, uid in present, config))
    }
    narrations, without_clips = _drop(annotations.narrations, "clips", reasons)
    summaries, without_summaries = _drop(annotations.summaries, "summaries", reasons)
    # The hierarchy is joined over everything that the rules keep, packed before or not.
    items = {
        "clips": clip_items(narrations),
        "summaries": summary_items(
            summaries, narrations, join(narrations, summaries, match_pass=config.annotations.match_pass)
        ),
    }
    kbps = {"clips": config.shard.nominal_kbps, "summaries": config.shard.nominal_summary_kbps}
    plans: list[ShardPlan] = []
    videos: set[str] = set()
    for set_name, table in items.items():
        table = table.filter(pa.array(_is_due(table, published, found, config)))
        splits = np.array([split_of.get(uid, "train") for uid in table["video_uid"].to_pylist()], dtype=object)
        for split in SPLITS:
            part = table.filter(pa.array(splits == split, pa.bool_()))
            videos.update(part["video_uid"].unique().to_pylist())
            plans += plan_shards(
                part,
                set_name=set_name,
                split=split,
                first_number=published.next_number.get((set_name, split), 0),
                kbps=kbps[set_name],
                config=config.shard,
            )
    return Selection(
        plans=plans,
        videos=videos,
        filtered=pa.concat_tables([without_clips, without_summaries]),
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


def _left_out(uid: str, split: str, is_chosen: bool, is_present: bool, config: BuildConfig) -> str:
    """Return the rule that leaves a video's items out; empty where none does."""
    if split not in SPLITS:
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
