"""A sound dataset passes; a flipped bit anywhere is found; a crashing file does not stop the verification."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from shards.dataset import Dataset
from shards.verify.run import verify
from shards.verify.shard import ShardJob, ShardReport, check_shard
from tests.shards.verify.damage import flip


def test_a_dataset_of_the_writer_is_sound(sample_dataset: Dataset) -> None:
    report = verify(sample_dataset.root)
    assert report.findings == ()
    assert (report.shards, report.samples, report.frames) == (6, 15, 176)


def test_every_flipped_bit_is_found(sample_dataset: Dataset, root: Path) -> None:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert len(names) == 28
    for name in names:
        size = (root / name).stat().st_size
        for at in (0, size // 3, size - 1):
            flip(root / name, at)
            findings = verify(root).findings
            assert any(finding.file == name for finding in findings), (name, at, findings)
            assert all(finding.problem and finding.remedy for finding in findings)
            shutil.copy(sample_dataset.root / name, root / name)
    assert verify(root).findings == ()


def crash(job: ShardJob) -> ShardReport:
    if job.set_name == "summaries" and job.split == "val":
        os._exit(9)
    return check_shard(job)


def test_a_file_that_crashes_its_process_is_reported_and_the_others_are_checked(root: Path) -> None:
    report = verify(root, workers=2, check=crash)
    assert report.samples == 14
    assert "the process that checked it was killed" in report.findings[-1].problem
    assert {finding.file for finding in report.findings if "process" in finding.problem} == {"summaries/val/00000.tar"}
