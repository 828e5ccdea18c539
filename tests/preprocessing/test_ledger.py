"""The ledger: every item once, spans without gaps, and reproducible files."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest

from preprocessing import ledger
from preprocessing.video.chunks import Chunk, Damage


def rows(*items: str, status: str = "packed", reason: str = "") -> pa.Table:
    return ledger.make_rows("clips", items, ["v"] * len(items), status=status, reason=reason)


def chunk(index: int, *damage: tuple[float, float]) -> Chunk:
    return Chunk(
        video_uid="v", index=index, start=4.0 * index, end=4.0 * index + 4.0, frames=120, summary_frames=8, width=96,
        height=96, damage=tuple(Damage(start=a, end=b, reason="broken frames") for a, b in damage), bytes=1,
        cpu_seconds=0.0, source_size=1, source_mtime_ns=1, toolchain={}, stated_end=4.0 * index + 4.0,
        deinterlaced=False, tone_mapped="", notes=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("items", "expected", "message"),
    [(("a",), 2, "ledger rows"), (("a", "b", "b"), 3, "entered twice"), (("a", "b", "c"), 2, "ledger rows")],
)
def test_lost_and_repeated_items_are_errors(items: tuple[str, ...], expected: int, message: str) -> None:
    with pytest.raises(ledger.UnbalancedError, match=message):
        ledger.require_balanced(rows(*items), {"clips": expected})


def test_a_balanced_ledger_is_counted_by_outcome() -> None:
    table = pa.concat_tables([rows("a", "b"), rows("c", status="failed", reason="missing")])
    ledger.require_balanced(table, {"clips": 3})
    assert ledger.summarise(table) == [("clips", "failed", "missing", 1), ("clips", "packed", "", 2)]


def test_the_spans_of_a_video_have_no_gaps() -> None:
    spans = ledger.video_spans("v", [chunk(0, (1.0, 1.5)), chunk(1, (4.0, 8.0)), chunk(2)])
    assert [(s.start, s.end, s.status, s.chunk) for s in spans] == [
        (0.0, 1.0, "packed", 0),
        (1.0, 1.5, "failed", -1),
        (1.5, 4.0, "packed", 0),
        (4.0, 8.0, "failed", -1),
        (8.0, 12.0, "packed", 2),
    ]


def test_an_unusable_video_of_unknown_duration_has_a_span_of_length_zero() -> None:
    assert ledger.unusable_span("v", math.nan, "missing").end == 0.0
    assert ledger.unusable_span("v", 7.5, "missing").end == 7.5


def test_files_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    spans = ledger.video_spans("v", [chunk(0, (1.0, 1.5)), chunk(1)])
    for name, order in (("first", 1), ("second", -1)):
        items = ["a", "b", "c"][::order]
        ledger.write(tmp_path / name, rows(*items), spans[::order])
    for name in ("ledger.parquet", "spans.parquet"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert ledger.read_spans(tmp_path / "first") == sorted(spans)
    assert ledger.read_ledger(tmp_path / "first")["item"].to_pylist() == ["a", "b", "c"]
    assert ledger.read_ledger(tmp_path / "absent").num_rows == 0 and ledger.read_spans(tmp_path / "absent") == []
