"""Publishes a build: writes the ledger, the spans, the index files and, last, dataset.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing import ledger
from preprocessing.annotations import Annotations
from preprocessing.config import BuildConfig
from preprocessing.errors import UsageError
from preprocessing.provenance import is_pretraining, merged_config, merged_provenance
from preprocessing.selection import PublishedState, Selection, is_published
from preprocessing.video.chunks import Chunk
from shards.dataset import DENYLIST, Dataset, read_denylist
from shards.files import write_json
from shards.index import done_shards, splits_of, write_dataset
from shards.schema import LABELS, QUESTIONS, SETS

PENDING = "pending"  # status of what a build that stopped early did not get to; in no published ledger


def close_ledger(
    config: BuildConfig,
    annotations: Annotations,
    selection: Selection,
    chunks: Mapping[str, Sequence[Chunk] | str],
    excluded: frozenset[str],
) -> tuple[pa.Table, list[ledger.SourceSpan]]:
    """Return the ledger and the spans of everything in the output folder.

    `chunks` has, for each video of this build, the records of its chunks or why there are none. Rows about sets and
    videos that these annotations do not mention are carried over from the ledger of earlier builds. Raises
    `UnbalancedError` unless every input item is accounted for exactly once.
    """
    return _ledger(config, annotations, selection, chunks, excluded, pending=None)


def interim_ledger(
    config: BuildConfig,
    annotations: Annotations,
    selection: Selection,
    chunks: Mapping[str, Sequence[Chunk] | str],
    excluded: frozenset[str],
) -> tuple[pa.Table, list[ledger.SourceSpan]]:
    """Return the ledger and the spans of a build that stops early: as `close_ledger`, with the rest as `pending`.

    `chunks` lacks the videos of which chunks are still to be made. Planned samples of unusable videos are failed ones.
    """
    tables = []
    for plan in selection.plans:
        uids = plan.items["video_uid"].to_pylist()
        reasons = [records if isinstance(records := chunks.get(uid), str) else "" for uid in uids]
        parts = [reason.partition(": ") for reason in reasons]
        tables.append(
            ledger.make_rows(
                plan.set_name,
                plan.items["key"],
                plan.items["video_uid"],
                status=[ledger.FAILED if reason else PENDING for reason in reasons],
                reason=[short for short, _, _ in parts],
                detail=[long or short for short, _, long in parts],
            )
        )
    pending = pa.concat_tables([ledger.LEDGER_SCHEMA.empty_table(), *tables])
    return _ledger(config, annotations, selection, chunks, excluded, pending=pending)


def _ledger(
    config: BuildConfig,
    annotations: Annotations,
    selection: Selection,
    chunks: Mapping[str, Sequence[Chunk] | str],
    excluded: frozenset[str],
    *,
    pending: pa.Table | None,
) -> tuple[pa.Table, list[ledger.SourceSpan]]:
    """Return the ledger and the spans; a row of `pending` counts only where there is no other of that item."""
    root = config.output
    before = ledger.read_ledger(root)
    carried = _carried_over(annotations, before)
    video_of = _videos_of_items(annotations, before)
    tables = [
        carried,
        ledger.reject_rows(annotations.rejects),
        selection.filtered,
        _video_rows(annotations, selection, chunks, before, excluded),
        *([pending] if pending is not None else []),
    ]
    for set_name, split in splits_of(root):
        tables += [ledger.shard_rows(root, stats, video_of) for stats in done_shards(root, set_name, split)]
    table = _latest(pa.concat_tables(tables))
    ledger.require_balanced(table, _expected(annotations, table, carried))
    spans = [span for span in ledger.read_spans(root) if span.video_uid not in chunks]
    durations = dict(zip(*(annotations.videos[n].to_pylist() for n in ("video_uid", "duration")), strict=True))
    for uid, records in chunks.items():
        if isinstance(records, str):
            spans.append(ledger.unusable_span(uid, durations.get(uid, 0.0), records))
        else:
            spans += ledger.video_spans(uid, records)
    return table, spans


def publish(
    config: BuildConfig,
    annotations: Annotations,
    ledger_table: pa.Table,
    spans: Sequence[ledger.SourceSpan],
    *,
    excluded: frozenset[str],
    toolchain: Mapping[str, str],
    published: PublishedState,
) -> Dataset:
    """Write companions, ledger, spans, index files, dataset card and, last, dataset.json; return the dataset.

    `published` is the state of the output before this build; what it records about other sets is kept. Raises
    `UsageError` where a sample of an excluded video that is not on the denylist is in a set for pretraining.
    """
    _require_exclusion(ledger_table, excluded - read_denylist(config.output / DENYLIST))
    for path, value in annotations.companions.items():
        write_json(config.output / path, value)
    ledger.write(config.output, ledger_table, spans)
    counts: dict[str, Any] = {}
    for set_name, status, reason, count in ledger.summarise(ledger_table):
        counts.setdefault(set_name, {})[f"{status}: {reason}" if reason else status] = count
    return write_dataset(
        config.output,
        config=merged_config(config, published.config, is_pretraining=is_pretraining(annotations)),
        toolchain=toolchain,
        provenance=merged_provenance(config, annotations, published.provenance, excluded=len(excluded), counts=counts),
        companions=sorted({*annotations.companions, *_companions(published)}),
    )


def require_companions(root: Path, annotations: Annotations, published: PublishedState) -> None:
    """Raise `UsageError` where a published companion is missing or altered and this build would not write it again."""
    for path in _companions(published):
        if path not in annotations.companions and not is_published(published, root, path):
            what = "is not the file that dataset.json lists" if (root / path).is_file() else "is missing"
            raise UsageError(
                f"{root / path} {what}: build {path.partition('/')[0]} again with its own configuration to restore it"
            )


def _companions(published: PublishedState) -> list[str]:
    """Return the paths of the questions and labels of a published dataset."""
    return [path for path in published.files if Path(path).name in (QUESTIONS, LABELS)]


def _videos_of_items(annotations: Annotations, before: pa.Table) -> dict[str, str]:
    """Return key → video_uid of every annotated item, including items of earlier annotations."""
    video_of = dict(zip(before["item"].to_pylist(), before["video_uid"].to_pylist(), strict=True))
    for table in annotations.sets.values():
        video_of.update(zip(table["key"].to_pylist(), table["video_uid"].to_pylist(), strict=True))
    return video_of


def _video_rows(
    annotations: Annotations,
    selection: Selection,
    chunks: Mapping[str, Sequence[Chunk] | str],
    before: pa.Table,
    excluded: frozenset[str],
) -> pa.Table:
    """Return one ledger row for each video that annotations or metadata mention."""
    earlier = {
        row["item"]: row
        for row in before.filter(pc.equal(before["set"], "videos")).to_pylist()
        if row["status"] != "filtered"
    }
    filtered = dict(
        zip(selection.filtered["video_uid"].to_pylist(), selection.filtered["reason"].to_pylist(), strict=True)
    )
    uids = annotations.videos["video_uid"].to_pylist()
    status: list[str] = []
    reason: list[str] = []
    detail: list[str] = []
    for uid in uids:
        records = chunks.get(uid)
        if records is None and uid in earlier:
            row = (earlier[uid]["status"], earlier[uid]["reason"], earlier[uid]["detail"])
        elif records is None:
            default = "excluded: used by evaluation" if uid in excluded else "no usable annotation"
            is_pending = uid in selection.videos  # only where the build stops early
            row = (PENDING, "", "") if is_pending else (ledger.FILTERED, filtered.get(uid, default), "")
        elif isinstance(records, str):
            short, _, long = records.partition(": ")
            row = (ledger.FAILED, short, long)
        else:
            damage = "; ".join(str(item) for chunk in records for item in chunk.damage)
            lost = all(chunk.is_failed for chunk in records)
            row = (ledger.FAILED if lost else ledger.PACKED, "damaged source" if lost else "", damage)
        for column, value in zip((status, reason, detail), row, strict=True):
            column.append(value)
    return ledger.make_rows("videos", uids, uids, status=status, reason=reason, detail=detail)


def _latest(table: pa.Table) -> pa.Table:
    """Return a ledger with one row per item: `packed` before `failed` before `filtered`, then the latest shard's."""
    rank = pc.index_in(table["status"], pa.array([ledger.PACKED, ledger.FAILED, ledger.FILTERED, PENDING])).to_numpy()
    order = np.lexsort((-np.arange(len(table)), rank))
    ordered = table.take(pa.array(order)).append_column("row", pa.array(order))
    kept = ordered.group_by(["set", "item"], use_threads=False).aggregate([("row", "first")])["row_first"]
    return table.take(kept.combine_chunks())


