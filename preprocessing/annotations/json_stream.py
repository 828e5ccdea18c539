"""Reads a large JSON file value by value, so that only one video's objects are in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocessing.annotations.tables import AnnotationError

_SPACE = re.compile(r"[ \t\n\r]*")
_LONG_INTEGER = 20  # digits; past int64, and no field here means such a number


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _LONG_INTEGER else float(digits)


class JsonText:
    """A cursor over a JSON file: `members` and `elements` step into a container, `value` reads what comes next.

    Whoever iterates takes the value (`value`, or a container to its end) before asking for the next name.
    A file that is not UTF-8 or not JSON raises `AnnotationError` with line and column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise AnnotationError(f"{path}: not UTF-8 at byte {error.start}; a JSON file must be UTF-8") from None
        self._at = 0
        self._decoder = json.JSONDecoder(parse_int=_integer)

    def peek(self) -> str:
        """Return the first character of what comes next, or an empty text at the end."""
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """Return the next value whole."""
        self.peek()
        try:
            value, self._at = self._decoder.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            raise self._error(error.msg, error.pos) from None
        except RecursionError:
            raise self._error("nested too deeply", self._at) from None
        return value

    def members(self) -> Iterator[str]:
        """Yield each name of the object that comes next; the cursor then stands before that name's value."""
        self._expect("{")
        if self._take("}"):
            return
        while True:
            if self.peek() != '"':
                raise self._error("a name in quotes is expected", self._at)
            name = self.value()
            self._expect(":")
            yield name
            if self._take("}"):
                return
            self._expect(",")

    def elements(self) -> Iterator[int]:
        """Yield 0, 1, … for the list that comes next; the cursor then stands before that element."""
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
        """Raise `AnnotationError` where anything but white space is left."""
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
            raise self._error(f"{char!r} is expected, not {found}", self._at)

    def _error(self, message: str, at: int) -> AnnotationError:
        line = self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        return AnnotationError(f"{self.path} line {line} column {column}: not valid JSON: {message}; fetch it anew")
