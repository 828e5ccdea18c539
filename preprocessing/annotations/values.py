"""Checks of single values in annotation files, and how values appear in messages."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

from shards.tar import MAX_MEMBER

MAX_TEXT = MAX_MEMBER["txt"]  # bytes of a caption in UTF-8: the limit of a sample's `txt` member
MAX_NAME = 255  # bytes of a name in UTF-8: the limit of file systems, and enough for any identifier
_SHOWN = 80  # characters of a value in a message


def is_uid(value: Any) -> TypeGuard[str]:
    """Return whether a value can be a video uid: text that can be the name of a file `<video_uid>.mp4`."""
    if not isinstance(value, str) or value in ("", ".", "..") or not value.isprintable():
        return False
    return "/" not in value and "\\" not in value and is_name(value)


def is_name(value: Any) -> TypeGuard[str]:
    """Return whether a value can be an identifier: text that is not blank, of at most 255 bytes."""
    return isinstance(value, str) and bool(value.strip()) and not text_problem(value, MAX_NAME)


def text_problem(value: Any, limit: int = MAX_TEXT) -> str:
    """Return why a value cannot be stored as text of up to `limit` bytes; empty where it can.

    JSON can express lone surrogates, which UTF-8 cannot. A NUL ends the text for programs written in C.
    """
    if not isinstance(value, str):
        return "expected text"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "expected Unicode text, without lone surrogates"
    if size > limit:
        return f"{size} bytes; the limit is {limit}"
    return "contains a NUL character" if "\0" in value else ""


def show(value: Any) -> str:
    """Return a value's repr for a message, truncated to 80 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def plain(text: str, limit: int = 0) -> str:
    """Return text that can be stored: lone surrogates and NUL as escapes, cut to `limit` characters unless 0."""
    text = text if not limit or len(text) <= limit else text[:limit] + "…"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def parse_classes(text: str, classes: int) -> list[int] | None:
    """Return the class numbers in a JSON list such as `[2, 11]`.

    None unless it has at most `classes` elements, all of them integers in [0, `classes`).
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(type(number) is int and 0 <= number < classes for number in value):
        return None
    return value if len(value) <= classes else None
