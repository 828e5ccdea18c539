"""The reader of egoclip.csv and egosummary_full.csv: every row is accounted for once, with its physical line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from preprocessing.annotations import AnnotationError, Annotations, AnnotationsConfig, read_annotations
from shards.keys import make_key
from tests.preprocessing.annotation_files import (
    CLIP_COLUMNS,
    DAMAGE,
    SUMMARY_COLUMNS,
    corrupted,
    only_reject,
    row,
    table,
    write,
)

FAST = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, clips: str | bytes, summaries: str | bytes | None = None, **config: Any) -> Annotations:
    """Read the texts as the two files; check that every row is accounted for once and that items are unique."""
    paths: dict[str, Any] = {"egoclip": write(folder / "egoclip.csv", clips)}
    if summaries is not None:
        paths["egosummary"] = write(folder / "egosummary_full.csv", summaries)
    annotations = read_annotations(AnnotationsConfig(**paths, **config))
    rejects = annotations.rejects.to_pylist()
    for name, kept in (("clips", annotations.narrations), ("summaries", annotations.summaries)):
        assert annotations.input_rows[name] == kept.num_rows + sum(r["set"] == name for r in rejects)
    items = [("clips", key) for key in annotations.narrations["key"].to_pylist()]
    items += [("summaries", key) for key in annotations.summaries["key"].to_pylist()]
    items += [(r["set"], r["item"]) for r in rejects]
    assert len(items) == len(set(items))
    return annotations


def test_a_valid_row_becomes_a_typed_item(tmp_path: Path) -> None:
    annotations = read(tmp_path, table([row(7)]), table([row(3, clip_text="#Summary C cooks")], SUMMARY_COLUMNS))
    assert annotations.narrations.to_pylist() == [
        {
            "key": make_key("0a1b-2c", "c", 1, 7),
            "video_uid": "0a1b-2c",
            "narration_source": "narration_pass_1",
            "narration_ind": 7,
            "narration_time": 8.0,
            "clip_start": 7.5,
            "clip_end": 8.5,
            "text": "#C C opens drawer 7",
            "tag_verb": [93],
            "tag_noun": [192, 115],
        }
    ]
    assert annotations.summaries["key"].to_pylist() == [make_key("0a1b-2c", "s", 1, 3)]
    assert annotations.videos.to_pylist() == [
        {"video_uid": "0a1b-2c", "duration": 480.5, "is_stereo": False, "split": "train"}
    ]
    assert set(annotations.sources) == {"egoclip.csv", "egosummary_full.csv"}
    assert annotations.alpha is None


@pytest.mark.parametrize("uid", ["a.b_c", "x" * 200, "Küche", "-", "a b"])
@pytest.mark.parametrize("index", [0, 999_999, 1_000_000, 10**17])
def test_keys_equal_those_of_make_key(tmp_path: Path, uid: str, index: int) -> None:
    changes = {"video_uid": uid, "narration_source": "narration_pass_2", "narration_ind": index}
    annotations = read(tmp_path, table([row(1, **changes)]))
    assert annotations.narrations["key"].to_pylist() == [make_key(uid, "c", 2, index)]


def test_shuffling_and_dropping_rows_does_not_change_other_rows(tmp_path: Path) -> None:
    rows = [row(i, video_uid=f"v{i % 3}", clip_text="#C C walks") for i in range(40)]
    whole = read(tmp_path, table(rows))
    random.Random(0).shuffle(rows)
    assert read(tmp_path, table(rows)).narrations == whole.narrations
    some = read(tmp_path, table(rows[:15])).narrations.to_pylist()
    assert all(r in whole.narrations.to_pylist() for r in some)
    order = [(r["video_uid"], r["clip_start"], r["key"]) for r in whole.narrations.to_pylist()]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("column", "value", "reason", "status"),
    [
        ("video_uid", "", "malformed video_uid", "failed"),
        ("video_uid", "../secret", "malformed video_uid", "failed"),
        ("narration_source", "narration_pass_3", "malformed narration_source", "failed"),
        ("narration_ind", "seven", "malformed narration_ind", "failed"),
        ("narration_ind", "-1", "malformed narration_ind", "failed"),
        ("narration_ind", "1.5", "malformed narration_ind", "failed"),
        ("narration_ind", "0x1F", "malformed narration_ind", "failed"),
        ("narration_ind", "9" * 30, "malformed narration_ind", "failed"),
        ("narration_time", "", "malformed narration_time", "failed"),
        ("narration_time", "nan", "malformed narration_time", "failed"),
        ("clip_start", "-0.5", "malformed clip_start", "failed"),
        ("clip_start", "1_0", "malformed clip_start", "failed"),
        ("clip_end", "inf", "malformed clip_end", "failed"),
        ("clip_end", "1e999", "malformed clip_end", "failed"),
        ("clip_end", "1e12", "malformed clip_end", "failed"),
        ("clip_end", "0.25", "reversed times", "failed"),
        ("clip_end", "2.5", "empty span", "filtered"),
        ("clip_text", "  ", "empty text", "filtered"),
        ("tag_verb", "93", "malformed tag_verb", "failed"),
        ("tag_verb", "[118]", "malformed tag_verb", "failed"),
        ("tag_verb", "[-1]", "malformed tag_verb", "failed"),
        ("tag_verb", "[true]", "malformed tag_verb", "failed"),
        ("tag_verb", "[1.0]", "malformed tag_verb", "failed"),
        ("tag_verb", "", "malformed tag_verb", "failed"),
        ("tag_noun", "[582]", "malformed tag_noun", "failed"),
        ("tag_noun", '{"a": [1]}', "malformed tag_noun", "failed"),
        ("tag_noun", "[" * 100_000, "malformed tag_noun", "failed"),
        ("tag_noun", f"[{'9' * 5000}]", "malformed tag_noun", "failed"),
        ("tag_noun", "__import__('os').system('touch /tmp/owned')", "malformed tag_noun", "failed"),
    ],
)
def test_a_malformed_cell_is_rejected_with_file_line_and_value(
    tmp_path: Path, column: str, value: str, reason: str, status: str
) -> None:
    annotations = read(tmp_path, table([row(1), row(2, **{column: value}), row(3)]))
    reject = only_reject(annotations)
    assert (reject["reason"], reject["status"], reject["set"]) == (reason, status, "clips")
    assert reject["detail"].startswith("egoclip.csv:3: ")
    assert repr(value)[:80] in reject["detail"]
    assert annotations.narrations["narration_ind"].to_pylist() == [1, 3]


@pytest.mark.parametrize("cell", ["2", "2.0"])
def test_an_index_written_as_a_float_is_read_as_an_integer(tmp_path: Path, cell: str) -> None:
    assert read(tmp_path, table([row(2, narration_ind=cell)])).narrations["key"].to_pylist() == ["0a1b-2c_c1_000002"]


def test_a_cell_is_read_independently_of_its_neighbours(tmp_path: Path) -> None:
    rows = [row(i, clip_start=cell) for i, cell in enumerate(["0.1", ".1", "1e-1", "+0.1", "1.e-1", " 0.1"])]
    alone = [read(tmp_path, table([r])).narrations["clip_start"].to_pylist() for r in rows]
    together = read(tmp_path, table([*rows, row(9, clip_start="nan")])).narrations["clip_start"].to_pylist()
    assert [value for values in alone for value in values] == together == [0.1] * 6


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("closed", [True, False])
def test_quoted_cells_may_contain_anything_and_lines_are_physical_lines(
    tmp_path: Path, end: str, bom: bytes, closed: bool
) -> None:
    texts = ['say "hi"', f"two{end}lines", "a\ttab", "'", '"', f'{end}"{end}', "Öl 油 🎬", 'half"way', "back\\slash"]
    rows = [row(i, clip_text=text) for i, text in enumerate(texts)] + [row(50, tag_verb="oops"), row(51)]
    data = bom + table(rows, end=end).encode()
    annotations = read(tmp_path, data if closed else data.removesuffix(end.encode()))
    assert annotations.narrations["text"].to_pylist() == [*texts, "#C C opens drawer 51"]
    line = 2 + len(texts) + 3  # three line ends inside cells
    assert only_reject(annotations)["detail"].startswith(f"egoclip.csv:{line}: tag_verb")


def test_a_stray_quote_affects_only_its_own_row(tmp_path: Path) -> None:
    lines = table([row(i) for i in range(6)]).splitlines(keepends=True)
    lines[2] = lines[2].replace("#C", '"#C')  # line 3: opened, never closed before line 5's quote
    lines[4] = lines[4].replace("#C C opens drawer 3", '"a ""quoted"" word"')
    annotations = read(tmp_path, "".join(lines))
    reject = only_reject(annotations)
    assert reject["reason"] == "malformed quoting" and reject["item"] == "egoclip.csv:3"
    assert annotations.narrations["narration_ind"].to_pylist() == [0, 2, 3, 4, 5]


def test_damaged_bytes_affect_only_their_own_line(tmp_path: Path) -> None:
    lines = table([row(i) for i in range(7)]).encode().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"opens", b"\xff\xfe")
    lines[3] = lines[3].replace(b"opens", b"op\rens")
    lines[4] = b"\n\r\n"  # blank lines are no rows
    lines[5] = b"half a line\n"
    lines[7] = lines[7][:-8]  # cut within the last cell
    annotations = read(tmp_path, b"".join(lines))
    reasons = {r["detail"].split(": ")[0]: r["reason"] for r in annotations.rejects.to_pylist()}
    assert reasons == {
        "egoclip.csv:3": "invalid UTF-8",
        "egoclip.csv:4": "stray carriage return",
        "egoclip.csv:7": "wrong number of columns",
        "egoclip.csv:9": "malformed tag_noun",
    }
    assert annotations.narrations["narration_ind"].to_pylist() == [0, 5]


def test_of_rows_with_one_index_equal_ones_are_merged_and_different_ones_kept(tmp_path: Path) -> None:
    rows = [
        row(1, narration_time=9),
        row(2),
        row(1, narration_time=9),
        row(1),
        row(2, clip_idx=77),
        row(3, tag_verb=""),
    ]
    annotations = read(tmp_path, table([*rows, row(3), row(4, tag_verb="[1]"), row(4, tag_verb="[2]")]))
    assert sorted(annotations.narrations["narration_time"].to_pylist()) == [2.0, 3.0, 4.0, 5.0, 5.0, 9.0]
    rejects = {r["item"]: r for r in annotations.rejects.to_pylist()}
    assert {item: (r["status"], r["reason"]) for item, r in rejects.items()} == {
        "egoclip.csv:4": ("filtered", "duplicate row"),
        "egoclip.csv:6": ("filtered", "duplicate row"),
        "egoclip.csv:7": ("failed", "malformed tag_verb"),
    }
    assert "the same annotation as egoclip.csv:2, word for word" in rejects["egoclip.csv:4"]["detail"]
    keys = dict(zip(*(annotations.narrations[n].to_pylist() for n in ("narration_time", "key")), strict=True))
    assert (keys[3.0], keys[4.0]) == ("0a1b-2c_c1_000002", "0a1b-2c_c1_000003"), "keys of their own stay as they are"
    assert (keys[2.0], keys[9.0]) == ("0a1b-2c_c1_000001-7fe87b6e6dbd", "0a1b-2c_c1_000001-de970af45b59")


def test_summaries_that_are_all_numbered_0_are_all_kept_whatever_their_order(tmp_path: Path) -> None:
    rows = [row(i, video_uid=f"v{i % 3}", narration_ind=0, clip_text=f"#Summary C does {i}") for i in range(60)]
    rows.append(row(99, video_uid="alone", narration_ind=0))
    tables = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        annotations = read(tmp_path, table([]), table(rows, SUMMARY_COLUMNS))
        assert annotations.rejects.num_rows == 0 and annotations.summaries.num_rows == len(rows)
        tables.append(annotations.summaries)
    assert tables[0] == tables[1] == tables[2]
    assert tables[0]["key"].to_pylist()[0] == "alone_s1_000000"


@pytest.mark.parametrize(
    ("text", "reason"), [("a" * (1 << 20) + "a", "over-long text"), ("a\0b", "malformed text"), ("a" * 1000, "")]
)
def test_texts_that_no_shard_can_store_are_rejected(tmp_path: Path, text: str, reason: str) -> None:
    annotations = read(tmp_path, table([row(1), row(2, clip_text=text), row(3)]))
    assert annotations.rejects["reason"].to_pylist() == [reason] * bool(reason)


def test_durations_that_cannot_be_read_are_ignored_and_reported(tmp_path: Path) -> None:
    cells = ["nan", "-1", "1e300", "", "9.0", "inf", "long", "0"]
    annotations = read(tmp_path, table([row(i, video_dur=cell) for i, cell in enumerate(cells)]))
    assert annotations.rejects.num_rows == 0 and annotations.videos["duration"].to_pylist() == [9.0]
    (message,) = annotations.ignored
    assert "egoclip.csv: 6 values of the column video_dur are ignored" in message and "egoclip.csv:2" in message


def test_a_clip_and_a_summary_may_share_an_index_and_a_text(tmp_path: Path) -> None:
    annotations = read(tmp_path, table([row(1)]), table([row(1)], SUMMARY_COLUMNS))
    assert (annotations.narrations.num_rows, annotations.summaries.num_rows, annotations.rejects.num_rows) == (1, 1, 0)


def test_missing_columns_are_named_together_with_the_existing_ones(tmp_path: Path) -> None:
    text = table([row(1)], [c for c in CLIP_COLUMNS if c not in ("tag_noun", "clip_end", "video_dur", "clip_idx")])
    with pytest.raises(
        AnnotationError, match=r"egoclip.csv: missing columns clip_end, tag_noun; .*video_uid, narration"
    ):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\xff\xfev\x00", "missing columns"),
        (b"\xff\xfev\x00\x00", "looks like UTF-16"),
        (b"caf\xe9\t", "not a header"),
        (b'"video_uid\t', "not a header"),
        (b"a,b,c\n1,2,3\n", "missing columns"),
        (table([], [*CLIP_COLUMNS, "tag_verb"]).encode(), "tag_verb occurs 2 times"),
    ],
)
def test_a_file_that_is_not_a_table_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(AnnotationError, match=f"egoclip.csv: .*{message}"):
        read(tmp_path, data)


def test_a_file_with_only_a_header_has_no_rows(tmp_path: Path) -> None:
    annotations = read(tmp_path, table([]), table([], SUMMARY_COLUMNS).removesuffix("\n"))
    assert (
        annotations.narrations.num_rows
        == annotations.summaries.num_rows
        == annotations.rejects.num_rows
        == annotations.videos.num_rows
        == 0
    )


@FAST
@given(case=corrupted(alphabet=DAMAGE))
def test_rows_of_a_corrupted_file_are_accounted_for_once(tmp_path: Path, case: tuple[bytes, set[int]]) -> None:
    data, untouched = case
    annotations = read(tmp_path, data)
    # A touched row may get the key of a later, untouched one, which is then a duplicate with the same index.
    named = {int(r["narration_ind"]) for r in annotations.narrations.to_pylist() if r["video_uid"] == "0a1b-2c"}
    assert untouched <= named
