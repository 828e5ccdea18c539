"""Checks one shard: its stats file, tar and parquet against each other, and every frame of every sample."""

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

MAX_FINDINGS = 40  # per shard
MAX_ROWS_BYTES = 1 << 30  # of a shard's parquet, on disk and uncompressed
REBUILD = "delete the shard's three files and rerun the build, which reproduces the shard"
RESTORE = "download the file again from where it was published, or " + REBUILD


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem of a dataset."""

    file: str  # relative to the dataset's root
    key: str = ""  # of the sample, or of the ledger's or span's row, if it concerns a single one
    problem: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to check."""

    root: Path
    set_name: str
    split: str
    number: int
    bytes: int  # of the tar, for the progress bar


@dataclass(kw_only=True)
class ShardReport:
    """The result of checking one shard."""

    job: ShardJob
    findings: list[Finding] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # of the samples in the tar, in order
    frames: int = 0  # stored, of all samples with a valid record


def check_shard(job: ShardJob) -> ShardReport:
    """Check a shard that has a stats file; its report has at most `MAX_FINDINGS` problems and a note of more."""
    report = ShardReport(job=job)
    report.findings += islice(_findings(job, report), MAX_FINDINGS + 1)
    if len(report.findings) > MAX_FINDINGS:
        last = report.findings[MAX_FINDINGS]
        report.findings[MAX_FINDINGS:] = [
            Finding(
                file=last.file, problem=f"more than {MAX_FINDINGS} problems; the others are omitted", remedy=REBUILD
            )
        ]
    return report


def _findings(job: ShardJob, report: ShardReport) -> Iterator[Finding]:
    tar_path, parquet_path, stats_path = shard_paths(job.root, job.set_name, job.split, job.number)
    try:
        stats = ShardStats.read(stats_path)
    except (ShardError, OSError) as error:
        yield Finding(file=_name(job, stats_path), problem=_without_root(error, job), remedy=RESTORE)
        return
    if stats.shard != _name(job, tar_path):
        yield Finding(file=_name(job, stats_path), problem=f"it describes the shard {stats.shard}", remedy=RESTORE)
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
    """Yield problems of the tar; append to `rows` the parquet rows that its samples should have."""
    name = _name(job, path)
    if (size := path.stat().st_size) != stats.bytes:
        yield Finding(file=name, problem=f"{size} bytes; its stats file lists {stats.bytes}", remedy=RESTORE)
    reader = tar.TarReader(path)
    member_bytes = dict.fromkeys(schema.MEMBERS, 0)
    seen: set[str] = set()
    filled: list[bool] = []
    try:
        for members in _samples(reader):
            key = members[0].key
            if key in seen:
                yield Finding(file=name, key=key, problem="the key or its members are repeated", remedy=RESTORE)
            seen.add(key)
            for member in members:
                member_bytes[member.ext] += member.size
            record, problems = _check_sample(job.set_name, members)
            for problem in problems:
                yield Finding(file=name, key=key, problem=problem, remedy=RESTORE)
            report.keys.append(key)
            rows.append(_row(job.set_name, members, record))
            if record is not None:
                report.frames += record.num_frames
                filled.append(schema.list_depths_filled(schema.to_json(record)))
    except tar.TarError as error:
        yield Finding(file=name, problem=str(error), remedy=RESTORE)
    for name_of_value, actual, expected in (
        ("sha256", reader.sha256, stats.sha256),
        ("number of samples", len(rows), stats.samples),
        ("bytes of the members", member_bytes, stats.member_bytes),
    ):
        if actual != expected:
            problem = f"{name_of_value} is {actual}; its stats file lists {expected}"
            yield Finding(file=name, problem=problem, remedy=RESTORE)
    if any(filled) and not filled[0]:
        problem = "the first sample has an empty list, from which readers cannot infer types, though others have none"
        yield Finding(file=name, key=rows[0]["key"], problem=problem, remedy=REBUILD)


