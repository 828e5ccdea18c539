"""Serves images and videos of samples straight from the tars: whole or one HTTP range of them.

Source: RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response, StreamingResponse

from shards.browse.faststart import Piece, pieces, slices
from shards.stats import open_regular

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_AT_A_TIME = 1 << 18  # bytes of one read
_TYPES = {"jpg": "image/jpeg", "mp4": "video/mp4"}


@dataclass(frozen=True)
class Stored:
    """A member of a tar."""

    tar: Path
    offset: int
    size: int
    kind: str  # jpg or mp4
    version: str  # differs when the tar does


def respond(stored: Stored, headers: Mapping[str, str]) -> Response:
    """Return the response to a request for a member, given the request's headers; raise `OSError` if it is not there.

    One range is answered with 206, an impossible one with 416; anything else gets the whole member.
    """
    parts = _pieces(stored)
    total = sum(len(part) if isinstance(part, bytes) else part[1] for part in parts)
    tag = f'"{hashlib.sha256(f"{stored.version} {stored.offset}".encode()).hexdigest()[:32]}"'
    answer = {
        "accept-ranges": "bytes",
        "etag": tag,
        "cache-control": "private, max-age=3600",
        "content-type": _TYPES[stored.kind],
    }
    if headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    begin, end, status = 0, total, 200
    wanted = _RANGE.fullmatch(headers.get("range", "").strip())
    if wanted and headers.get("if-range", tag) == tag and (wanted[1] or wanted[2]):
        if wanted[1]:
            begin, end = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else total, total)
        else:
            begin = max(0, total - int(wanted[2]))
        if begin >= end:
            return Response(status_code=416, headers={"content-range": f"bytes */{total}", "accept-ranges": "bytes"})
        status = 206
        answer["content-range"] = f"bytes {begin}-{end - 1}/{total}"
    answer["content-length"] = str(end - begin)
    return StreamingResponse(_stream(stored, list(slices(parts, begin, end))), status, answer)


@functools.lru_cache(maxsize=512)
def _pieces(stored: Stored) -> list[Piece]:
    with open_regular(stored.tar) as handle:
        if os.fstat(handle.fileno()).st_size < stored.offset + stored.size:
            raise OSError(f"{stored.tar}: shorter than its index says: run python -m shards.verify")
        if stored.kind != "mp4":
            return [(0, stored.size)]
        return pieces(lambda at, size: os.pread(handle.fileno(), size, stored.offset + at), stored.size)


def _stream(stored: Stored, parts: Sequence[Piece]) -> Iterator[bytes]:
    with open_regular(stored.tar) as handle:
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            at, left = part
            while left:
                data = os.pread(handle.fileno(), min(left, _AT_A_TIME), stored.offset + at)
                if not data:
                    raise OSError(f"{stored.tar}: ends before byte {stored.offset + at}")
                yield data
                at, left = at + len(data), left - len(data)
