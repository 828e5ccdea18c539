"""Checks of single values in annotation files, and how values appear in messages."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

_SHOWN = 80  # characters of a value in a message


def is_uid(value: Any) -> TypeGuard[str]:
    """Return whether a value can be a video uid: text that can be the name of a file `<video_uid>.mp4`."""
    if not isinstance(value, str) or value in ("", ".", "..") or not value.isprintable():
        return False
    return "/" not in value and "\\" not in value and is_text(value)


def is_text(value: str) -> bool:
    """Return whether a string has no lone surrogates, which JSON can express but UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def show(value: Any) -> str:
    """Return a value's repr for a message, truncated to 80 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def parse_classes(text: str, classes: int) -> list[int] | None:
    """Return the class numbers in a JSON list such as `[2, 11]`; None unless all are integers in [0, `classes`)."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(type(number) is int and 0 <= number < classes for number in value):
        return None
    return value
