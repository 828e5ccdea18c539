"""All readers together: missing files, and values merged over several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.annotations import AnnotationError, AnnotationsConfig, read_annotations
from preprocessing.annotations.config import EpicMirFiles
from tests.preprocessing.annotation_files import (
    question,
    read_benchmarks,
    row,
    table,
    write,
)


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    clips = write(tmp_path / "egoclip.csv", table([row(1)]))
    with pytest.raises(AnnotationError, match=r"annotations.exclude = .*gone.txt: there is no such file"):
        read_annotations(AnnotationsConfig(egoclip=clips, exclude=(tmp_path / "gone.txt",)))
    with pytest.raises(AnnotationError, match=r"set annotations.egoclip or annotations.narrations"):
        read_annotations(AnnotationsConfig())


def test_a_missing_benchmark_file_is_named_with_its_key(tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    with pytest.raises(AnnotationError, match=r"annotations\.epic_mir\.test = .*gone\.csv: there is no such file"):
        read_benchmarks(epic_mir=EpicMirFiles(test=gone, test_sentences=gone))


def test_a_duration_that_only_one_file_states_is_used(tmp_path: Path) -> None:
    clips = write(tmp_path / "egoclip.csv", table([row(1)]))
    annotations = read_benchmarks(egoclip=clips, egomcq=write(tmp_path / "egomcq.json", {"0": question()}))
    assert annotations.videos.to_pylist()[0]["duration"] == 480.5
