"""Verifies a dataset, its shards in parallel, and collects the findings of all checks."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.dataset import DENYLIST, FEATURES, MANIFEST
from shards.stats import shard_paths
from shards.verify import dataset as files
from shards.verify import features, tables
from shards.verify.findings import FINISH, RESTORE, Finding, guarded
from shards.verify.manifest import read_manifest as read
from shards.verify.records import Build
from shards.verify.shard import ShardJob, ShardReport, check_shard

Check = Callable[[ShardJob], ShardReport]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of verifying a dataset, which is sound if there are no findings."""

    findings: tuple[Finding, ...]  # sorted by file
    notes: tuple[str, ...]  # what does not belong to the dataset, but does no harm
    shards: int
    samples: int
    frames: int  # decoded
    bytes: int  # of the tars
    seconds: float


def verify(
    root: Path, *, workers: int = 0, on_shard: Callable[[ShardReport], None] | None = None, check: Check = check_shard
) -> Report:
    """Verify the dataset in `root`: read all of its bytes and decode all samples.

    `workers` is the number of processes that share the shards; 0 uses this process. `on_shard` is called with the
    report of each shard when it is done.
    """
    begin = time.monotonic()
    root = Path(root)
    manifest: dict[str, Any] = {}
    contents = files.Contents()

    def read_manifest() -> list[Finding]:
        value, found = read(root)
        manifest.update(value)
        return found

    def find() -> list[Finding]:
        found = files.find_shards(root, manifest.get("files", {}))
        contents.shards, contents.notes = found.shards, found.notes
        return found.findings

    findings = guarded(MANIFEST, read_manifest, root=root, remedy=FINISH)
    findings += guarded("", find, root=root)
    jobs = _jobs(root, contents.shards, Build.of(manifest))
    reports = []
    for report in _run(jobs, workers, check):
        reports.append(report)
        if on_shard is not None:
            on_shard(report)
    place = {job: number for number, job in enumerate(jobs)}
    reports.sort(key=lambda report: place[report.job])
    findings += [finding for report in reports for finding in report.findings]
    ledger = tables.Ledger(root, reports)
    videos = (uid for report in reports for uid in report.videos)
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        (MANIFEST, lambda: files.index_findings(root, manifest, contents.shards)),
        (MANIFEST, lambda: files.file_findings(root, manifest)),
        (MANIFEST, lambda: tables.key_findings(reports)),
        ("ledger.parquet", lambda: ledger.findings(manifest)),
        ("spans.parquet", lambda: tables.spans_findings(root, reports, ledger)),
        ("summaries", lambda: tables.narration_findings(reports, ledger)),
        ("", lambda: tables.encoding_findings(reports)),
        (MANIFEST, lambda: tables.companion_findings(root, manifest, reports, ledger)),
        (FEATURES, lambda: features.feature_findings(root, manifest)),
        (DENYLIST, lambda: files.denylist_findings(root, videos)),
    )
    for name, run in checks:
        findings += guarded(name, run, root=root, remedy=FINISH)
    return Report(
        findings=tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.file)),
        notes=(*contents.notes, *features.feature_notes(root)),
        shards=len(jobs),
        samples=sum(len(report.keys) for report in reports),
        frames=sum(report.frames for report in reports),
        bytes=sum(job.bytes for job in jobs),
        seconds=time.monotonic() - begin,
    )


def _jobs(root: Path, shards: Sequence[tuple[str, str, int]], build: Build) -> list[ShardJob]:
    jobs = []
    for set_name, split, number in shards:
        tar, _, _ = shard_paths(root, set_name, split, number)
        size = tar.stat().st_size if tar.is_file() else 0
        jobs.append(ShardJob(root=root, set_name=set_name, split=split, number=number, bytes=size, build=build))
    return jobs


def _run(jobs: Sequence[ShardJob], workers: int, check: Check) -> Iterator[ShardReport]:
    """Yield the shards' reports as they complete; a shard that crashes its process yields a finding."""
    if workers == 0:
        yield from map(check, jobs)
        return
    remaining = list(jobs)
    with _pool(workers) as pool:
        # Largest first, so that no large shard runs alone at the end.
        futures = {pool.submit(check, job): job for job in sorted(jobs, key=lambda job: -job.bytes)}
        for future in as_completed(futures):
            report = _result(future)
            if report is not None:
                remaining.remove(report.job)
                yield report
    for job in remaining:  # were in the pool when it broke: check each alone to find the one that breaks it
        with _pool(1) as pool:
            report = _result(pool.submit(check, job))
        yield report if report is not None else _crashed(job)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _result(future: Future[ShardReport]) -> ShardReport | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return None


def _crashed(job: ShardJob) -> ShardReport:
    name = f"{job.set_name}/{job.split}/{job.number:05d}.tar"
    problem = "the process that checked it was killed: out of memory, or the file crashes a decoder"
    return ShardReport(job=job, findings=[Finding(file=name, problem=problem, remedy=RESTORE)])
