"""Sample keys: made from an annotation's identity, legal as file names, and never the same for two annotations."""

from __future__ import annotations

import functools
import hashlib
import re

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,90}")
_PLAIN = re.compile(r"[A-Za-z0-9-]")
_MAX_VIDEO_ID = 48  # leaves room for the longest suffix: a set letter, a pass, two times and a text hash


@functools.lru_cache(maxsize=1 << 16)  # a video has hundreds of samples
def escape_id(video_id: str) -> str:
    """Return `video_id` in the alphabet of keys; different ids give different results.

    Letters, digits and `-` stand for themselves, `_` is written `__` and any other byte of the UTF-8 text `_xHH`.
    A result over 48 characters is cut and ends in `_h` and 16 hex digits of the id's sha256 instead.
    """
    escaped = "".join(_escape_char(char) for char in video_id)
    if len(escaped) <= _MAX_VIDEO_ID and escaped:
        return escaped
    digest = hashlib.sha256(video_id.encode()).hexdigest()[:16]
    return f"{escaped[: _MAX_VIDEO_ID - 18]}_h{digest}"


def make_key(video_id: str, letter: str, annotation_pass: int, identity: int | str) -> str:
    """Return `<escaped video id>_<letter><pass>_<identity>`, as `…_c1_000123`.

    `identity` is what the annotation calls itself: a number (padded to six digits) or text of letters, digits, `-`.
    """
    name = f"{identity:06d}" if isinstance(identity, int) else identity
    key = f"{escape_id(video_id)}_{letter}{annotation_pass}_{name}"
    if not is_key(key) or "_" in name or not (letter.isalpha() and letter.islower()) or annotation_pass < 0:
        raise ValueError(f"no legal key from video {video_id!r}, {letter!r}, {annotation_pass!r}, {identity!r}")
    return key


def is_key(text: str) -> bool:
    """Return whether `text` is 1 to 90 characters of `[A-Za-z0-9_-]`."""
    return KEY_PATTERN.fullmatch(text) is not None


def _escape_char(char: str) -> str:
    if _PLAIN.fullmatch(char):
        return char
    return "__" if char == "_" else "".join(f"_x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
