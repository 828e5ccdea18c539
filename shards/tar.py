"""The tar format of a shard: the bytes of its headers, and a reader for untrusted files."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards import schema
from shards.keys import is_key
from shards.stats import open_regular

BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE  # bytes
_OWNER = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid: fixed for reproducible bytes
_TIME = b"00000000000\0"
_REST = (b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2).ljust(356, b"\0")  # type … prefix
_SUM_OF_REST = sum(_REST)
_MAX_SIZE = 8**11 - 1  # bytes, the limit of USTAR's size field
_SIZE = re.compile(rb"[0-7]{11}\0")
_CHUNK = 1 << 20  # bytes read at a time
_MAX_REST = 16 << 30  # bytes that are hashed after an error

MAX_MEMBER = {"jpg": 64 << 20, "json": 8 << 20, "mp4": 1 << 30, "txt": 1 << 20}
"""Limits in bytes of what is read into memory: far above any sample, far below a machine's memory."""


class TarError(ValueError):
    """A tar that violates the contract at some byte; nothing after that byte can be read."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of a tar."""

    key: str
    ext: str
    offset: int  # bytes from the start of the tar to the data
    size: int  # bytes
    data: bytes | None  # None if larger than MAX_MEMBER

    @property
    def name(self) -> str:
        """The file's name in the tar."""
        return f"{self.key}.{self.ext}"


def header(name: str, size: int) -> bytes:
    """Return the USTAR header of a regular file, which depends on its name and size only.

    Not written with `tarfile`, whose output differs between versions of Python. Raises `TarError` if name or size do
    not fit.
    """
    if size > _MAX_SIZE or len(name) > 100:
        raise TarError(f"{name}: the name or the size of {size} bytes does not fit into a USTAR header")
    start = name.encode("ascii").ljust(100, b"\0") + _OWNER + b"%011o\0" % size + _TIME
    checksum = sum(start) + 8 * ord(" ") + _SUM_OF_REST
    return start + b"%06o\0 " % checksum + _REST


def end(position: int) -> bytes:
    """Return the zeros that close a tar after `position` bytes."""
    return bytes(2 * BLOCK + -(position + 2 * BLOCK) % RECORD)


class TarReader:
    """Iterates once over the members of a tar while hashing the file; holds one member in memory, extracts nothing.

    After the iteration, even if a `TarError` ended it, `sha256` is the hash of the whole file. It is None if that was
    not worth reading: after an error without `hash_rest`, and with a member above `MAX_MEMBER`, which is skipped.
    """

    def __init__(self, path: Path, *, hash_rest: bool = True) -> None:
        self._path, self._hash_rest = path, hash_rest
        self._digest = hashlib.sha256()
        self._position = 0
        self._is_complete = True

    @property
    def sha256(self) -> str | None:
        """The hex digest of the bytes read so far; None if some were skipped."""
        return self._digest.hexdigest() if self._is_complete else None

    def __iter__(self) -> Iterator[Member]:
        """Yield the members in order; raise `TarError` if the tar is truncated, malformed or has an invalid name."""
        with open_regular(self._path) as handle:
            try:
                yield from self._members(handle)
            except TarError:
                rest = os.fstat(handle.fileno()).st_size - self._position
                self._is_complete &= self._hash_rest and rest <= _MAX_REST
                while self._is_complete and self._read(handle, _CHUNK):
                    pass
                raise

    def _members(self, handle: IO[bytes]) -> Iterator[Member]:
        while True:
            at = self._position
            block = self._exactly(handle, BLOCK, "a header")
            if not any(block):
                break
            key, ext, size = _parse(block, at)
            if size > MAX_MEMBER[ext]:
                self._skip(handle, size, f"{key}.{ext}")
                data = None
            else:
                data = self._exactly(handle, size, f"{key}.{ext}")
            padding = self._exactly(handle, -size % BLOCK, f"the padding after {key}.{ext}")
            if any(padding):
                raise TarError(f"byte {self._position - len(padding)}: the padding after {key}.{ext} is not all zeros")
            yield Member(key=key, ext=ext, offset=at + BLOCK, size=size, data=data)
        closing = end(at)
        rest = block + self._read(handle, len(closing))
        if rest != closing or self._read(handle, 1):
            raise TarError(f"byte {at}: the tar does not end in {len(closing)} zeros: truncated, or followed by data")

    def _read(self, handle: IO[bytes], size: int) -> bytes:
        data = handle.read(size)
        self._digest.update(data)
        self._position += len(data)
        return data

    def _exactly(self, handle: IO[bytes], size: int, what: str) -> bytes:
        data = self._read(handle, size)
        if len(data) != size:
            raise TarError(f"byte {self._position}: the file ends within {what}")
        return data

    def _skip(self, handle: IO[bytes], size: int, what: str) -> None:
        self._is_complete = False
        self._position = handle.seek(size, os.SEEK_CUR)
        if self._position > os.fstat(handle.fileno()).st_size:
            raise TarError(f"byte {self._position}: the file ends within {what}")


def _parse(block: bytes, at: int) -> tuple[str, str, int]:
    """Return key, extension and size from a header; raise `TarError` unless it is the one that `header` returns."""
    raw = block[:100].split(b"\0", 1)[0]
    name = raw.decode("ascii", "backslashreplace")
    key, _, ext = name.partition(".")
    if not is_key(key) or ext not in schema.MEMBERS:
        raise TarError(f"byte {at}: {name!r} is not a valid member name: <key>.{{{','.join(schema.MEMBERS)}}}")
    if not _SIZE.fullmatch(block[124:136]):
        raise TarError(f"byte {at}: the size of {name} is {block[124:136]!r}, not a USTAR octal number")
    size = int(block[124:135], 8)
    if block != header(name, size):
        raise TarError(
            f"byte {at}: the header of {name} is not that of a regular file with mode 644 and uid, gid and mtime 0"
        )
    return key, ext, size
