"""Checks one shard against itself: stats, tar, parquet, and every sample down to its last frame."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import schema, tar
from shards.dataset import hash_file, row_schema
from shards.keys import is_key
from shards.stats import ShardError, ShardStats, shard_paths
from shards.verify.media import jpg_problems, mp4_problems

MAX_FINDINGS = 40  # of one shard; what is broken all through is not told a thousand times
MAX_ROWS_BYTES = 1 << 30  # of a shard's parquet, on disk and unpacked
REBUILD = "delete the shard's three files and run the build again; the plan gives the same shard"
RESTORE = "fetch the file again from where it was published, or " + REBUILD


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem: in which file, of which sample, what it is and how to mend it."""

    file: str  # relative to the dataset's root
    key: str = ""
    what: str
    mend: str


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Which shard is to be checked."""

    root: Path
    set_name: str
    split: str
    number: int
    bytes: int  # of the tar, for the progress


@dataclass(kw_only=True)
class ShardReport:
    """What was found in one shard, and the keys that its tar holds."""

    job: ShardJob
    findings: list[Finding] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    frames: int = 0


def check_shard(job: ShardJob) -> ShardReport:
    """Return what is wrong with a shard that has a stats file."""
    report = ShardReport(job=job)
    report.findings += islice(_findings(job, report), MAX_FINDINGS + 1)
    if len(report.findings) > MAX_FINDINGS:
        last = report.findings[MAX_FINDINGS]
        report.findings[MAX_FINDINGS:] = [
            Finding(file=last.file, what=f"more than {MAX_FINDINGS} problems; the rest is left out", mend=REBUILD)
        ]
    return report


def _findings(job: ShardJob, report: ShardReport) -> Iterator[Finding]:
    tar_path, parquet_path, stats_path = shard_paths(job.root, job.set_name, job.split, job.number)
    try:
        stats = ShardStats.read(stats_path)
    except (ShardError, OSError) as error:
        yield Finding(file=_name(job, stats_path), what=_without_root(error, job), mend=RESTORE)
        return
    if stats.shard != _name(job, tar_path):
        yield Finding(file=_name(job, stats_path), what=f"it speaks of the shard {stats.shard}", mend=RESTORE)
    if stats.samples == 0:
        return
    rows: list[dict[str, Any]] | None = None
    if tar_path.is_file():
        rows = []
        yield from _tar_findings(job, tar_path, stats, report, rows)
    if parquet_path.is_file():
        yield from _parquet_findings(job, parquet_path, stats, rows)


def _tar_findings(
    job: ShardJob, path: Path, stats: ShardStats, report: ShardReport, rows: list[dict[str, Any]]
) -> Iterator[Finding]:
    """Yield what is wrong with the tar; fill `rows` with what the parquet should say of each of its samples."""
    name = _name(job, path)
    if (size := path.stat().st_size) != stats.bytes:
        yield Finding(file=name, what=f"{size} bytes; its stats say {stats.bytes}", mend=RESTORE)
    reader = tar.TarReader(path)
    member_bytes = dict.fromkeys(schema.MEMBERS, 0)
    seen: set[str] = set()
    filled: list[bool] = []
    try:
        for members in _runs(reader):
            key = members[0].key
            if key in seen:
                yield Finding(file=name, key=key, what="its members, or others of this key, come twice", mend=RESTORE)
            seen.add(key)
            for member in members:
                member_bytes[member.ext] += member.size
            record, problems = _check_sample(job.set_name, members)
            for what in problems:
                yield Finding(file=name, key=key, what=what, mend=RESTORE)
            report.keys.append(key)
            rows.append(_row(job.set_name, members, record))
            if record is not None:
                report.frames += record.num_frames
                filled.append(schema.list_depths_filled(schema.to_json(record)))
    except tar.TarError as error:
        yield Finding(file=name, what=str(error), mend=RESTORE)
    for what, found, said in (
        ("sha256", reader.sha256, stats.sha256),
        ("number of samples", len(rows), stats.samples),
        ("bytes of the members", member_bytes, stats.member_bytes),
    ):
        if found != said:
            yield Finding(file=name, what=f"the {what}: {found}; its stats say {said}", mend=RESTORE)
    if any(filled) and not filled[0]:
        what = "the first sample has an empty list though others have none: readers that infer types stumble"
        yield Finding(file=name, key=rows[0]["key"], what=what, mend=REBUILD)


def _runs(reader: tar.TarReader) -> Iterator[list[tar.Member]]:
    """Yield the members sample by sample: those of one key that follow on one another, four at most."""
    run: list[tar.Member] = []
    for member in reader:
        if run and (member.key != run[0].key or len(run) == len(schema.MEMBERS)):
            yield run
            run = []
        run.append(member)
    if run:
        yield run


def _check_sample(set_name: str, members: list[tar.Member]) -> tuple[schema.MediaRecord | None, list[str]]:
    """Return a sample's record, None where it has no legal one, and what is wrong with the sample."""
    exts = tuple(member.ext for member in members)
    problems = []
    if exts != schema.MEMBERS:
        problems.append(f"its members are {', '.join(exts)}; {', '.join(schema.MEMBERS)} is expected, in this order")
    data = {member.ext: member.data for member in members if member.data is not None}
    problems += [
        f"{member.ext} has {member.size} bytes, more than the {tar.MAX_MEMBER[member.ext]} that are read"
        for member in members
        if member.data is None
    ]
    if "json" not in data:
        return None, problems
    try:
        record = schema.from_json(set_name, json.loads(data["json"]))
        schema.check(set_name, record)
    except (ValueError, RecursionError) as error:
        return None, [*problems, f"json: {error}"]
    problems += _record_problems(record)
    if schema.to_bytes(record) != data["json"]:
        problems.append("json: not the bytes that the writer writes for this record")
    if "txt" in data and data["txt"] != record.text.encode():
        problems.append(f"txt is {data['txt'][:80]!r}, not the text in json, {record.text[:80]!r}")
    if "jpg" in data:
        problems += [f"jpg: {problem}" for problem in jpg_problems(data["jpg"], record)]
    if "mp4" in data:
        problems += [f"mp4: {problem}" for problem in mp4_problems(data["mp4"], record)]
    return record, problems


