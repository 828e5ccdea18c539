"""Reopens shards of an unfinished build whose failed samples are to be tried again."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from preprocessing.config import BuildConfig
from preprocessing.plan import ShardPlan
from preprocessing.selection import ABSENT
from shards.stats import ShardStats, shard_paths


def reopen_failed(
    config: BuildConfig, plans: Iterable[ShardPlan], done: Collection[str], present: Collection[str]
) -> set[str]:
    """Remove unpublished shards with samples to be tried again; return the names in `done` of those that stay.

    `done` has the names of planned shards that are written but not published: published ones are never rewritten, and
    what failed in them goes to new ones. With `retry: failed`, every failed sample is tried again, otherwise only those
    whose video was missing and is in `present` (uids) now.
    """
    kept = set(done)
    for plan in plans:
        if plan.name not in done:
            continue
        tar, parquet, stats_path = shard_paths(config.output, plan.set_name, plan.split, plan.number)
        failed = {item.key: item.reason for item in ShardStats.read(stats_path).failed}
        uids = zip(plan.items["key"].to_pylist(), plan.items["video_uid"].to_pylist(), strict=True)
        if any(
            key in failed and (config.retry == "failed" or (failed[key] == ABSENT and uid in present))
            for key, uid in uids
        ):
            for path in (stats_path, parquet, tar):  # the stats first: without them the shard is an unfinished one
                path.unlink(missing_ok=True)
            kept.discard(plan.name)
    return kept
