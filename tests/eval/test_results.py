"""A result is read from its folder as it was written; a damaged file is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.results import Confusion, Item, Missing, Option, Result, ResultError, Score

NUMBERS = st.floats(0, 100)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
OPTIONS = st.builds(Option, key=TEXTS, text=TEXTS, score=NUMBERS)
RESULTS = st.builds(
    Result,
    benchmark=TEXTS,
    set_name=TEXTS,
    split=TEXTS,
    root=TEXTS,
    checkpoint=TEXTS,
    checkpoint_digest=TEXTS,
    fingerprint=TEXTS,
    settings=st.dictionaries(TEXTS, st.integers() | TEXTS | st.none(), max_size=3),
    scores=st.lists(
        st.builds(
            Score,
            name=TEXTS,
            value=NUMBERS,
            low=st.none() | NUMBERS,
            high=st.none() | NUMBERS,
            chance=st.none() | NUMBERS,
            items=st.integers(0, 9),
            of=st.integers(0, 9),
            tied=st.integers(0, 9),
            published=st.dictionaries(TEXTS, NUMBERS, max_size=2),
        ),
        max_size=3,
    ),
    items=st.lists(
        st.builds(
            Item,
            id=TEXTS,
            group=TEXTS,
            text=TEXTS,
            score=NUMBERS,
            answer=TEXTS,
            predicted=TEXTS,
            options=st.lists(OPTIONS, max_size=3),
            note=TEXTS,
        ),
        max_size=3,
    ),
    missing=st.lists(st.builds(Missing, item=TEXTS, reason=TEXTS), max_size=2),
    curves=st.dictionaries(TEXTS, st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3), max_size=2),
    curve_axes=st.dictionaries(TEXTS, st.tuples(TEXTS, TEXTS), max_size=2),
    confusion=st.none() | st.just(Confusion(labels=["a", "b"], counts=[[1, 2], [3, 4]])),
    seconds=NUMBERS,
    machine=TEXTS,
    made_at=TEXTS,
)


@settings(deadline=None)  # the disk's
@given(result=RESULTS)
def test_a_result_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, result: Result) -> None:
    folder = tmp_path_factory.mktemp("result")
    result.save(folder)
    assert Result.load(folder) == result


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.json", b"{", "scores.json: not JSON"),
        ("scores.json", b"[]", "expected a JSON object"),
        ("scores.json", b'{"version": 9}', "version 1"),
        ("items.jsonl", b'{"id": \n', "items.jsonl, line 1"),
        ("items.jsonl", b'{"id": 3}\n', "id"),
    ],
)
def test_a_damaged_file_is_reported(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    empty = Result(
        benchmark="b", set_name="s", split="test", root="r", checkpoint="c", checkpoint_digest="d", fingerprint="f",
        settings={}, scores=[], items=[],
    )  # fmt: skip
    empty.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultError, match=message):
        Result.load(tmp_path)
    with pytest.raises(ResultError, match="no such result"):
        Result.load(tmp_path / "nowhere")
