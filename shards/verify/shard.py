"""Checks one shard: its stats file, tar and parquet against each other, and every frame of every sample."""

from __future__ import annotations

import hashlib
import logging
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards import schema, tar
from shards.dataset import hash_file, read_bounded, row_schema
from shards.stats import ShardError, ShardStats, parse_json, shard_paths
from shards.verify.findings import REBUILD, RESTORE, Finding, each, guarded, without_root
from shards.verify.media import encoding_digest, jpg_problems, mp4_problems
from shards.verify.records import Build, record_problems

MAX_ROWS_BYTES = 1 << 30  # of a shard's parquet, on disk and uncompressed
logger = logging.getLogger(__name__)
_MAX_TAR = 1 << 40  # bytes; a larger file is not read, since it would take hours


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to check."""

    root: Path
    set_name: str
    split: str
    number: int
    bytes: int  # of the tar, for the progress bar
    build: Build = field(default_factory=Build)


@dataclass(kw_only=True)
class ShardReport:
    """The result of checking one shard, and what the checks of the whole dataset need of its samples.

    Shapes in names: S samples of the tar in order, N narrations of its summaries. They are arrays because there are
    millions of them.
    """

    job: ShardJob
    findings: list[Finding] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # S
    videos: list[str | None] = field(default_factory=list)  # S; None where the record is invalid
    extents_S3: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 3))
    )  # start, end and frame of what is stored, s
    digests_S: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # what narrations repeat; 0: none
    encodings_S: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # of the decoder; 0: unknown
    narrations: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # N keys
    narration_rows_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # the samples they are in
    narration_digests_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    frames: int = 0  # stored, of all samples with a valid record

    @property
    def tar(self) -> str:
        """The path of the tar below the root."""
        return f"{self.job.set_name}/{self.job.split}/{self.job.number:05d}.tar"


class _Facts:
    """Collects what a report keeps of the samples."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.is_filled: list[bool] = []  # of each valid record: whether it has no empty list
        self._videos: list[str | None] = []
        self._extents: list[tuple[float, float, float]] = []
        self._digests: list[int] = []
        self._encodings: list[int] = []
        self._narrations: list[tuple[int, str, int]] = []

    def add(self, key: str, record: schema.MediaRecord | None, encoding: int) -> None:
        if isinstance(record, schema.SummaryRecord):
            row = len(self.keys)
            self._narrations += [(row, part.key, _digest(record.video_uid, part)) for part in record.narrations]
        self.keys.append(key)
        self._videos.append(None if record is None else sys.intern(record.video_uid))
        self._extents.append(_extent(record))
        self._encodings.append(encoding)
        self._digests.append(_digest(record.video_uid, record) if isinstance(record, schema.ClipRecord) else 0)
        if record is not None:
            self.is_filled.append(schema.list_depths_filled(schema.to_json(record)))

    def move_to(self, report: ShardReport) -> None:
        report.keys, report.videos = self.keys, self._videos
        report.extents_S3 = np.array(self._extents, np.float64).reshape(-1, 3)
        report.encodings_S = np.array(self._encodings, np.uint64)
        report.digests_S = np.array(self._digests, np.uint64)
        report.narration_rows_N = np.array([row for row, _, _ in self._narrations], np.int64)
        report.narrations = pa.array([key for _, key, _ in self._narrations], pa.string())
        report.narration_digests_N = np.array([digest for _, _, digest in self._narrations], np.uint64)


def _extent(record: schema.MediaRecord | None) -> tuple[float, float, float]:
    if record is None:
        return 0.0, 0.0, 0.0
    return record.media_start, record.media_start + record.num_frames / record.fps, 1 / record.fps


def _digest(video_uid: str, narration: schema.ClipRecord | schema.Narration) -> int:
    """Return a number, not 0, for what a summary's narration has in common with its clip."""
    parts = (video_uid, narration.text, narration.clip_start, narration.tag_verb, narration.tag_noun)
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") or 1


def check_shard(job: ShardJob) -> ShardReport:
    """Check a shard that has a stats file; its report has at most `MAX_FINDINGS` problems and a note of more."""
    report = ShardReport(job=job)
    report.findings += guarded(report.tar, lambda: _findings(job, report), root=job.root)
    return report


