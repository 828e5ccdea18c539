"""Verbs and nouns of own captions: words get numbers, numbers stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from preprocessing.own.tags import CLASSES, Vocabulary, split_words


def test_cells_are_split_at_any_usual_separator() -> None:
    assert split_words(" Cut ;take, put|CUT") == ["cut", "take", "put"]
    assert split_words('["open door", 3]') == ["open door", "3"]
    assert split_words("") == []
    assert split_words("[1") is None and split_words("[[1]]") is None and split_words("[true]") is None


def test_words_keep_their_numbers_when_more_are_added() -> None:
    first = Vocabulary("verbs", [["take"], ["cut", "take"]], [])
    assert first.names == ["cut", "take"] and first.numbers(["take", "cut"]) == [0, 1]
    second = Vocabulary("verbs", [["open"], ["take"], ["add"]], first.names)
    assert second.names == ["cut", "take", "add", "open"]


def test_numbers_are_classes_and_have_no_names() -> None:
    vocabulary = Vocabulary("verbs", [["2", "117"], ["118"]], [])
    assert vocabulary.names == [] and vocabulary.numbers(["2", "117", "118"]) == [2, 117]
    assert vocabulary.messages == ["verbs: 1 of 3 are left out in 1 places, such as '118': there are 118 classes"]


@given(st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=4), max_size=400))
def test_there_are_never_more_classes_than_a_record_can_hold(cells: list[list[str]]) -> None:
    vocabulary = Vocabulary("verbs", cells, [])
    numbers = [number for words in cells for number in vocabulary.numbers(words)]
    assert all(0 <= number < CLASSES["verbs"] for number in numbers)
    distinct = {word for words in cells for word in words}
    assert bool(vocabulary.messages) == (len({n for n in numbers}) < len(distinct))
