"""Selects the work of a build: the annotated samples minus those that are filtered or already published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing import ledger
from preprocessing.annotations import Annotations
from preprocessing.annotations.tables import NARRATION_SCHEMA
from preprocessing.config import BuildConfig
from preprocessing.errors import UsageError
from preprocessing.hierarchy import join
from preprocessing.plan import ShardPlan, clip_items, plan_shards, record_sizes, summary_items
from preprocessing.video.sources import subset
from shards.dataset import MANIFEST, hash_file, open_dataset, read_rows
from shards.index import done_shards, splits_of
from shards.schema import SetSpec, set_spec
from shards.stats import shard_number, shard_paths
from shards.tar import MAX_MEMBER

ABSENT = "missing"


@dataclass(frozen=True, kw_only=True)
class PublishedState:
    """The contents of the dataset published by earlier builds; empty for a new one."""

    next_number: dict[tuple[str, str], int] = field(default_factory=dict)  # (set, split) → first free shard number
    packed: set[str] = field(default_factory=set)  # keys of samples
    failed: dict[str, str] = field(default_factory=dict)  # key of a failed sample → reason
    annotations: dict[str, str] = field(default_factory=dict)  # annotation file name → sha256 at that time
    config: dict[str, Any] = field(default_factory=dict)  # of the latest build
    provenance: dict[str, Any] = field(default_factory=dict)  # as in dataset.json
    files: dict[str, str] = field(default_factory=dict)  # path below the dataset's root → sha256


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The work of this build."""

    plans: list[ShardPlan]
    videos: set[str]  # uids of the videos with planned samples
    filtered: pa.Table  # ledger rows of items that the rules exclude, or that no shard can hold
    items: int  # number of planned samples


def read_published(root: Path) -> PublishedState:
    """Return what `root/dataset.json` lists; further shards, left by a killed build, are not published."""
    if not (root / MANIFEST).exists():
        return PublishedState()
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
    return PublishedState(
        next_number=next_number,
        packed=packed,
        failed=failed,
        annotations=dict(dataset.provenance.get("annotations", {})),
        config=dataset.config,
        provenance=dataset.provenance,
        files=dataset.files,
    )


def is_up_to_date(annotations: Annotations, published: PublishedState, root: Path) -> bool:
    """Return whether the published dataset was made from exactly these annotation files and is whole."""
    files = {Path(name).name: digest for name, digest in annotations.sources.items()}
    is_known = files.items() <= published.annotations.items()
    return is_known and all(is_published(published, root, path) for path in annotations.companions)


def is_published(published: PublishedState, root: Path, path: str) -> bool:
    """Return whether a file below `root` is there, with the hash that `dataset.json` lists."""
    return (root / path).is_file() and published.files.get(path) == hash_file(root / path)


def select(
    annotations: Annotations, video_paths: Mapping[str, Path], published: PublishedState, config: BuildConfig
) -> Selection:
    """Return the work of this build: annotated items minus those that rules exclude or that are published.

    `video_paths` maps the uids of the videos on disk to their files.
    """
    split_of = dict(zip(*(annotations.videos[name].to_pylist() for name in ("video_uid", "split")), strict=True))
    annotated = {uid for table in annotations.sets.values() for uid in table["video_uid"].unique().to_pylist()}
    present = annotated & video_paths.keys()
    chosen = subset(present if config.videos.limit else annotated, limit=config.videos.limit, seed=config.shard.seed)
    kept: dict[str, pa.Table] = {}
    filtered: list[pa.Table] = []
    for set_name, table in annotations.sets.items():
        reasons = {
            uid: reason
            for uid in table["video_uid"].unique().to_pylist()
            if (reason := _exclusion_rule(uid, set_spec(set_name), split_of, uid in chosen, uid in present, config))
        }
        kept[set_name], dropped = _drop(table, set_name, reasons)
        filtered.append(dropped)
    plans: list[ShardPlan] = []
    videos: set[str] = set()
    for set_name, table in _items(kept, config).items():
        spec = set_spec(set_name)
        table, oversized = _drop_oversized(table, set_name)
        filtered.append(oversized)
        table = table.filter(pa.array(_is_due(table, published, video_paths, config), pa.bool_()))
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
        filtered=pa.concat_tables([ledger.LEDGER_SCHEMA.empty_table(), *filtered]),
        items=sum(len(plan.items) for plan in plans),
    )


def require_samples(annotations: Annotations, selection: Selection, published: PublishedState) -> None:
    """Raise `UsageError`, with the most frequent reasons, where a new dataset would have no sample at all."""
    if selection.plans or published.next_number:
        return
    rejects = annotations.rejects.filter(pc.not_equal(annotations.rejects["set"], "videos"))
    reasons: Counter[str] = Counter()
    for table in (rejects, selection.filtered):
        names = [table[name].to_pylist() for name in ("set", "status", "reason")]
        reasons.update(f"{set_name} {status}: {reason}" for set_name, status, reason in zip(*names, strict=True))
    rows = sum(count for name, count in annotations.input_rows.items() if name != "videos")
    shown = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(5))
    example = f" (for example {rejects['detail'][0].as_py()})" if len(rejects) else ""
    raise UsageError(
        f"nothing to build: the annotation files ({', '.join(annotations.sources)}) have {rows} rows, "
        + (f"of which none is left: {shown}{example}" if rows else "so there is no sample")
        + ". Correct the files, or what the configuration excludes: annotations.exclude, annotations.redacted, "
        "videos.limit, videos.allow_missing"
    )


