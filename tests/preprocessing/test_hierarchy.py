"""The interval join gives each summary the narrations that a brute-force search finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import hierarchy
from preprocessing.annotations.tables import NARRATION_SCHEMA, SUMMARY_SCHEMA
from preprocessing.hierarchy import EPSILON, join


def annotations(rows: list[tuple[str, int, float, float]], letter: str, text: str = "#C C walks") -> pa.Table:
    """Return a table of (video, pass, start, end); its keys are in another order than its rows."""
    columns: dict[str, list[Any]] = {name: [] for name in NARRATION_SCHEMA.names}
    for index, (uid, number, start, end) in enumerate(rows):
        values = {
            "key": f"{uid}_{letter}{number}_{(index * 7919) % 10007:06d}",
            "video_uid": uid,
            "narration_source": f"narration_pass_{number}",
            "narration_ind": index,
            "narration_time": start,
            "clip_start": start,
            "clip_end": end,
            "text": text,
            "tag_verb": [],
            "tag_noun": [],
        }
        for name, value in values.items():
            columns[name].append(value)
    return pa.table(columns, schema=NARRATION_SCHEMA if letter == "c" else SUMMARY_SCHEMA)


def brute_force(narrations: pa.Table, summaries: pa.Table, match_pass: bool) -> list[list[int]]:
    found = []
    rows = narrations.to_pylist()
    for summary in summaries.to_pylist():
        inside = [
            (row["clip_start"], row["key"], index)
            for index, row in enumerate(rows)
            if row["video_uid"] == summary["video_uid"]
            and (not match_pass or row["narration_source"] == summary["narration_source"])
            and row["clip_start"] >= summary["clip_start"] - EPSILON
            and row["clip_end"] <= summary["clip_end"] + EPSILON
        ]
        found.append([index for _, _, index in sorted(inside)])
    return found


# Whole and half seconds, so that bounds touch, and shifts about the size of the tolerance.
TIMES = st.builds(
    lambda base, shift: base / 2 + shift,
    st.integers(0, 20),
    st.sampled_from([0.0, EPSILON / 2, -EPSILON / 2, 3 * EPSILON]),
)
ROWS = st.lists(
    st.builds(
        lambda uid, number, start, length: (uid, number, start, start + length),
        st.sampled_from(["a", "b", "ab"]),
        st.sampled_from([1, 2]),
        TIMES,
        st.sampled_from([0.0, 0.5, 1.0, 5.0]),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=300)
@given(narrations=ROWS, summaries=ROWS, match_pass=st.booleans(), pairs=st.sampled_from([1, 5, 1 << 22]))
def test_the_join_is_what_brute_force_finds(
    narrations: list[Any], summaries: list[Any], match_pass: bool, pairs: int
) -> None:
    tables = annotations(narrations, "c"), annotations(summaries, "s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hierarchy, "_PAIRS", pairs)
        found = join(*tables, match_pass=match_pass)
    assert [found.narrations_of(i).tolist() for i in range(len(found))] == brute_force(*tables, match_pass)
    assert found.offsets.dtype == found.rows.dtype == np.int64
    assert found.counts.sum() == len(found.rows) == found.offsets[-1]


def test_a_summary_without_narrations_stays_with_an_empty_list() -> None:
    found = join(
        annotations([("a", 1, 1, 2)], "c"), annotations([("b", 1, 0, 9), ("a", 1, 5, 9)], "s"), match_pass=False
    )
    assert found.offsets.tolist() == [0, 0, 0]
    assert len(found) == 2


def test_equal_texts_and_times_of_summaries_do_not_collide() -> None:
    narrations = annotations([("a", 1, 1, 2), ("a", 2, 3, 4), ("a", 2, 8, 9)], "c")
    summaries = annotations([("a", 1, 0, 5), ("a", 2, 0, 5), ("a", 1, 0, 5)], "s", text="#Summary C cooks")
    found = join(narrations, summaries, match_pass=False)
    assert [found.narrations_of(i).tolist() for i in range(3)] == [[0, 1]] * 3
    found = join(narrations, summaries, match_pass=True)
    assert [found.narrations_of(i).tolist() for i in range(3)] == [[0], [1], [0]]


def test_touching_bounds_are_inside_and_so_is_the_noise_of_decimal_text() -> None:
    summaries = annotations([("a", 1, 0.1 + 0.2, 1.1)], "s")
    narrations = annotations([("a", 1, 0.3, 1.1 + 1e-12), ("a", 1, 0.3 - 1e-5, 1.0), ("a", 1, 0.5, 1.1 + 1e-5)], "c")
    assert join(narrations, summaries, match_pass=False).narrations_of(0).tolist() == [0]


def test_tables_in_chunks_and_slices_are_joined_as_whole_ones() -> None:
    rows = [("ab"[i % 2], 1 + i % 2, float(i), i + 0.5) for i in range(40)]
    narrations, summaries = annotations(rows, "c"), annotations([("a", 1, 0, 30), ("b", 2, 4, 9)], "s")
    pieces = pa.concat_tables([narrations.slice(0, 7), narrations.slice(7, 30), narrations.slice(37)])
    assert pieces["key"].num_chunks == 3
    whole, parts = (join(t, summaries, match_pass=True) for t in (narrations, pieces))
    assert (whole.rows.tolist(), whole.offsets.tolist()) == (parts.rows.tolist(), parts.offsets.tolist())
    assert (
        brute_force(narrations, summaries.slice(1), True)[0]
        == join(narrations, summaries.slice(1), match_pass=True).narrations_of(0).tolist()
    )


def test_a_row_out_of_range_and_a_time_that_is_not_finite_are_errors() -> None:
    summaries = annotations([("a", 1, 0, 30)], "s")
    with pytest.raises(IndexError, match="summary 1 is out of range for 1"):
        join(annotations([], "c"), summaries, match_pass=False).narrations_of(1)
    with pytest.raises(ValueError, match="clip_end of row 0 is nan"):
        join(annotations([("a", 1, 0, float("nan"))], "c"), summaries, match_pass=False)
