"""Reads a large JSON file value by value, so that only the objects of one video are in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocessing.annotations.tables import AnnotationError

_SPACE = re.compile(r"[ \t\n\r]*")
_LONG_INTEGER = 20  # digits; longer ones exceed int64 and become floats


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _LONG_INTEGER else float(digits)


class JsonCursor:
    """A cursor over a JSON file: `members` and `elements` iterate over a container, `value` reads the next value.

    While iterating, read each value (with `value`, or a nested container to its end) before advancing. All methods
    raise `AnnotationError` with line and column where the file is not valid JSON; the constructor where it is not
    UTF-8.

        cursor = JsonCursor(path)
        for uid in cursor.members():
            video = cursor.value()
        cursor.end()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise AnnotationError(f"{path}: not UTF-8 at byte {error.start}; JSON files must be UTF-8") from None
        self._at = 0
        self._decoder = json.JSONDecoder(parse_int=_integer)

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