def require_unchanged_texts(annotations: Annotations, config: BuildConfig) -> None:
    """Raise `UsageError` where a caption of own videos has another text than its published sample.

    A caption is identified by its video and its times, and published shards are never rewritten.
    """
    if not (config.output / MANIFEST).exists():
        return
    changed = []
    for set_name, _, entry in open_dataset(config.output).splits():
        table = annotations.sets.get(set_name)
        texts = dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)) if table is not None else {}
        packed = entry.rows(["key", "text"])
        for key, text in zip(packed["key"].to_pylist(), packed["text"].to_pylist(), strict=True):
            if texts.get(key, text) != text:
                changed.append((key, text, texts[key]))
    if changed:
        _, before, now = changed[0]
        raise UsageError(
            f"{len(changed)} captions have changed since they were packed, such as {before!r}, now {now!r}. Published "
            f"shards are never rewritten: build into another output with work={config.work_folder}, whose chunks are "
            "used again"
        )


def require_same_plan(root: Path, plans: list[ShardPlan], published: PublishedState) -> set[str]:
    """Return the names of planned shards that an interrupted build already wrote.

    Raises `UsageError` where the interrupted build followed a different plan.
    """
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
            expected = set(plan.items["key"].to_pylist()) if plan else set()
            if plan is None or keys != expected:
                raise UsageError(
                    f"{root / stats.shard} belongs to an unfinished build with a different plan ({len(keys)} samples, "
                    f"{len(keys & expected)} of which are planned for it now): finish that build with its own "
                    "annotations and configuration (config.yaml in its work folder), then build again to append; or "
                    "choose another output"
                )
            done.add(plan.name)
    return done


def _items(kept: Mapping[str, pa.Table], config: BuildConfig) -> dict[str, pa.Table]:
    """Return the items to plan of each set; summaries are joined with all kept narrations, also published ones."""
    items = {set_name: clip_items(table) for set_name, table in kept.items() if set_name != "summaries"}
    if "summaries" in kept:
        clips = kept.get("clips", NARRATION_SCHEMA.empty_table())
        hierarchy = join(clips, kept["summaries"], match_pass=config.annotations.match_pass)
        items["summaries"] = summary_items(kept["summaries"], clips, hierarchy)
    return items


def _drop_oversized(items: pa.Table, set_name: str) -> tuple[pa.Table, pa.Table]:
    """Return the items whose records fit into a shard, and ledger rows for the others.

    Single texts are limited when they are read, but a summary's record also has those of all its narrations.
    """
    sizes = record_sizes(items)
    fits = pa.array(sizes <= MAX_MEMBER["json"], pa.bool_())
    dropped = items.filter(pc.invert(fits))
    limit = f"the limit of a record is {MAX_MEMBER['json']} bytes"
    details = [f"the record would have {size} bytes; {limit}" for size in sizes[sizes > MAX_MEMBER["json"]].tolist()]
    rows = ledger.make_rows(
        set_name, dropped["key"], dropped["video_uid"], status=ledger.FAILED, reason="record too large", detail=details
    )
    return items.filter(fits), rows


def _splits(table: pa.Table, split_of: Mapping[str, str]) -> list[str]:
    """Return each item's split: as stated by a benchmark's files, otherwise that of its video."""
    if "split" in table.column_names:
        return list(table["split"].to_pylist())
    return [split_of.get(uid, "train") for uid in table["video_uid"].to_pylist()]


def _exclusion_rule(
    uid: str, spec: SetSpec, split_of: Mapping[str, str], is_chosen: bool, is_present: bool, config: BuildConfig
) -> str:
    """Return the reason why a video's items are excluded from a set; empty if they are not."""
    split = split_of.get(uid, "train")
    if not spec.is_benchmark and split not in spec.splits:
        return f"{split} split"
    if not is_present and (config.videos.allow_missing or config.videos.limit):
        return "video absent"
    return "" if is_chosen else "beyond videos.limit"


def _drop(table: pa.Table, set_name: str, reasons: Mapping[str, str]) -> tuple[pa.Table, pa.Table]:
    """Return the rows of videos not in `reasons` (uid → reason), and ledger rows for the others."""
    is_dropped = pc.is_in(table["video_uid"], pa.array(list(reasons), pa.string()))
    dropped = table.filter(is_dropped)
    reason = [reasons[uid] for uid in dropped["video_uid"].to_pylist()]
    rows = ledger.make_rows(set_name, dropped["key"], dropped["video_uid"], status=ledger.FILTERED, reason=reason)
    return table.filter(pc.invert(is_dropped)), rows


def _is_due(
    table: pa.Table, published: PublishedState, video_paths: Mapping[str, Path], config: BuildConfig
) -> list[bool]:
    """Return for each item whether to build it: not packed yet, and not failed before unless it is to be retried.

    An item whose video was missing is retried as soon as the video is present.
    """
    retry = config.retry == "failed"
    due = []
    for key, uid in zip(table["key"].to_pylist(), table["video_uid"].to_pylist(), strict=True):
        reason = published.failed.get(key)
        is_present_now = reason == ABSENT and uid in video_paths
        due.append(key not in published.packed and (reason is None or retry or is_present_now))
    return due
