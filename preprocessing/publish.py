"""Closes a build: the ledger, the spans, the indexes, and last of all dataset.json."""

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
from preprocessing.provenance import merged_config, merged_provenance
from preprocessing.selection import Published, Selection
from preprocessing.video.chunks import Chunk
from shards.dataset import Dataset
from shards.files import write_json
from shards.index import done_shards, splits_of, write_dataset
from shards.schema import LABELS, QUESTIONS, SETS


def close_account(
    config: BuildConfig,
    annotations: Annotations,
    selection: Selection,
    chunks: Mapping[str, Sequence[Chunk] | str],
    excluded: frozenset[str],
) -> tuple[pa.Table, list[ledger.Span]]:
    """Return ledger and spans over everything in the output folder; raise `UnbalancedError` unless all sums close.

    `chunks` has, for each video of this run, the records of its chunks or why there are none. Of sets and videos that
    these annotations do not speak of, the account of the build that made them is carried over.
    """
    root = config.output
    before = ledger.read_ledger(root)
    carried = _carried(annotations, before)
    video_of = _videos_of_items(annotations, before)
    tables = [
        carried,
        ledger.reject_rows(annotations.rejects),
        selection.filtered,
        _video_rows(annotations, selection, chunks, before, excluded),
    ]
    for set_name, split in splits_of(root):
        tables += [ledger.shard_rows(root, stats, video_of) for stats in done_shards(root, set_name, split)]
    account = _latest(pa.concat_tables(tables))
    ledger.check_sums(account, _expected(annotations, account, carried))
    spans = [span for span in ledger.read_spans(root) if span.video_uid not in chunks]
    durations = dict(zip(*(annotations.videos[n].to_pylist() for n in ("video_uid", "duration")), strict=True))
    for uid, records in chunks.items():
        if isinstance(records, str):
            spans.append(ledger.lost_span(uid, durations.get(uid, 0.0), records))
        else:
            spans += ledger.video_spans(uid, records)
    return account, spans


def publish(
    config: BuildConfig,
    annotations: Annotations,
    account: pa.Table,
    spans: Sequence[ledger.Span],
    *,
    excluded: frozenset[str],
    toolchain: Mapping[str, str],
    published: Published,
) -> Dataset:
    """Write questions and labels, the account, the indexes, the card and dataset.json; return the dataset.

    `published` is what the output held before this build: what it says of other sets stays.
    """
    _prove_exclusion(account, excluded)
    for path, value in annotations.companions.items():
        write_json(config.output / path, value)
    ledger.write(config.output, account, spans)
    counts: dict[str, Any] = {}
    for set_name, status, reason, count in ledger.summarise(account):
        counts.setdefault(set_name, {})[f"{status}: {reason}" if reason else status] = count
    return write_dataset(
        config.output,
        config=merged_config(config, published.config),
        toolchain=toolchain,
        provenance=merged_provenance(config, annotations, published.provenance, excluded=len(excluded), counts=counts),
        companions=sorted({*annotations.companions, *_companions(published)}),
    )


def require_companions(root: Path, annotations: Annotations, published: Published) -> None:
    """Raise `UsageError` where questions or labels that an earlier build published are gone, and will not come back."""
    for path in _companions(published):
        if path not in annotations.companions and not (root / path).is_file():
            raise UsageError(
                f"{root / path} is gone, though dataset.json lists it: build {path.partition('/')[0]} again with its "
                "own configuration, which writes it anew"
            )


def _companions(published: Published) -> list[str]:
    """Return the questions and labels that a published dataset lists."""
    return [path for path in published.files if Path(path).name in (QUESTIONS, LABELS)]


def _videos_of_items(annotations: Annotations, before: pa.Table) -> dict[str, str]:
    """Return key → video_uid of every item that can have failed, those of earlier annotations included."""
    known = dict(zip(before["item"].to_pylist(), before["video_uid"].to_pylist(), strict=True))
    for table in annotations.sets.values():
        known.update(zip(table["key"].to_pylist(), table["video_uid"].to_pylist(), strict=True))
    return known


