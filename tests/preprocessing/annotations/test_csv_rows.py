"""Splitting delimited files into rows does not depend on the block size."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing.annotations import AnnotationsConfig, csv_rows, read_annotations
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


def test_a_line_without_end_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "_MAX_LINE", 1000)
    lines = [b"a\tb", b"1\t2", b"x" * 5000 + b"\ty", b"3\t4", b"5\t" + b"z" * 900, b"y" * 3000]
    for block in (1, 7, 500, 1 << 20):
        header = read_header(write(tmp_path / "t.csv", b"\n".join(lines)), "\t")
        good, bad = {}, {}
        for rows in read_rows(header, header.columns(("a",)), block=block):
            good |= dict(zip(rows.lines.tolist(), rows.cells["a"].to_pylist(), strict=True))
            bad |= {row.line: row.reason for row in rows.bad}
        assert {line: cell for line, cell in good.items() if line != 3} == {2: "1", 4: "3", 5: "5"}
        assert set(bad) | set(good) == {2, 3, 4, 5, 6} and 6 in bad
        assert not set(bad) & set(good)