def _samples(reader: tar.TarReader) -> Iterator[list[tar.Member]]:
    """Yield the members grouped by sample: up to four consecutive members with the same key."""
    group: list[tar.Member] = []
    for member in reader:
        if group and (member.key != group[0].key or len(group) == len(schema.MEMBERS)):
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _check_sample(set_name: str, members: list[tar.Member]) -> tuple[schema.MediaRecord | None, list[str]]:
    """Return a sample's record, None if it is absent or invalid, and the problems of the sample."""
    exts = tuple(member.ext for member in members)
    problems = []
    if exts != schema.MEMBERS:
        problems.append(f"the members are {', '.join(exts)}; expected {', '.join(schema.MEMBERS)}, in this order")
    data = {member.ext: member.data for member in members if member.data is not None}
    problems += [
        f"{member.ext} has {member.size} bytes; the limit is {tar.MAX_MEMBER[member.ext]}"
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
        problems.append("json: the bytes are not those that the writer produces for this record")
    if "txt" in data and data["txt"] != record.text.encode():
        problems.append(f"txt is {data['txt'][:80]!r}, but the text in json is {record.text[:80]!r}")
    if "jpg" in data:
        problems += [f"jpg: {problem}" for problem in jpg_problems(data["jpg"], record)]
    if "mp4" in data:
        problems += [f"mp4: {problem}" for problem in mp4_problems(data["mp4"], record)]
    return record, problems


def _record_problems(record: schema.MediaRecord) -> Iterator[str]:
    """Yield contradictions between the fields of a record."""
    if isinstance(record, schema.ClipRecord):
        segment = f"{record.video_uid}_{math.floor(record.narration_time / 60)}"
        if record.segment != segment:
            yield f"json: segment is {record.segment!r}; by narration_time it should be {segment!r}"
    if isinstance(record, schema.SummaryRecord):
        starts = [narration.clip_start for narration in record.narrations]
        if starts != sorted(starts):
            yield "json: the narrations are not in time order"
        invalid = [narration.key for narration in record.narrations if not is_key(narration.key)]
        if invalid:
            yield f"json: narrations with invalid keys: {invalid[:3]}"


def _row(set_name: str, members: list[tar.Member], record: schema.MediaRecord | None) -> dict[str, Any]:
    """Return the values that a sample's parquet row should have, as far as the tar has them."""
    row: dict[str, Any] = {"key": members[0].key}
    for member in members:
        row[f"{member.ext}_offset"], row[f"{member.ext}_size"] = member.offset, member.size
    if record is not None:
        row.update((name, getattr(record, name)) for name in schema.scalar_fields(set_name))
    return row


def _parquet_findings(
    job: ShardJob, path: Path, stats: ShardStats, rows: list[dict[str, Any]] | None
) -> Iterator[Finding]:
    """Yield problems of the parquet; `rows` are those expected from the tar, None without a tar."""
    name = _name(job, path)
    if (sha256 := hash_file(path)) != stats.parquet_sha256:
        problem = f"sha256 is {sha256}; the stats file lists {stats.parquet_sha256}"
        yield Finding(file=name, problem=problem, remedy=RESTORE)
    try:
        table = read_bounded(path, row_schema(job.set_name))
    except (ShardError, pa.ArrowException, OSError) as error:
        yield Finding(file=name, problem=_without_root(error, job), remedy=RESTORE)
        return
    if len(table) != stats.samples:
        yield Finding(
            file=name, problem=f"{len(table)} rows; the stats file lists {stats.samples} samples", remedy=RESTORE
        )
    if rows is None:
        return
    for number, (expected, actual) in enumerate(zip(rows, table.to_pylist(), strict=False)):
        for column, value in expected.items():
            if actual[column] != value:
                problem = f"row {number}: {column} is {reprlib.repr(actual[column])}; in the tar {reprlib.repr(value)}"
                yield Finding(file=name, key=expected["key"], problem=problem, remedy=RESTORE)


def read_bounded(path: Path, expected: pa.Schema | None = None, *, limit: int = MAX_ROWS_BYTES) -> pa.Table:
    """Return an untrusted parquet file as a table.

    Raises `ShardError` if it has more than `limit` bytes, compressed or not, or other columns than `expected`.
    """
    with pq.ParquetFile(path) as handle:
        groups = (handle.metadata.row_group(i) for i in range(handle.metadata.num_row_groups))
        if max(path.stat().st_size, sum(group.total_byte_size for group in groups)) > limit:
            raise ShardError(f"{path}: more than {limit} bytes, compressed or uncompressed; not read")
        actual = handle.schema_arrow
        if expected is not None and not actual.equals(expected):
            columns = [f"{column.name} {column.type}" for column in expected]
            raise ShardError(f"{path}: the columns are {', '.join(actual.names)}; expected: {', '.join(columns)}")
        return handle.read()


def _name(job: ShardJob, path: Path) -> str:
    return path.relative_to(job.root).as_posix()


def _without_root(error: Exception, job: ShardJob) -> str:
    return str(error).replace(f"{job.root}/", "")