def _video_rows(
    annotations: Annotations,
    selection: Selection,
    chunks: Mapping[str, Sequence[Chunk] | str],
    before: pa.Table,
    excluded: frozenset[str],
) -> pa.Table:
    """Return one ledger row for each video that annotations or metadata name."""
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
            row = (ledger.FILTERED, filtered.get(uid, default), "")
        elif isinstance(records, str):
            short, _, long = records.partition(": ")
            row = (ledger.FAILED, short, long)
        else:
            damage = "; ".join(str(item) for chunk in records for item in chunk.damage)
            lost = all(chunk.is_failed for chunk in records)
            row = (ledger.FAILED if lost else ledger.PACKED, "damaged source" if lost else "", damage)
        for column, value in zip((status, reason, detail), row, strict=True):
            column.append(value)
    return ledger.rows("videos", uids, uids, status=status, reason=reason, detail=detail)


def _latest(account: pa.Table) -> pa.Table:
    """Return the account with one row an item where a later build mended an earlier one's failure: packed wins."""
    rank = pc.index_in(account["status"], pa.array([ledger.PACKED, ledger.FAILED, ledger.FILTERED])).to_numpy()
    # The last row of equal rank is the latest shard's.
    order = np.lexsort((-np.arange(len(account)), rank))
    ordered = account.take(pa.array(order)).append_column("row", pa.array(order))
    kept = ordered.group_by(["set", "item"], use_threads=False).aggregate([("row", "first")])["row_first"]
    return account.take(kept.combine_chunks())


def _carried(annotations: Annotations, before: pa.Table) -> pa.Table:
    """Return the rows of an earlier build's ledger about sets and videos that these annotations do not speak of."""
    today = pa.array([*annotations.sets, "videos"], pa.string())
    videos = before.filter(pc.equal(before["set"], "videos"))
    known = pa.concat_arrays(
        [annotations.videos["video_uid"].combine_chunks(), annotations.rejects["item"].combine_chunks()]
    )
    others = before.filter(pc.invert(pc.is_in(before["set"], today)))
    return pa.concat_tables([others, videos.filter(pc.invert(pc.is_in(videos["item"], known)))])


def _expected(annotations: Annotations, account: pa.Table, carried: pa.Table) -> dict[str, int]:
    """Return how many rows each set must have: today's input rows, and what only earlier annotations had."""
    expected = dict.fromkeys((*SETS, "videos"), 0)
    for row in carried.group_by("set").aggregate([("item", "count")]).to_pylist():
        expected[row["set"]] = row["item_count"]
    rejected = pc.sum(pc.equal(annotations.rejects["set"], "videos")).as_py() or 0
    expected["videos"] += len(annotations.videos) + rejected
    for name, table in annotations.sets.items():
        rows = account.filter(pc.equal(account["set"], name))
        today = pa.concat_arrays([table["key"].combine_chunks(), annotations.rejects["item"].combine_chunks()])
        earlier = pc.sum(pc.invert(pc.is_in(rows["item"], today))).as_py() or 0
        expected[name] = annotations.input_rows[name] + earlier
    return expected


def _prove_exclusion(account: pa.Table, excluded: frozenset[str]) -> None:
    """Raise `UsageError` where an excluded video is packed to pretrain on: evaluation would see what was learnt."""
    pretraining = pa.array([name for name, spec in SETS.items() if not spec.is_benchmark])
    packed = account.filter(pc.and_(pc.equal(account["status"], ledger.PACKED), pc.is_in(account["set"], pretraining)))
    inside = packed.filter(pc.is_in(packed["video_uid"], pa.array(sorted(excluded), pa.string())))
    if len(inside):
        row = inside.slice(0, 1).to_pylist()[0]
        raise UsageError(
            f"{row['shard']}: {row['key']} is of {row['video_uid']}, which annotations.exclude names, and was packed "
            "by an earlier build; a published tar is never rewritten: build into another output"
        )