def _record_problems(record: schema.MediaRecord) -> Iterator[str]:
    """Yield where the fields of a record do not agree with each other."""
    if isinstance(record, schema.ClipRecord):
        segment = f"{record.video_uid}_{math.floor(record.narration_time / 60)}"
        if record.segment != segment:
            yield f"json: segment is {record.segment!r}; {segment!r} follows from the narration's time"
    if isinstance(record, schema.SummaryRecord):
        starts = [narration.clip_start for narration in record.narrations]
        if starts != sorted(starts):
            yield "json: the narrations are not in time order"
        illegal = [narration.key for narration in record.narrations if not is_key(narration.key)]
        if illegal:
            yield f"json: narrations with illegal keys: {illegal[:3]}"


def _row(set_name: str, members: list[tar.Member], record: schema.MediaRecord | None) -> dict[str, Any]:
    """Return what a sample's parquet row should say, as far as the tar tells."""
    row: dict[str, Any] = {"key": members[0].key}
    for member in members:
        row[f"{member.ext}_offset"], row[f"{member.ext}_size"] = member.offset, member.size
    if record is not None:
        row.update((name, getattr(record, name)) for name in schema.scalar_fields(set_name))
    return row


def _parquet_findings(
    job: ShardJob, path: Path, stats: ShardStats, rows: list[dict[str, Any]] | None
) -> Iterator[Finding]:
    """Yield what is wrong with the parquet; `rows` is what the tar says, None without a tar."""
    name = _name(job, path)
    if (sha256 := hash_file(path)) != stats.parquet_sha256:
        what = f"the sha256: {sha256}; its stats say {stats.parquet_sha256}"
        yield Finding(file=name, what=what, mend=RESTORE)
    try:
        table = read_bounded(path, row_schema(job.set_name))
    except (ShardError, pa.ArrowException, OSError) as error:
        yield Finding(file=name, what=_without_root(error, job), mend=RESTORE)
        return
    if len(table) != stats.samples:
        yield Finding(file=name, what=f"{len(table)} rows; its stats say {stats.samples} samples", mend=RESTORE)
    if rows is None:
        return
    for number, (expected, found) in enumerate(zip(rows, table.to_pylist(), strict=False)):
        for column, value in expected.items():
            if found[column] != value:
                what = f"row {number}: {column} is {reprlib.repr(found[column])}; the tar says {reprlib.repr(value)}"
                yield Finding(file=name, key=expected["key"], what=what, mend=RESTORE)


def read_bounded(path: Path, expected: pa.Schema | None = None, *, limit: int = MAX_ROWS_BYTES) -> pa.Table:
    """Return a parquet file that nobody vouches for; raise `ShardError` for other columns or for one too big."""
    with pq.ParquetFile(path) as handle:
        groups = (handle.metadata.row_group(i) for i in range(handle.metadata.num_row_groups))
        if max(path.stat().st_size, sum(group.total_byte_size for group in groups)) > limit:
            raise ShardError(f"{path}: more than {limit} bytes, unpacked: it was not read")
        found = handle.schema_arrow
        if expected is not None and not found.equals(expected):
            columns = [f"{column.name} {column.type}" for column in expected]
            raise ShardError(f"{path}: the columns are {', '.join(found.names)}; expected: {', '.join(columns)}")
        return handle.read()


def _name(job: ShardJob, path: Path) -> str:
    return path.relative_to(job.root).as_posix()


def _without_root(error: Exception, job: ShardJob) -> str:
    return str(error).replace(f"{job.root}/", "")
