"""Checks what is stated about samples elsewhere: ledger, spans, narrations of summaries, questions and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import companions, schema
from shards.dataset import read_bounded
from shards.stats import ShardError, ShardStats, shard_paths
from shards.verify.findings import FINISH, RESTORE, Finding, without_root
from shards.verify.shard import ShardReport

_MAX_TABLE = 4 << 30  # bytes of ledger or spans, uncompressed
_MAX_NAMED = 20  # rows listed per table
_LEDGER = dict.fromkeys(("set", "video_uid", "status", "reason", "detail", "key", "shard"), pa.string())
_SPANS = {
    "video_uid": pa.string(),
    "start": pa.float64(),
    "end": pa.float64(),
    "status": pa.string(),
    "reason": pa.string(),
}
_STATUSES = ("packed", "filtered", "failed")
_SECONDS = 1e-3  # tolerance of times


def key_findings(reports: Sequence[ShardReport]) -> Iterator[Finding]:
    """Yield the samples whose key occurs more than once in the dataset."""
    keys = pa.array([key for report in reports for key in report.keys], pa.string())
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    repeated = {entry["values"].as_py() for entry in pc.value_counts(keys) if entry["counts"].as_py() > 1}
    for report in reports:
        for key in report.keys:
            if key in repeated:
                problem = "another sample has the same key; keys are unique within a dataset"
                remedy = "rebuild in an empty folder: the annotations have changed"
                yield Finding(file=report.tar, key=key, problem=problem, remedy=remedy)


class Ledger:
    """The ledger and the samples in the shards, compared with each other and with the manifest's counts."""

    def __init__(self, root: Path, reports: Sequence[ShardReport]) -> None:
        self.root, self.reports = root, reports
        self.items: set[str] | None = None  # of the ledger; None if that has no readable column `item`
        self.failed_videos: set[str] = set()
        self.packed_videos: set[str] = set()

    def findings(self, manifest: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield differences between `ledger.parquet`, if it exists, and the samples in the shards."""
        yield from _table_findings(self.root, "ledger.parquet", _LEDGER, lambda table: self._problems(table, manifest))

    def _problems(self, table: pa.Table, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (key, problem): unknown statuses, packed rows without a sample, samples without a row, …"""
        for status in pc.unique(table["status"]).to_pylist():
            if status not in _STATUSES:
                yield "", f"unknown status {status!r}; expected packed, filtered or failed"
        for name in pc.unique(table["set"]).to_pylist():
            if name not in (*schema.RECORDS, "videos"):
                yield "", f"unknown set {name!r}; expected videos or one of {', '.join(schema.RECORDS)}"
        self._remember(table)
        of_sets = table.filter(pc.is_in(table["set"], pa.array(list(schema.RECORDS))))  # videos have rows, no sample
        yield from self._packed_problems(of_sets.filter(pc.equal(of_sets["status"], "packed")))
        accounted = {*table["key"].to_pylist()} if self.items is None else self.items
        for report in self.reports:
            for item in self._failed(report):
                if item not in accounted:
                    yield item, f"the sample failed in {report.tar}, but has no row"
        lost = table.filter(pc.and_(pc.equal(table["status"], "failed"), pc.equal(table["reason"], "")))
        for row in lost.select(["set", "video_uid", "key"]).to_pylist():
            yield row["key"] or row["video_uid"], f"a failed row of {row['set']} has no reason"
        yield from self._count_problems(table, manifest)

    def _remember(self, table: pa.Table) -> None:
        if table.column_names.count("item") == 1 and table["item"].type == pa.string():
            self.items = set(table["item"].to_pylist())
        videos = table.filter(pc.equal(table["set"], "videos"))
        for status, uids in (("failed", self.failed_videos), ("packed", self.packed_videos)):
            uids.update(videos.filter(pc.equal(videos["status"], status))["video_uid"].to_pylist())

    def _packed_problems(self, packed: pa.Table) -> Iterator[tuple[str, str]]:
        rows = pc.binary_join_element_wise(packed["shard"], packed["key"], "\t").combine_chunks()
        placed = pa.array([f"{report.tar}\t{key}" for report in self.reports for key in report.keys], pa.string())
        for entry in placed.filter(pc.invert(pc.is_in(placed, rows))):
            shard, _, key = entry.as_py().partition("\t")
            yield key, f"the sample in {shard} has no packed row"
        for entry in rows.filter(pc.invert(pc.is_in(rows, placed))):
            shard, _, key = entry.as_py().partition("\t")
            yield key, f"the packed row lists {shard}, which has no such sample"
        if pc.count_distinct(rows).as_py() != len(rows):
            for entry in pc.value_counts(rows):
                if entry["counts"].as_py() > 1:
                    yield (
                        entry["values"].as_py().partition("\t")[2],
                        f"{entry['counts'].as_py()} packed rows for one sample",
                    )
        wrong_set = packed.filter(
            pc.not_equal(packed["set"], pc.list_element(pc.split_pattern(packed["shard"], "/"), 0))
        )
        for row in wrong_set.select(["set", "key", "shard"]).to_pylist():
            yield row["key"], f"a packed row of the set {row['set']} lists {row['shard']}"
        keys = pa.array([key for report in self.reports for key in report.keys], pa.string())
        videos = pa.array([uid for report in self.reports for uid in report.videos], pa.string())
        actual = videos.take(pc.index_in(packed["key"].combine_chunks(), keys))  # null where the record is invalid
        is_other = pc.fill_null(pc.not_equal(actual, packed["video_uid"].combine_chunks()), False)
        for row in packed.append_column("actual", actual).filter(is_other).to_pylist():
            yield row["key"], f"the packed row is of video {row['video_uid']!r}; the sample is of {row['actual']!r}"

    def _count_problems(self, table: pa.Table, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield counts in the manifest's provenance that are not those of the ledger."""
        provenance = manifest.get("provenance")
        stated = provenance.get("counts") if isinstance(provenance, dict) else None
        if not isinstance(stated, dict) or not any(isinstance(value, dict) for value in stated.values()):
            return
        counts: dict[str, dict[str, int]] = {}
        for row in table.group_by(["set", "status", "reason"]).aggregate([("key", "count")]).to_pylist():
            name = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
            counts.setdefault(row["set"], {})[name] = row["key_count"]
        for name in sorted({*stated, *counts}):
            if stated.get(name) != counts.get(name):
                listed, actual = stated.get(name), counts.get(name)
                yield "", f"{name} has the rows {actual}; provenance.counts of dataset.json has {listed}"

    def _failed(self, report: ShardReport) -> list[str]:
        job = report.job
        try:
            stats = ShardStats.read(shard_paths(self.root, job.set_name, job.split, job.number)[2])
        except ShardError:
            return []  # reported by check_shard
        return [item.key for item in stats.failed]


def spans_findings(root: Path, reports: Sequence[ShardReport], ledger: Ledger) -> Iterator[Finding]:
    """Yield gaps, overlaps and unknown statuses in `spans.parquet`, if it exists, and samples outside its spans."""
    yield from _table_findings(root, "spans.parquet", _SPANS, lambda table: _span_problems(table, ledger))
    yield from _sample_findings(root, reports)


def _span_problems(table: pa.Table, ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Yield (video, problem) for spans that do not cover a video without gaps from 0 s, each packed or failed."""
    at, video = 0.0, "\0"
    ordered = table.sort_by([("video_uid", "ascending"), ("start", "ascending"), ("end", "ascending")])
    for row in _rows(ordered.select(list(_SPANS))):
        if row["video_uid"] != video:
            at, video = 0.0, row["video_uid"]
        if row["status"] not in ("packed", "failed"):
            yield video, f"unknown status {row['status']!r}; expected packed or failed"
        if row["status"] == "failed" and not row["reason"]:
            yield video, f"{row['start']}–{row['end']} s failed without a reason"
        if not (abs(row["start"] - at) <= 1e-6 and row["start"] <= row["end"] < np.inf):  # false for NaN, too
            yield video, f"span {row['start']}–{row['end']} s; expected one from {at} s"
        at = row["end"]
    listed = set(pc.unique(table["video_uid"]).to_pylist())
    for uid in sorted(ledger.packed_videos - listed):
        yield uid, "the ledger says that the video is packed, but it has no span"
    known = ledger.packed_videos | ledger.failed_videos
    for uid in sorted(listed - known) if known else ():
        yield uid, "the video has spans, but no packed or failed row in the ledger"


def _sample_findings(root: Path, reports: Sequence[ShardReport]) -> Iterator[Finding]:
    """Yield the samples whose stored frames lie beyond their video's last span, or touch a failed one."""
    try:
        spans = read_bounded(root / "spans.parquet", list(_SPANS), limit=_MAX_TABLE)
        if sorted(spans.column_names) != sorted(_SPANS):
            return  # reported by _table_findings
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return  # reported by _table_findings
    ends: dict[str, float] = {}
    damage: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(spans):
        uid, start, end = row["video_uid"], row["start"], row["end"]
        if isinstance(start, float) and isinstance(end, float):
            if row["status"] == "packed":
                ends[uid] = max(end, ends.get(uid, 0.0))
            damage.setdefault(uid, []).extend([(start, end)] if row["status"] == "failed" else [])
    last = {uid: max([end, *(stop for _, stop in damage[uid])]) for uid, end in ends.items()}
    for report in reports:
        extents = report.extents_S3.tolist()
        for key, uid, (start, end, frame) in zip(report.keys, report.videos, extents, strict=True):
            if uid is None or uid not in last:  # no packed span: an earlier build had the video, a later one did not
                continue
            if end > last[uid] + frame + _SECONDS:
                problem = f"its frames end at {end:.3f} s; the spans of its video end at {last[uid]:.3f} s"
                yield Finding(file=report.tar, key=key, problem=problem, remedy=RESTORE)
            for first, stop in damage[uid]:
                if min(end, stop) - max(start, first) > _SECONDS:
                    problem = f"its frames {start:.3f}–{end:.3f} s touch {first:.3f}–{stop:.3f} s, a failed span"
                    yield Finding(file=report.tar, key=key, problem=problem, remedy=RESTORE)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as dicts, some at a time: all of them take ten times the memory of the table."""
    for batch in table.to_batches(max_chunksize=1 << 14):
        yield from batch.to_pylist()


def narration_findings(reports: Sequence[ShardReport], ledger: Ledger) -> Iterator[Finding]:
    """Yield narrations of summaries that differ from the clip with their key, or that nothing accounts for."""
    clips = [report for report in reports if report.job.set_name == "clips"]
    keys = pa.array([key for report in clips for key in report.keys], pa.string())
    digests_S = np.concatenate([np.zeros(0, np.uint64), *(report.digests_S for report in clips)])
    for report in reports:
        found = pc.index_in(report.narrations, keys)
        for place in np.flatnonzero(np.asarray(found.is_null())).tolist():
            narration, key = report.narrations[place].as_py(), report.keys[report.narration_rows_N[place]]
            if ledger.items is not None and narration not in ledger.items:
                problem = f"json: the narration {narration} is neither a sample of clips nor in the ledger"
                yield Finding(file=report.tar, key=key, problem=problem, remedy=RESTORE)
        if not len(digests_S):
            continue
        clip_digests_N = digests_S[found.fill_null(0).to_numpy(zero_copy_only=False)]
        is_known_N = ~np.asarray(found.is_null()) & (clip_digests_N != 0)
        for place in np.flatnonzero(is_known_N & (clip_digests_N != report.narration_digests_N)).tolist():
            narration, key = report.narrations[place].as_py(), report.keys[report.narration_rows_N[place]]
            problem = f"json: video, text, start or tags of the narration {narration} differ from those of its clip"
            yield Finding(file=report.tar, key=key, problem=problem, remedy=RESTORE)


def encoding_findings(reports: Sequence[ShardReport]) -> Iterator[Finding]:
    """Yield videos whose decoder configuration differs from that of most other samples of the same source video.

    All samples of a video at one rate are cut from chunks that one encoder made with one configuration.
    """
    counts: dict[tuple[str, bool], Counter[int]] = {}
    for report in reports:
        is_long = schema.SETS[report.job.set_name].is_long
        for uid, encoding in zip(report.videos, report.encodings_S.tolist(), strict=True):
            if uid is not None and encoding:
                counts.setdefault((uid, is_long), Counter())[encoding] += 1
    usual = {place: counter.most_common(1)[0][0] for place, counter in counts.items() if len(counter) > 1}
    for report in reports if usual else ():
        is_long = schema.SETS[report.job.set_name].is_long
        for key, uid, encoding in zip(report.keys, report.videos, report.encodings_S.tolist(), strict=True):
            if uid is not None and encoding and usual.get((uid, is_long), encoding) != encoding:
                problem = f"mp4: its decoder configuration differs from that of other samples of the video {uid!r}"
                yield Finding(file=report.tar, key=key, problem=problem, remedy=RESTORE)


def companion_findings(
    root: Path, manifest: Mapping[str, Any], reports: Sequence[ShardReport], ledger: Ledger
) -> Iterator[Finding]:
    """Yield absent, unlisted, malformed and contradictory questions and labels of the splits that have shards."""
    by_split: dict[tuple[str, str], set[str]] = {}
    for report in reports:
        by_split.setdefault((report.job.set_name, report.job.split), set()).update(report.keys)
    for (set_name, split), keys in sorted(by_split.items()):
        if split not in schema.SETS[set_name].companions:
            continue
        name = companions.companion_path(set_name, split)
        if manifest and name not in manifest["files"]:
            yield Finding(file=name, problem="dataset.json does not list it", remedy=FINISH)
        if not (root / name).is_file():
            if name not in manifest.get("files", {}):  # otherwise reported by file_findings
                yield Finding(file=name, problem="absent, so the split has no questions or labels", remedy=FINISH)
            continue
        try:
            companion = companions.read_companion(root, set_name, split)
        except companions.CompanionError as error:
            problem = without_root(error, root).removeprefix(f"{name}: ")
            yield Finding(file=name, problem=problem, remedy=FINISH)
            continue
        for problem in _companion_problems(companion, set_name, split, keys, ledger):
            yield Finding(file=name, problem=problem, remedy=FINISH)


def _companion_problems(
    companion: companions.Companion, set_name: str, split: str, keys: set[str], ledger: Ledger
) -> Iterator[str]:
    """Yield contradictions between questions or labels and the samples of their split."""
    if isinstance(companion, companions.Questions):
        if (companion.set, companion.split) != (set_name, split):
            yield f"it is for {companion.set}/{companion.split}; expected {set_name}/{split}"
        named = companion.keys()
    else:
        named = [video.key for video in companion.videos]
        for key in sorted(keys.difference(named)):
            yield f"the sample {key} has no labels"
    if ledger.items is not None:
        for key in named:
            if key not in keys and key not in ledger.items:
                yield f"{key} is neither a sample of {set_name}/{split} nor in the ledger"


def _table_findings(
    root: Path, name: str, columns: Mapping[str, pa.DataType], check: Callable[[pa.Table], Iterable[tuple[str, str]]]
) -> Iterator[Finding]:
    if not (root / name).exists():
        return
    try:
        table = read_bounded(root / name, limit=_MAX_TABLE)
    except (ValueError, KeyError, TypeError, MemoryError, pa.ArrowException, OSError) as error:
        yield Finding(file=name, problem=f"cannot be read: {without_root(error, root)}", remedy=FINISH)
        return
    for column, kind in columns.items():
        fields = [field for field in table.schema if field.name == column]
        if len(fields) != 1 or fields[0].type != kind or table[column].null_count:
            yield Finding(file=name, problem=f"missing column {column} of type {kind} without nulls", remedy=FINISH)
            return
    problems = islice(check(table), 1000)
    for key, problem in islice(problems, _MAX_NAMED):
        yield Finding(file=name, key=key, problem=problem, remedy=FINISH)
    if rest := sum(1 for _ in problems):
        yield Finding(file=name, problem=f"at least {rest} more problems", remedy=FINISH)
