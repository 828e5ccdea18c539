"""Reading JSON value by value: repeated names are kept, whatever is malformed is named with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.annotations import AnnotationError
from preprocessing.annotations.json_stream import JsonCursor, RepeatingObject, pairs, repeated_name
from tests.preprocessing.annotation_files import write


def value(folder: Path, text: str) -> object:
    return JsonCursor(write(folder / "file.json", text)).value()


def test_an_object_with_a_name_twice_keeps_all_its_values(tmp_path: Path) -> None:
    read = value(tmp_path, '{"a": 1, "b": 2, "a": 3}')
    assert isinstance(read, RepeatingObject) and dict(read) == {"a": 1, "b": 2} and read.repeated == {"a"}
    assert pairs(read) == [("a", 1), ("b", 2), ("a", 3)] and repeated_name([{"x": read}]) == "a"


def test_equal_values_of_one_name_are_one(tmp_path: Path) -> None:
    read = value(tmp_path, '{"a": {"x": [1]}, "a": {"x": [1]}}')
    assert read == {"a": {"x": [1]}} and repeated_name(read) is None


def test_objects_that_differ_only_in_a_repeated_name_are_different(tmp_path: Path) -> None:
    read = value(tmp_path, '{"a": {"x": 1, "x": 2}, "a": {"x": 1, "x": 3}}')
    assert isinstance(read, RepeatingObject) and read.repeated == {"a"}
    assert read["a"] != {"x": 1} and read["a"] != {"x": 1} and read["a"] == read["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b" 2}', r"file\.json line 2 column 6: not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "x', "Unterminated string"),
    ],
)
def test_malformed_json_is_named_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        value(tmp_path, text)


def test_long_integers_are_numbers(tmp_path: Path) -> None:
    assert value(tmp_path, f"[{'9' * 5000}, {'9' * 19}, -1]") == [float("inf"), int("9" * 19), -1]