def _carried_over(annotations: Annotations, before: pa.Table) -> pa.Table:
    """Return the rows of the earlier ledger about sets and videos that these annotations do not mention."""
    current = pa.array([*annotations.sets, "videos"], pa.string())
    videos = before.filter(pc.equal(before["set"], "videos"))
    known = pa.concat_arrays(
        [annotations.videos["video_uid"].combine_chunks(), annotations.rejects["item"].combine_chunks()]
    )
    others = before.filter(pc.invert(pc.is_in(before["set"], current)))
    return pa.concat_tables([others, videos.filter(pc.invert(pc.is_in(videos["item"], known)))])


def _expected(annotations: Annotations, ledger_table: pa.Table, carried: pa.Table) -> dict[str, int]:
    """Return the number of rows each set must have: current input rows plus items of earlier annotations only."""
    expected = dict.fromkeys((*SETS, "videos"), 0)
    for row in carried.group_by("set").aggregate([("item", "count")]).to_pylist():
        expected[row["set"]] = row["item_count"]
    rejected = pc.sum(pc.equal(annotations.rejects["set"], "videos")).as_py() or 0
    expected["videos"] += len(annotations.videos) + rejected
    for name, table in annotations.sets.items():
        rows = ledger_table.filter(pc.equal(ledger_table["set"], name))
        current = pa.concat_arrays([table["key"].combine_chunks(), annotations.rejects["item"].combine_chunks()])
        earlier = pc.sum(pc.invert(pc.is_in(rows["item"], current))).as_py() or 0
        expected[name] = annotations.input_rows[name] + earlier
    return expected


def _require_exclusion(table: pa.Table, excluded: frozenset[str]) -> None:
    """Raise `UsageError` where a pretraining set contains an excluded video: evaluation would use training data."""
    pretraining = pa.array([name for name, spec in SETS.items() if not spec.is_benchmark])
    packed = table.filter(pc.and_(pc.equal(table["status"], ledger.PACKED), pc.is_in(table["set"], pretraining)))
    leaked = packed.filter(pc.is_in(packed["video_uid"], pa.array(sorted(excluded), pa.string())))
    if len(leaked):
        row = leaked.slice(0, 1).to_pylist()[0]
        raise UsageError(
            f"{row['shard']} contains {row['key']} of video {row['video_uid']}, which annotations.exclude lists and "
            f"{DENYLIST} does not: it was packed by an earlier build, and shards are never rewritten. Run the same "
            "command again, which withdraws it"
        )
