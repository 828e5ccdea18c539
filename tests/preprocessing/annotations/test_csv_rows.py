"""Splitting delimited files into rows does not depend on the block size."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing.annotations import AnnotationsConfig, read_annotations
from preprocessing.annotations.csv_rows import read_header, read_rows
from tests.preprocessing.annotation_files import DAMAGE, corrupted, write


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=corrupted(alphabet=[*DAMAGE, '"', '""', '\t"', '"\t', '"\n']), block=st.integers(1, 400))
def test_rows_do_not_depend_on_the_block_size(tmp_path: Path, case: tuple[bytes, set[int]], block: int) -> None:
    path = write(tmp_path / "egoclip.csv", case[0])
    read_annotations(AnnotationsConfig(egoclip=path))
    header = read_header(path, "\t")
    columns = header.columns(("video_uid", "clip_text", "tag_noun"))

    def split(size: int) -> tuple[list[tuple[int, dict[str, str]]], list[tuple[int, str, str]]]:
        good, bad = [], []
        for rows in read_rows(header, columns, block=size):
            good += list(zip(rows.lines.tolist(), rows.cells.to_pylist(), strict=True))
            bad += [(b.line, b.reason, b.value) for b in rows.bad]
        return sorted(good, key=lambda pair: pair[0]), sorted(bad)

    assert split(block) == split(1 << 20)
