"""Reads a large JSON file value by value, so that only the objects of one video are in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from preprocessing.annotations.files import read_text
from preprocessing.annotations.tables import AnnotationError

_SPACE = re.compile(r"[ \t\n\r]*")
_LONG_INTEGER = 20  # digits; longer ones exceed int64 and become floats


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _LONG_INTEGER else float(digits)


class RepeatingObject(dict[str, Any]):
    """A JSON object that has a name more than once, with different values; as a dict it has the first of them."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(reversed(pairs))
        self.pairs = pairs  # in the order of the file
        self.repeated = {name for name, value in pairs if self[name] != value}

    def __eq__(self, other: object) -> bool:
        """Compare all pairs, not only the first of each name."""
        return isinstance(other, RepeatingObject) and self.pairs == other.pairs

    def __ne__(self, other: object) -> bool:
        """Compare all pairs, not only the first of each name."""
        return not self == other

    __hash__ = None


def pairs(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the names and values of a JSON object in the order of the file, repeated names included."""
    return value.pairs if isinstance(value, RepeatingObject) else list(value.items())


def repeated_name(value: Any) -> str | None:
    """Return a name that occurs more than once, with different values, in a JSON value at any depth; None if none."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, RepeatingObject):
            return min(item.repeated)
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeating = RepeatingObject(pairs)
    return repeating if repeating.repeated else value


class JsonCursor:
    """A cursor over a JSON file: `members` and `elements` iterate over a container, `value` reads the next value.

    While iterating, read each value (with `value`, or a nested container to its end) before advancing. All methods
    raise `AnnotationError` with line and column where the file is not valid JSON; the constructor where it cannot be
    read as text (`files.open_utf8`). An object that has a name twice is a `RepeatingObject`.

        cursor = JsonCursor(path)
        for uid in cursor.members():
            video = cursor.value()
        cursor.end()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = read_text(path)
        self._at = 0
        self._decoder = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_object)

    def peek(self) -> str:
        """Return the first character of the next value; an empty string at the end."""
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """Return the next value, parsed completely."""
        self.peek()
        try:
            value, self._at = self._decoder.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            raise self._error(error.msg, error.pos) from None
        except RecursionError:
            raise self._error("nested too deeply", self._at) from None
        return value

    def members(self) -> Iterator[str]:
        """Yield each name of the next value, an object; the cursor is then before the value of that name."""
        self._expect("{")
        if self._take("}"):
            return
        while True:
            if self.peek() != '"':
                raise self._error("expected a name in quotes", self._at)
            name = self.value()
            self._expect(":")
            yield name
            if self._take("}"):
                return
            self._expect(",")

    def elements(self) -> Iterator[int]:
        """Yield 0, 1, … for the next value, a list; the cursor is then before the element of that index."""
        self._expect("[")
        if self._take("]"):
            return
        index = 0
        while True:
            yield index
            if self._take("]"):
                return
            self._expect(",")
            index += 1

    def end(self) -> None:
        """Raise `AnnotationError` unless only white space remains."""
        if self.peek():
            raise self._error("text after the end", self._at)

    def _take(self, char: str) -> bool:
        if self.peek() != char:
            return False
        self._at += 1
        return True

    def _expect(self, char: str) -> None:
        if not self._take(char):
            found = repr(self._text[self._at : self._at + 20]) if self.peek() else "the end of the file"
            raise self._error(f"expected {char!r}, found {found}", self._at)

    def _error(self, message: str, at: int) -> AnnotationError:
        line = self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        return AnnotationError(f"{self.path} line {line} column {column}: not valid JSON: {message}; download it again")