def _findings(job: ShardJob, report: ShardReport) -> Iterator[Finding]:
    tar_path, parquet_path, stats_path = shard_paths(job.root, job.set_name, job.split, job.number)
    try:
        stats = ShardStats.read(stats_path)
    except (ShardError, OSError) as error:
        yield Finding(file=_name(job, stats_path), problem=without_root(error, job.root), remedy=RESTORE)
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
    if size > _MAX_TAR:
        yield Finding(file=name, problem=f"{size} bytes are too many for a shard; not read", remedy=RESTORE)
        return
    reader = tar.TarReader(path, hash_rest=size == stats.bytes)
    member_bytes = dict.fromkeys(schema.MEMBERS, 0)
    facts = _Facts()
    try:
        for members in _samples(reader):
            key = members[0].key
            for member in members:
                member_bytes[member.ext] += member.size
            record, problems = _check_sample(job, members)
            yield from each(name, problems, RESTORE, key=key)
            mp4 = next((member.data for member in members if member.ext == "mp4"), None)
            facts.add(key, record, encoding_digest(mp4) if mp4 is not None else 0)
            rows.append(_row(job.set_name, members, record))
            report.frames += 0 if record is None else record.num_frames
    except tar.TarError as error:
        yield Finding(file=name, problem=str(error), remedy=RESTORE)
    finally:
        facts.move_to(report)
    for name_of_value, actual, expected in (
        ("sha256", reader.sha256, stats.sha256),
        ("number of samples", len(rows), stats.samples),
        ("bytes of the members", member_bytes, stats.member_bytes),
    ):
        if actual != expected and actual is not None:
            problem = f"{name_of_value} is {actual}; its stats file lists {expected}"
            yield Finding(file=name, problem=problem, remedy=RESTORE)
    if any(facts.is_filled) and not facts.is_filled[0]:
        problem = "the first sample has an empty list, from which readers cannot infer types, though others have none"
        yield Finding(file=name, key=rows[0]["key"], problem=problem, remedy=REBUILD)
    repeated = [key for key, count in Counter(facts.keys).items() if count > 1]
    problem = "the key or its members are repeated"
    yield from (Finding(file=name, key=key, problem=problem, remedy=RESTORE) for key in repeated)


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


def _check_sample(job: ShardJob, members: list[tar.Member]) -> tuple[schema.MediaRecord | None, list[str]]:
    """Return a sample's record, None if it is absent or invalid, and the problems of the sample."""
    exts = tuple(member.ext for member in members)
    problems = []
    if exts != schema.MEMBERS:
        problems.append(f"the members are {', '.join(exts)}; expected {', '.join(schema.MEMBERS)}, in this order")
    parts = {member.ext: member.data for member in members if member.data is not None}
    problems += [
        f"{member.ext} has {member.size} bytes; the limit is {tar.MAX_MEMBER[member.ext]}"
        for member in members
        if member.data is None
    ]
    if "json" not in parts:
        return None, problems
    try:
        record = schema.from_json(job.set_name, parse_json(parts["json"]))
        schema.check(job.set_name, record)
    except (ValueError, RecursionError) as error:
        return None, [*problems, f"json: {error}"]
    problems += [f"json: {problem}" for problem in record_problems(job.set_name, members[0].key, record, job.build)]
    if schema.to_bytes(record) != parts["json"]:
        problems.append("json: the bytes are not those that the writer produces for this record")
    if "txt" in parts and parts["txt"] != record.text.encode():
        problems.append(f"txt is {parts['txt'][:80]!r}, but the text in json is {record.text[:80]!r}")
    for ext, check in (
        ("jpg", lambda data: jpg_problems(data, record)),
        ("mp4", lambda data: mp4_problems(data, record, parts.get("jpg"))),
    ):
        if ext in parts:
            problems += _media_problems(ext, parts[ext], check)
    return record, problems


def _media_problems(ext: str, data: bytes, check: Callable[[bytes], Iterator[str]]) -> list[str]:
    """Return the problems of an image or video; an unexpected error of the check is one, so that the others go on."""
    problems = []
    try:
        for problem in check(data):
            problems.append(f"{ext}: {problem}")
    except Exception as error:
        logger.exception("%s: the check failed", ext)
        problems.append(f"{ext}: cannot be checked: {type(error).__name__}: {error}")
    return problems


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
    if (size := path.stat().st_size) > MAX_ROWS_BYTES:
        yield Finding(file=name, problem=f"{size} bytes are too many for an index; not read", remedy=RESTORE)
        return
    if (sha256 := hash_file(path)) != stats.parquet_sha256:
        problem = f"sha256 is {sha256}; the stats file lists {stats.parquet_sha256}"
        yield Finding(file=name, problem=problem, remedy=RESTORE)
    try:
        table = _read_index(path, row_schema(job.set_name), stats.samples)
    except (ValueError, KeyError, TypeError, MemoryError, pa.ArrowException, OSError) as error:
        yield Finding(file=name, problem=without_root(error, job.root), remedy=RESTORE)
        return
    if rows is None:
        return
    for number, (expected, actual) in enumerate(zip(rows, table.to_pylist(), strict=False)):
        for column, value in expected.items():
            if actual[column] != value:
                problem = f"row {number}: {column} is {reprlib.repr(actual[column])}; in the tar {reprlib.repr(value)}"
                yield Finding(file=name, key=expected["key"], problem=problem, remedy=RESTORE)


def _read_index(path: Path, expected: pa.Schema, rows: int) -> pa.Table:
    table = read_bounded(path, limit=MAX_ROWS_BYTES, rows=rows)
    if not table.schema.equals(expected):
        columns = [f"{column.name} {column.type}" for column in expected]
        raise ShardError(f"{path}: the columns are {', '.join(table.column_names)}; expected: {', '.join(columns)}")
    return table


def _name(job: ShardJob, path: Path) -> str:
    return path.relative_to(job.root).as_posix()
