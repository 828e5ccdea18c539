"""Tables of own captions: every format and encoding gives the same rows, and nothing is inferred from values."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.annotations import AnnotationError
from preprocessing.own.config import ColumnsConfig
from preprocessing.own.rows import CaptionRow, UnreadableRow
from preprocessing.own.tables import open_table

COLUMNS = ColumnsConfig()
ROWS = [
    {"video": "Küche 1.MOV", "start": "1:30", "end": "007", "caption": "NA", "note": "None"},
    {"video": "b.mp4", "start": "", "end": "", "caption": 'says "yes", twice;\nthen leaves | stays', "note": "0.10"},
    {"video": "c", "start": "1e3", "end": "inf", "caption": "é", "note": "true"},
]


def read(path: Path, columns: ColumnsConfig = COLUMNS) -> tuple[list[CaptionRow], list[UnreadableRow], str]:
    with open_table(path, columns) as source:
        rows = list(source.rows)
    good = [row for row in rows if isinstance(row, CaptionRow)]
    return good, [row for row in rows if isinstance(row, UnreadableRow)], source.decided


def as_dicts(rows: list[CaptionRow]) -> list[dict[str, str]]:
    return [{"video": r.video, "start": r.start, "end": r.end, "caption": r.caption, **r.extra} for r in rows]


def csv_text(rows: list[dict[str, str]], delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_delimiter_follows_from_the_header(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(csv_text(ROWS, delimiter), encoding="utf-8", newline="")
    rows, bad, decided = read(path)
    assert as_dicts(rows) == ROWS
    assert not bad and not decided


@pytest.mark.parametrize(
    ("encoding", "decided"),
    [
        ("utf-8-sig", ""),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-32", "UTF-32"),
        ("cp1252", "Windows-1252"),
    ],
)
def test_the_encoding_is_decided_and_reported(tmp_path: Path, encoding: str, decided: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(csv_text(ROWS, ",").encode(encoding))
    rows, bad, said = read(path)
    assert as_dicts(rows) == ROWS
    assert not bad
    assert decided in said and bool(decided) == bool(said)


def test_one_damaged_byte_does_not_turn_a_utf8_file_into_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    lines = ["video,caption", *(f"a.mp4,größer {i}" for i in range(5)), "a.mp4,X"]
    path.write_bytes("\n".join(lines).encode().replace(b"X", b"\xff"))
    rows, bad, said = read(path)
    assert [row.caption for row in rows] == [f"größer {i}" for i in range(5)]
    assert [row.location for row in bad] == ["captions.csv:7"] and "1 bytes are damaged" in said


def test_json_lines_and_lists_keep_numbers_as_they_are_written(tmp_path: Path) -> None:
    values = '{"video": "a", "start": 1.50, "end": 3, "caption": "x", "flag": true, "none": null, "more": [1, "b"]}'
    for name, text in (("a.jsonl", f"{values}\n\n{values}\n"), ("b.json", f"[{values}, {values}]")):
        (tmp_path / name).write_text(text)
        rows, bad, _ = read(tmp_path / name)
        assert not bad and len(rows) == 2
        assert (rows[1].start, rows[1].end) == ("1.50", "3")
        assert rows[1].extra == {"flag": "true", "none": "", "more": '["1", "b"]'}


def test_a_line_that_is_no_object_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"video": "a", "caption": "x"}\n[1]\n{"video": \n' + "[" * 100_000 + "\n")
    rows, bad, _ = read(tmp_path / "a.jsonl")
    assert len(rows) == 1
    assert [row.location for row in bad] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]


def test_parquet_of_another_program_gives_text(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {"video": ["a", "b"], "start": [1.5, None], "end": [3, 4], "caption": ["NA", "x"], "rating": [5, 6]}
    )
    frame.to_parquet(tmp_path / "captions.parquet")
    rows, _, _ = read(tmp_path / "captions.parquet")
    assert [(r.start, r.end, r.caption, r.extra) for r in rows] == [
        ("1.5", "3", "NA", {"rating": "5"}),
        ("", "4", "x", {"rating": "6"}),
    ]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"video": ["a"] * 1000, "caption": [str(i) for i in range(1000)]}), path)
    data = path.read_bytes()
    for damaged in (data[:100], data[:500] + bytes(300) + data[800:], b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(AnnotationError, match=r"captions\.parquet"):
            read(path)


def test_a_missing_column_is_named_with_a_remedy_that_works(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("file;begin;text\na.mp4;1;hello\n")
    with pytest.raises(AnnotationError, match=r"no column 'video'.*captions\.columns\.video=file") as error:
        read(path)
    assert "'begin', 'text', separated by semicolons" in str(error.value)
    with pytest.raises(AnnotationError, match=r"captions\.columns\.caption="):
        read(path, ColumnsConfig(video="file"))
    rows, _, _ = read(path, ColumnsConfig(video="file", caption="text", start="begin"))
    assert as_dicts(rows) == [{"video": "a.mp4", "start": "1", "end": "", "caption": "hello"}]
    with pytest.raises(AnnotationError, match=r"captions\.columns\.end = stop: the table has no such column"):
        read(path, ColumnsConfig(video="file", caption="text", end="stop"))


def test_a_stray_quote_loses_its_own_row_only(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text('video,caption\na,fine\nb,"open\nc,also fine\nd,x,y\n')
    rows, bad, _ = read(path)
    assert [row.caption for row in rows] == ["fine", "also fine"]
    assert [row.location for row in bad] == ["captions.csv:3", "captions.csv:5"]


CELL = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6), delimiter=st.sampled_from(",;\t|"))
def test_any_cells_survive_csv(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], delimiter: str
) -> None:
    given_rows = [{"video": f"v{a}", "caption": b, "note": c} for a, b, c in rows]
    path = tmp_path_factory.mktemp("csv") / "captions.csv"
    path.write_text(csv_text(given_rows, delimiter), encoding="utf-8", newline="")
    found, bad, _ = read(path)
    assert not bad
    assert [{"video": r.video, "caption": r.caption, **r.extra} for r in found] == given_rows


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), suffix=st.sampled_from(["csv", "jsonl", "parquet", "txt"]))
def test_any_bytes_are_rows_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"captions.{suffix}"
    path.write_bytes(b"video,caption\n" + data if suffix == "csv" else data)
    try:
        read(path)
    except AnnotationError as error:
        assert "captions" in str(error)
