"""Sample keys: derived from an annotation's identity, valid as file names, unique per annotation."""

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

    Letters, digits and `-` are kept, `_` becomes `__`, and any other byte of the UTF-8 text becomes `_xHH`. A result of
    more than 48 characters is truncated and ends in `_h` and 16 hex digits of the id's sha256.

        >>> escape_id("P01_01.take")
        'P01__01_x2etake'
    """
    escaped = "".join(_escape_char(char) for char in video_id)
    if len(escaped) <= _MAX_VIDEO_ID and escaped:
        return escaped
    digest = hashlib.sha256(video_id.encode()).hexdigest()[:16]
    return f"{escaped[: _MAX_VIDEO_ID - 18]}_h{digest}"


def make_key(video_id: str, letter: str, annotation_pass: int, identity: int | str) -> str:
    """Return `<escaped video id>_<letter><pass>_<identity>`; raise `ValueError` if the parts make no valid key.

    `identity` identifies the annotation: a number, which is padded to six digits, or text of letters, digits and `-`.

        >>> make_key("video", "c", 1, 123)
        'video_c1_000123'
    """
    name = f"{identity:06d}" if isinstance(identity, int) else identity
    key = f"{escape_id(video_id)}_{letter}{annotation_pass}_{name}"
    if not is_key(key) or "_" in name or not (letter.isalpha() and letter.islower()) or annotation_pass < 0:
        parts = f"video {video_id!r}, letter {letter!r}, pass {annotation_pass!r}, identity {identity!r}"
        raise ValueError(f"{parts} do not make a valid key")
    return key


def distinct_key(key: str, content: str) -> str:
    """Return the key of one of several annotations that would all get `key` and differ in `content`.

    It depends on key and content only, not on the other annotations: `key`, `-` and 12 hex digits of the sha256 of
    both; where that is longer than a key may be, `h` and 20 digits replace the identity and the suffix.

        >>> distinct_key("video_s1_000000", "prepared tea")
        'video_s1_000000-19b3c3629f22'
    """
    digest = hashlib.sha256(f"{key}\n{content}".encode()).hexdigest()
    longer = f"{key}-{digest[:12]}"
    return longer if is_key(longer) else f"{key[: key.rindex('_') + 1]}h{digest[:20]}"


def is_key(text: str) -> bool:
    """Return whether `text` is 1 to 90 characters of `[A-Za-z0-9_-]`."""
    return KEY_PATTERN.fullmatch(text) is not None


def _escape_char(char: str) -> str:
    if _PLAIN.fullmatch(char):
        return char
    return "__" if char == "_" else "".join(f"_x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
