"""Reads times as people write them: seconds, `m:s` and `h:m:s`, with a decimal point or comma."""

from __future__ import annotations

import re

from preprocessing.annotations.tables import MAX_SECONDS

_NUMBER = r"\d{1,9}(?:[.,]\d{1,9})?"
_SECONDS = re.compile(rf"({_NUMBER}|[.,]\d{{1,9}})\s*(?:s|sec|secs|seconds)?", re.ASCII | re.IGNORECASE)
_CLOCK = re.compile(rf"(?:(\d{{1,6}}):)?(\d{{1,6}}):({_NUMBER})", re.ASCII)
_UNITS = re.compile(
    rf"(?:(\d{{1,6}})\s*h)?\s*(?:(\d{{1,6}})\s*m(?:in)?)?\s*(?:({_NUMBER})\s*s)?", re.ASCII | re.IGNORECASE
)
FORMS = "seconds (75, 75.5), m:s (1:15.5) or h:m:s (0:01:15.5)"


def parse_time(text: str) -> float | None:
    """Return a time in s; None where the text is no time of 0 … 115 days. Two fields are minutes and seconds.

    >>> [parse_time(text) for text in ("90", "1:30", "0:01:30,5", "1h2m3s", "-1", "1:75", "noon")]
    [90.0, 90.0, 90.5, 3723.0, None, None, None]
    """
    text = text.strip()
    if match := _SECONDS.fullmatch(text):
        seconds = _number(match[1])
    elif match := _CLOCK.fullmatch(text):
        hours, minutes, last = int(match[1] or 0), int(match[2]), _number(match[3])
        if last >= 60 or (match[1] is not None and minutes >= 60):
            return None
        seconds = 3600 * hours + 60 * minutes + last
    elif text and (match := _UNITS.fullmatch(text)) and any(match.groups()):
        seconds = 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + _number(match[3] or "0")
    else:
        return None
    return seconds if seconds <= MAX_SECONDS else None


def _number(text: str) -> float:
    return float(text.replace(",", "."))
